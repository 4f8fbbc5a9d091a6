"""EM as a fixed point: its step, and its gradient compared with finite differences and with backpropagation."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch.autograd import gradcheck

from examples import gaussian_mixture as example
from implicit_slate.fixed_point import fixed_point, spectral_radius


@pytest.fixture
def points():
    x, best = example.make_data(2, torch.Generator().manual_seed(0), num_points=18)
    return x.double() @ best.double()


def test_a_step_is_that_of_scikit_learn(points):
    _, (means, variances, weights) = example.problem(points)
    found = example.em_step(points, (means, variances, weights / 3), prior=0)
    for i, x in enumerate(points.numpy()):
        start = dict(means_init=means[i], precisions_init=1 / variances[i], weights_init=weights[i] / 3)
        mixture = GaussianMixture(3, covariance_type="diag", reg_covar=0, max_iter=1, tol=0, **start)
        with pytest.warns(ConvergenceWarning):  # because only one step is made
            mixture.fit(x)
        for ours, theirs in zip(found, (mixture.means_, mixture.covariances_, mixture.weights_)):
            assert np.allclose(ours[i], theirs)


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
