"""Quality of gradients, number of fixed points, and the regulariser, on maps where these are known."""

import pytest
import torch

from implicit_slate.errors import UserError
from implicit_slate.fixed_point import Solver, count_basins, gradient_cosine, jacobian_regularizer
from tests.fixed_point.maps import linear_map, relative_error, tanh_leaves, tanh_map


def agreement(gradient, norm=0.8, n=100, **options):
    weight, inputs = tanh_leaves(norm)
    z0 = torch.zeros_like(inputs.detach())
    f = tanh_map(weight, inputs)
    solver = Solver("picard", n)
    return gradient_cosine(lambda z: z.square().sum(), f, z0, [weight, inputs], gradient, solver, **options)


def test_unrolled_to_the_end_agrees_with_exact():
    found = agreement("unrolled", n=300)
    assert torch.allclose(torch.stack([found.cosine, found.norm_ratio]), torch.ones(2, dtype=torch.float64), atol=1e-6)
    assert (found.adjoint.residual < 1e-9).all()


def test_more_terms_agree_better_and_another_reference_may_be_given():
    cosines = [agreement(f"neumann({k})").cosine.item() for k in (1, 2, 4, 8)]
    assert cosines == sorted(cosines) and cosines[0] < 0.999
    assert agreement("implicit", reference="neumann(1)").cosine.item() == pytest.approx(1)


def test_a_parameter_that_is_not_reached_counts_as_zero():
    weight, inputs = tanh_leaves()
    start = torch.zeros_like(inputs.detach()).requires_grad_()
    assert gradient_cosine(torch.sum, tanh_map(weight, inputs), start, [weight, start], "implicit").cosine.isfinite()


def test_the_parameters_of_a_module_may_be_its_iterator():
    layer = torch.nn.Linear(3, 3)
    encoded = layer(torch.ones(2, 3))  # a part of f's graph that all gradients share

    def f(z):
        return torch.tanh(0.3 * layer(z) + encoded)

    found = gradient_cosine(torch.sum, f, torch.zeros(2, 3), layer.parameters(), "exact")
    assert found.cosine.item() == pytest.approx(1)


def two_wells(z):
    """Fixed points at ±1, and an unstable one at 0."""
    return z - 0.5 * (z**3 - z)


def test_basins_are_counted_for_each_image():
    starts = [torch.tensor([[value], [abs(value)]]) for value in (-0.5, 0.3, 0.9, -1.2)]
    basins = count_basins(two_wells, starts)
    assert basins.distinct.tolist() == [2, 1] and basins.converged.tolist() == [4, 4]


def test_a_solver_without_a_tolerance_cannot_count_fixed_points():
    with pytest.raises(UserError, match="tolerance"):
        count_basins(two_wells, [torch.ones(1, 1)], Solver("picard", 10))


def test_what_does_not_converge_is_no_fixed_point():
    basins = count_basins(lambda z: torch.stack([-z[:, 1], z[:, 0]], 1), [torch.ones(1, 2), 2 * torch.ones(1, 2)])
    assert basins.distinct.tolist() == [0] and basins.converged.tolist() == [0]


def test_a_distance_of_sets_makes_permutations_one_point():
    starts = [torch.tensor([[-0.5, 0.5]]), torch.tensor([[0.5, -0.5]])]
    assert count_basins(two_wells, starts).distinct.item() == 2

    def of_sets(a, b):
        return (a.sort(1).values - b.sort(1).values).norm(dim=1)

    assert count_basins(two_wells, starts, distance=of_sets).distinct.item() == 1


def test_the_regularizer_is_an_unbiased_estimate_of_the_frobenius_norm():
    f = linear_map(0.9)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([jacobian_regularizer(f, f.z0, generator) for _ in range(2000)]).detach()
    assert relative_error(draws.mean(0), f.matrix.detach().square().sum((1, 2)) / 8) < 0.05


def test_the_regularizer_can_be_minimised_and_reaches_a_state_that_requires_gradients():
    f = linear_map(0.9)
    z = torch.ones_like(f.offset.detach()).requires_grad_()
    jacobian_regularizer(lambda z: torch.tanh(f(z)), z).sum().backward()
    assert z.grad.abs().sum() > 0
    before = f.matrix.detach().norm()
    f.matrix.grad = None
    jacobian_regularizer(f, f.z0).sum().backward()
    assert (f.matrix.detach() - 0.1 * f.matrix.grad).norm() < before
