"""Gradient modes on maps whose fixed points and gradients are known."""

import pytest
import torch

from implicit_slate.errors import UserError
from implicit_slate.fixed_point import Solution, fixed_point, picard


def contraction(batch=3, size=5, seed=0):
    """f(z) = A z + b per row, ‖A‖ = 0.5, in float64."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = (0.5 * matrix / torch.linalg.matrix_norm(matrix, 2)).requires_grad_()
    offset = torch.randn(batch, size, generator=generator, dtype=torch.float64, requires_grad=True)
    return matrix, offset, lambda z: z @ matrix.T + offset


def saved_tensors(run):
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        run()
    return len(sizes)


def test_picard_applies_exactly_so_often_and_returns_the_last():
    matrix, offset, f = contraction()
    solution = picard(f, torch.zeros(3, 5, dtype=torch.float64), max_iterations=4)
    z = torch.zeros(3, 5, dtype=torch.float64)
    for _ in range(4):
        previous, z = z, f(z)
    assert torch.equal(solution.z, z)
    assert solution.evaluations == 4 and solution.trace.shape == (4, 3)
    assert torch.allclose(solution.residual, (z - previous).norm(dim=1) / z.norm(dim=1))


def test_picard_with_a_tolerance_stops_there():
    matrix, offset, f = contraction()
    solution = picard(f, torch.zeros(3, 5, dtype=torch.float64), max_iterations=200, tol=1e-9)
    exact = torch.linalg.solve(torch.eye(5, dtype=torch.float64) - matrix, offset.T).T
    assert solution.evaluations < 60
    assert (solution.residual <= 1e-9).all()
    assert torch.allclose(solution.z, exact, atol=1e-7)


def test_picard_with_a_tolerance_returns_the_best_iterate_of_an_expanding_map():
    solution = picard(lambda z: 0.1 + 2 * z, torch.full((1, 1), -0.1 + 1e-3), max_iterations=30, tol=1e-12)
    assert torch.isfinite(solution.z).all()
    assert solution.residual.item() == solution.trace.min().item()


def test_unrolled_is_backpropagation_through_every_application():
    matrix, offset, f = contraction()
    fixed_point(f, torch.zeros(3, 5, dtype=torch.float64), max_iterations=60, gradient="unrolled").z.sum().backward()
    inverse = torch.linalg.inv(torch.eye(5, dtype=torch.float64) - matrix.detach())
    assert torch.allclose(offset.grad, inverse.sum(0).expand(3, -1))


def test_implicit_keeps_the_identity_term_alone():
    matrix, offset, f = contraction()
    fixed_point(f, torch.zeros(3, 5, dtype=torch.float64), max_iterations=60, gradient="implicit").z.sum().backward()
    assert torch.equal(offset.grad, torch.ones(3, 5, dtype=torch.float64))


@pytest.mark.parametrize(("gradient", "evaluations"), [("unrolled", 7), ("implicit", 8)])
def test_evaluations_are_counted_and_made(gradient, evaluations):
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        return 0.5 * z

    solution = fixed_point(f, torch.ones(2, 3), max_iterations=7, gradient=gradient)
    assert isinstance(solution, Solution)
    assert calls == solution.evaluations == evaluations


def test_what_implicit_saves_does_not_depend_on_the_number_of_iterations():
    matrix, offset, f = contraction()
    z0 = torch.zeros(3, 5, dtype=torch.float64)
    count = {n: saved_tensors(lambda n=n: fixed_point(f, z0, max_iterations=n)) for n in (1, 32)}
    assert count[1] == count[32] > 0
    few, many = (saved_tensors(lambda n=n: fixed_point(f, z0, max_iterations=n, gradient="unrolled")) for n in (1, 32))
    assert many >= 16 * few


def test_the_start_gets_its_gradient_only_when_unrolled():
    for gradient, reaches in (("unrolled", True), ("implicit", False)):
        _, _, f = contraction()
        z0 = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
        fixed_point(f, z0, max_iterations=3, gradient=gradient).z.sum().backward()
        assert (z0.grad is not None) is reaches


def test_a_tuple_of_tensors_is_a_state():
    def f(z):
        a, b = z
        return 0.5 * a + 0.1 * b.mean(dim=(1, 2), keepdim=False)[:, None], 0.3 * b + 1

    solution = fixed_point(f, (torch.ones(2, 3), torch.zeros(2, 4, 2)), max_iterations=80)
    assert torch.allclose(solution.z[1], torch.full((2, 4, 2), 1 / 0.7))
    assert solution.residual.shape == (2,) and (solution.residual < 1e-6).all()


@pytest.mark.parametrize("option", [{"gradient": "implict"}, {"solver": "picart"}])
def test_an_unknown_name_is_met_with_the_nearest_known(option):
    with pytest.raises(UserError, match="did you mean"):
        fixed_point(lambda z: z, torch.zeros(1, 1), **option)
