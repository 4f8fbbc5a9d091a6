"""Gradient modes compared with dense linear algebra."""

from typing import NamedTuple

import pytest
import torch

from implicit_slate.fixed_point import Solution, Solver, fixed_point, parse_gradient
from tests.fixed_point.maps import ALL_MODES, EXACT, UNTAPED, linear_map, relative_error, tanh_leaves, tanh_map

RADII = [0.5, 0.95, 1.6]


def gradient_of_offset(f, z0=None, **options):
    """u: the gradient of the offset b in f(z) = A z + b, for a fixed Gaussian ∂ℓ/∂z* = g."""
    f.offset.grad = None
    solution = fixed_point(f, f.z0 if z0 is None else z0, **options)
    (solution.z * cotangent(f)).sum().backward()
    return f.offset.grad, solution


def cotangent(f):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(f.offset.shape, generator=generator, dtype=torch.float64)


def series(f, k):
    """g (I + A + … + Aᵏ⁻¹)."""
    return torch.einsum("bi,bij->bj", cotangent(f), sum(torch.linalg.matrix_power(f.matrix, i) for i in range(k)))


def exact_adjoint(f):
    return torch.linalg.solve((f.identity - f.matrix).mT, cotangent(f)).detach()


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("gradient", EXACT)
def test_exact_solves_the_adjoint_equation_whether_the_map_contracts_or_not(gradient, radius):
    f = linear_map(radius)
    u, solution = gradient_of_offset(f, solver="broyden", max_iterations=40, tol=1e-10, gradient=gradient)
    assert relative_error(u, exact_adjoint(f)) < 1e-6
    assert relative_error(f.matrix.grad, exact_adjoint(f)[:, :, None] * f.solution()[:, None, :]) < 1e-6  # u zᵀ
    assert (solution.adjoint.residual <= 1e-9).all() and solution.adjoint.products <= 2 * 8 + 2


@pytest.mark.parametrize(("gradient", "k"), [("implicit", 1), ("neumann(1)", 1), ("neumann(2)", 2), ("neumann(5)", 5)])
@pytest.mark.parametrize("radius", RADII)
def test_implicit_is_the_first_term_of_the_series_and_neumann_the_first_k(gradient, k, radius):
    f = linear_map(radius)
    u, _ = gradient_of_offset(f, z0=f.solution(), gradient=gradient)
    assert relative_error(u, series(f, k)) < 1e-6


@pytest.mark.parametrize(("k", "tau"), [(1, 0.5), (4, 0.3), (3, 1.0)])
def test_phantom_is_the_series_of_the_damped_map(k, tau):
    f = linear_map(0.8)
    u, _ = gradient_of_offset(f, z0=f.solution(), gradient=f"phantom({k}, {tau})")
    damped = tau * f.matrix + (1 - tau) * f.identity
    total = tau * sum(torch.linalg.matrix_power(damped, i) for i in range(k))
    assert relative_error(u, torch.einsum("bi,bij->bj", cotangent(f), total)) < 1e-6


@pytest.mark.parametrize("k", [1, 3, 6])
def test_truncated_is_unrolled_through_the_last_k(k):
    f = linear_map(0.9)
    u, solution = gradient_of_offset(f, max_iterations=6, gradient=f"truncated({k})")
    assert relative_error(u, series(f, k)) < 1e-6
    assert solution.evaluations == len(solution.trace) == 6
    truncated = f.matrix.grad
    f = linear_map(0.9)
    whole = gradient_of_offset(f, max_iterations=6, gradient="unrolled")[1]
    assert torch.equal(solution.z, whole.z) and torch.equal(truncated, f.matrix.grad) is (k == 6)


def test_unrolled_tends_to_exact_on_a_contraction():
    weight, inputs = tanh_leaves(norm=0.8)
    z0 = torch.zeros_like(inputs.detach())

    def gradient(mode, n):
        z = fixed_point(tanh_map(weight, inputs), z0, max_iterations=n, gradient=mode).z
        return torch.autograd.grad(z.square().sum(), weight)[0]

    exact = gradient("exact(dense)", 300)
    errors = [relative_error(gradient("unrolled", n), exact) for n in (5, 10, 20, 40, 80)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6


def test_a_backward_solve_that_is_cut_short_says_so():
    f = linear_map(1.6)
    _, solution = gradient_of_offset(f, gradient="exact(broyden, 3)")
    assert solution.adjoint.products == 3 and (solution.adjoint.residual > 1e-3).all()
    larger = fixed_point(f, f.z0, gradient="exact(broyden, 3)")
    (1000 * larger.z * cotangent(f)).sum().backward()
    assert torch.allclose(larger.adjoint.residual, solution.adjoint.residual)  # which is relative


@pytest.mark.parametrize("gradient", EXACT)
def test_a_singular_adjoint_equation_leaves_gradients_finite_and_a_loss_that_is_not_passes_through(gradient):
    f = linear_map(0.5)
    with torch.no_grad():
        f.matrix[:] = f.identity  # u = u + g has no solution
    u, solution = gradient_of_offset(f, gradient=gradient, max_iterations=2)
    assert u.isfinite().all() and solution.adjoint.residual.isfinite().all()
    (fixed_point(f, f.z0, gradient=gradient).z.sum() * torch.nan).backward()
    assert f.offset.grad.isnan().all()


@pytest.mark.parametrize("gradient", EXACT)
def test_a_singular_adjoint_equation_never_seems_solved(gradient):
    """u = -uP + g with a cyclic permutation P. Anderson's u grows until its error is small beside it, not beside g."""
    cyclic, g = torch.roll(torch.eye(6), 1, 0), torch.eye(6)[:1]
    weight = torch.ones((), requires_grad=True)
    solution = fixed_point(lambda z: -weight * z @ cyclic + g, torch.zeros(1, 6), gradient=gradient)
    (solution.z @ g.T).sum().backward()
    assert solution.adjoint.residual > 0.1


@pytest.mark.parametrize("gradient", EXACT)
def test_an_image_whose_jacobian_is_not_finite_has_such_a_gradient_and_leaves_the_others_alone(gradient):
    weight = torch.full((2, 3), 0.5, requires_grad=True)
    is_flat = torch.tensor([[0.0], [1.0]])

    def f(z):  # the square root has infinite slope at 0
        return weight * z * is_flat + z.abs().sqrt() * (1 - is_flat) + weight * is_flat

    solution = fixed_point(f, torch.zeros(2, 3), gradient=gradient, max_iterations=50)
    solution.z.sum().backward()
    (expected,) = torch.autograd.grad((weight / (1 - weight))[1].sum(), weight)
    assert torch.allclose(weight.grad[1], expected[1]) and not weight.grad[0].isfinite().any()
    assert solution.adjoint.residual[0].isnan() and solution.adjoint.residual[1] < 1e-5


@pytest.mark.parametrize("gradient", EXACT)
def test_a_tuple_state_has_one_adjoint_equation(gradient):
    a, b = (torch.full((2, 1), value, dtype=torch.float64, requires_grad=True) for value in (1.0, 2.0))

    def f(z):
        x, y = z
        return 0.5 * y + a, -0.8 * x + b

    z = fixed_point(f, (torch.zeros_like(a), torch.zeros_like(b)), max_iterations=80, gradient=gradient).z
    z[0].sum().backward()  # x = (a + b / 2) / 1.4
    assert torch.allclose(a.grad, torch.full_like(a, 1 / 1.4)) and torch.allclose(b.grad, torch.full_like(b, 0.5 / 1.4))


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_a_state_may_be_one_number_an_image(solver):
    slope = torch.tensor([0.5, -0.2], requires_grad=True)
    z = fixed_point(lambda z: slope * z + 1, torch.zeros(2), solver, 50, 1e-6, gradient="exact(gmres)").z
    z.sum().backward()
    assert torch.allclose(z, 1 / (1 - slope)) and torch.allclose(slope.grad, 1 / (1 - slope) ** 2)


class Pair(NamedTuple):
    mean: torch.Tensor
    scale: torch.Tensor


@pytest.mark.parametrize("gradient", ALL_MODES)
def test_a_named_tuple_keeps_its_names(gradient):
    def f(z):
        return Pair(0.5 * z.scale, 0.5 * z.mean + 1)

    z = fixed_point(f, Pair(torch.zeros(2, 3), torch.ones(2, 3)), gradient=gradient).z
    assert z.mean.shape == z.scale.shape == (2, 3)


EVALUATIONS = {"unrolled": 7, "truncated(2)": 7, "neumann(3)": 10, "phantom(5, 0.5)": 12}


@pytest.mark.parametrize("gradient", ALL_MODES)
def test_evaluations_are_counted_and_made(gradient):
    calls = 0

    def f(z):
        nonlocal calls
        calls += 1
        return 0.5 * z

    solution = fixed_point(f, torch.ones(2, 3), max_iterations=7, gradient=gradient)
    assert isinstance(solution, Solution)
    assert calls == solution.evaluations == EVALUATIONS.get(gradient, 8)


@pytest.mark.parametrize("gradient", [*ALL_MODES, "truncated(3)"])
def test_a_mode_says_whether_the_start_gets_a_gradient(gradient):
    weight, inputs = tanh_leaves()
    z0 = torch.zeros_like(inputs.detach()).requires_grad_()
    fixed_point(tanh_map(weight, inputs), z0, max_iterations=3, gradient=gradient).z.sum().backward()
    assert (z0.grad is not None) is parse_gradient(gradient).reaches_start(Solver(max_iterations=3))


def test_bilevel_gives_the_start_the_gradient_of_the_recorded_application():
    weight, inputs = tanh_leaves()
    queries = torch.zeros_like(inputs.detach()).requires_grad_()
    f = tanh_map(weight, inputs)
    z = fixed_point(f, queries, max_iterations=4, gradient="bilevel").z
    z.sum().backward()
    with torch.no_grad():
        before = fixed_point(f, queries, max_iterations=4, gradient="unrolled").z
    before.requires_grad_()
    expected = torch.autograd.grad(f(before).sum(), before)[0]
    assert torch.allclose(queries.grad, expected) and torch.allclose(z, f(before))


@pytest.mark.parametrize("gradient", UNTAPED)
@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_every_mode_without_a_tape_goes_with_every_solver(gradient, solver):
    weight, inputs = tanh_leaves()
    z0 = torch.zeros_like(inputs.detach())
    solution = fixed_point(tanh_map(weight, inputs), z0, solver=solver, tol=1e-8, max_iterations=200, gradient=gradient)
    assert solution.converged.all()
    solution.z.sum().backward()
    assert weight.grad.isfinite().all() and weight.grad.abs().sum() > 0


def test_a_spelling_may_have_spaces_and_a_mode_is_its_own_spelling():
    mode = parse_gradient(" phantom( 5 ,0.5 ) ")
    assert (mode.k, mode.tau) == (5, 0.5) and parse_gradient(mode) is mode
    assert parse_gradient("exact") == parse_gradient("exact(gmres)") == parse_gradient("exact(gmres, 100)")


@pytest.mark.parametrize("gradient", [*ALL_MODES, "exact", "exact(gmres, 7)", "exact(dense, 100)", "phantom(1, 1)"])
def test_a_mode_is_written_as_it_is_read(gradient):
    mode = parse_gradient(gradient)
    assert parse_gradient(str(mode)) == mode
