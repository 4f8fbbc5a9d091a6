"""EM as a fixed point: what it converges to, and its gradient against differences and against backpropagation."""

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from examples import gaussian_mixture as example
from implicit_slate.fixed_point import fixed_point, spectral_radius


@pytest.fixture
def points():
    x, sought = example.make_data(2, torch.Generator().manual_seed(0), num_points=18)
    return x.double() @ sought.double()


def test_a_step_is_textbook_em_in_one_dimension():
    x = torch.tensor([[[0.0], [1.0], [4.0]]], dtype=torch.float64)
    mixture = tuple(torch.tensor(t, dtype=torch.float64) for t in ([[[0.0], [3.0]]], [[[1.0], [4.0]]], [[0.4, 0.6]]))
    means, variances, weights = example.em_step(x, mixture, prior=0)

    def density(value, mean, variance):
        return math.exp(-((value - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    first = [0.4 * density(v, 0, 1) / (0.4 * density(v, 0, 1) + 0.6 * density(v, 3, 4)) for v in (0, 1, 4)]
    for component, r in enumerate((first, [1 - p for p in first])):
        mean = sum(p * v for p, v in zip(r, (0, 1, 4))) / sum(r)
        variance = sum(p * (v - mean) ** 2 for p, v in zip(r, (0, 1, 4))) / sum(r)
        assert means[0, component, 0].item() == pytest.approx(mean)
        assert variances[0, component, 0].item() == pytest.approx(variance)
        assert weights[0, component].item() == pytest.approx(sum(r) / 3)


def test_a_step_never_lowers_the_likelihood(points):
    f, z = partial(example.em_step, points, prior=0), example.problem(points)[1]
    z = (*z[:2], z[2] / 3)

    def log_likelihood(mixture):
        component = torch.distributions.Independent(
            torch.distributions.Normal(mixture[0][:, None], mixture[1][:, None].sqrt()), 1
        )
        return (mixture[2][:, None].log() + component.log_prob(points[:, :, None])).logsumexp(2).sum(1)

    values = [log_likelihood(z)]
    for _ in range(10):
        z = f(z)
        values.append(log_likelihood(z))
    assert (torch.stack(values).diff(dim=0) >= -1e-9).all() and (values[-1] > values[0] + 1).all()


def test_cold_soft_kmeans_is_kmeans(points):
    means = points[:, :3]
    nearest = torch.cdist(points, means).argmin(2)
    expected = torch.stack([torch.stack([p[n == k].mean(0) for k in range(3)]) for p, n in zip(points, nearest)])
    assert torch.allclose(example.soft_kmeans_step(points, means, 1e-6), expected)


def test_exact_sensitivity_of_the_mixture_to_the_points_is_that_of_differences(points):
    def solve(points):
        f, z0 = example.problem(points)
        return fixed_point(f, tuple(t.detach() for t in z0), max_iterations=2000, tol=1e-13, gradient="exact(gmres)").z

    assert gradcheck(solve, points[:1].clone().requires_grad_(), eps=1e-5, atol=1e-5, rtol=1e-4)


def test_derivative_by_the_temperature_is_that_of_the_unrolled_run_and_one_step_is_not_enough(points):
    def derivative(gradient):
        temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        step = partial(example.soft_kmeans_step, points, temperature=temperature)
        means = fixed_point(step, points[:, :3], max_iterations=400, gradient=gradient).z
        return torch.autograd.grad(means.square().sum(), temperature)[0].item()

    unrolled = derivative("unrolled")
    assert derivative("exact(dense)") == pytest.approx(unrolled, rel=1e-6)
    assert derivative("exact(gmres)") == pytest.approx(unrolled, rel=1e-6)
    assert abs(derivative("implicit") / unrolled - 1) > 0.01


def test_overlap_brings_the_spectral_radius_to_one():
    def radius(distance):
        generator = torch.Generator().manual_seed(0)
        centres = distance * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        x = centres.repeat(1, 40, 1)[:, :120] + torch.randn(1, 120, 2, generator=generator, dtype=torch.float64)
        f, z0 = example.problem(x)
        return spectral_radius(f, fixed_point(f, z0, max_iterations=500).z).item()

    assert radius(12.0) < 0.2 < 0.8 < radius(2.0) < 1


@pytest.mark.parametrize("gradient", ["unrolled", "implicit", "neumann(3)", "exact(gmres)"])
def test_training_the_embedding_finds_the_classes(gradient):
    generator = torch.Generator().manual_seed(3)
    (x, _), (x_test, _) = example.make_data(12, generator), example.make_data(50, generator)
    start = torch.randn(6, 2, generator=generator) / 6**0.5

    def accuracy(embedding):
        f, z0 = example.problem(x_test @ embedding)
        return example.loss_and_accuracy(x_test @ embedding, fixed_point(f, z0, max_iterations=50).z)[1].item()

    trained = example.train(start, x, gradient, steps=30, num_iterations=15)
    assert accuracy(trained) > accuracy(start) + 0.08


def test_main_prints_a_row_a_gradient(capsys):
    example.main(steps=1)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("unrolled", "implicit", "neumann(3)", "exact(gmres)", "(sought)"))
