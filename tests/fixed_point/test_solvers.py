"""Forward solvers on linear systems, and on maps without a fixed point."""

import pytest
import torch

from implicit_slate.fixed_point import anderson, broyden, picard
from tests.fixed_point.maps import linear_map, relative_error, tanh_leaves, tanh_map

SOLVERS = {"picard": picard, "anderson": anderson, "broyden": broyden}
every_solver = pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
quasi_newton = pytest.mark.parametrize("solve", [anderson, broyden])


def counting(f):
    def counted(z):
        counted.calls += 1
        return f(z)

    counted.calls = 0
    return counted


def test_picard_returns_the_last_application():
    f = linear_map(0.5)
    solution = picard(f, f.z0, max_iterations=4)
    previous = f(f(f(f.z0)))
    assert torch.equal(solution.z, f(previous)) and solution.converged is None
    assert torch.allclose(solution.residual, (solution.z - previous).norm(dim=1) / solution.z.norm(dim=1))


@every_solver
def test_a_fixed_count_is_kept_the_first_step_applies_f_and_only_picard_is_recorded(solve):
    f = linear_map(0.5)
    step = counting(f)
    solution = solve(step, f.z0, max_iterations=6)
    assert step.calls == solution.evaluations == len(solution.trace) == 6
    assert torch.equal(solution.residual, solution.trace[-1]) and solution.trace.shape == (6, 4)
    assert torch.allclose(solve(f, f.z0, max_iterations=1).z, f(f.z0))
    assert solution.z.requires_grad is (solve is picard)


@every_solver
def test_a_tolerance_is_met_on_a_contraction(solve):
    f = linear_map(0.5)
    step = counting(f)
    solution = solve(step, f.z0, max_iterations=200, tol=1e-9)
    assert step.calls == solution.evaluations < 60
    assert solution.converged.all() and (solution.residual <= 1e-9).all()
    assert relative_error(solution.z, f.solution()) < 1e-8


@every_solver
def test_a_tolerance_of_zero_is_met_by_a_map_that_repeats_itself(solve):
    solution = solve(torch.ones_like, torch.zeros(2, 3), max_iterations=9, tol=0.0)
    assert solution.converged.all() and solution.evaluations == 2


@pytest.mark.parametrize("radius", [0.9, 1.6, 3.0])
@quasi_newton
def test_quasi_newton_solves_where_iterating_hardly_converges_or_diverges(solve, radius):
    f = linear_map(radius)
    solution = solve(f, f.z0, max_iterations=40, tol=1e-9)
    assert solution.converged.all() and solution.evaluations <= 20
    assert relative_error(solution.z, f.solution()) < 1e-7
    assert not picard(f, f.z0, max_iterations=20, tol=1e-9).converged.any()


@quasi_newton
def test_a_short_memory_changes_what_follows_when_it_is_full_and_takes_longer(solve):
    f = linear_map(0.9)
    full, forgets = ([solve(f, f.z0, max_iterations=n, memory=m).z for m in (4, 10)] for n in (5, 6))
    assert torch.allclose(*full) and not torch.allclose(*forgets, rtol=1e-3)
    assert solve(f, f.z0, max_iterations=400, tol=1e-7, memory=4).converged.all()


@quasi_newton
def test_quasi_newton_takes_fewer_evaluations_on_a_nonlinear_map(solve):
    f = tanh_map(*tanh_leaves(norm=0.98))
    z0 = torch.zeros(3, 5, dtype=torch.float64)
    plain = picard(f, z0, max_iterations=1000, tol=1e-9)
    quick = solve(f, z0, max_iterations=1000, tol=1e-9)
    assert quick.converged.all() and quick.evaluations * 2 < plain.evaluations
    assert torch.allclose(quick.z, plain.z, atol=1e-7)


@every_solver
def test_images_are_solved_each_by_itself_and_keep_their_answer_while_others_go_on(solve):
    f = linear_map(0.7)
    together = solve(f, f.z0, max_iterations=5).z
    for i in range(len(f.offset)):
        alone = type(f)(f.matrix[i : i + 1], f.offset[i : i + 1])
        assert torch.allclose(solve(alone, alone.z0, max_iterations=5).z[0], together[i], rtol=1e-7)
    with torch.no_grad():
        f.matrix[0] = 0
    solution = solve(f, f.z0, max_iterations=500, tol=1e-8)
    assert solution.converged.all() and torch.allclose(solution.z[0], f.offset[0])


@every_solver
def test_of_an_expanding_map_the_best_step_is_returned_and_said_not_to_converge(solve):
    def f(z):  # has no fixed point
        return z * 1.5 + torch.sign(z) + 1

    start = torch.full((1, 1), 1e-3)
    solution = solve(f, start, max_iterations=30, tol=1e-12)
    assert solution.z.isfinite().all()
    assert solution.residual.item() == solution.trace.nan_to_num(torch.inf).min().item() > 0
    assert not solution.converged.any() and not torch.equal(solution.z, start)


@every_solver
@pytest.mark.parametrize(
    "f",
    [lambda z: z + 1, torch.ones_like, torch.clone, lambda z: z * torch.tensor([1.0, 0.0, 2.0]) + 1],
    ids=["translation", "constant", "identity", "singular"],
)
def test_singular_maps_leave_everything_finite(solve, f):
    for options in ({}, {"tol": 1e-6}):
        solution = solve(f, torch.ones(2, 3), max_iterations=40, **options)
        assert solution.z.isfinite().all() and solution.residual.isfinite().all()


@quasi_newton
def test_an_overflow_leaves_a_finite_iterate_and_is_not_taken_for_convergence(solve):
    assert solve(lambda z: z**3 * 1e20 + 1, torch.full((2, 3), 2.0), max_iterations=30).z.isfinite().all()
    solution = picard(lambda z: 1e10 * z + 1, torch.ones(1, 2), max_iterations=6, tol=1e-3)
    assert not solution.converged.any() and solution.z.isfinite().all()


@every_solver
def test_a_tuple_of_tensors_is_a_state(solve):
    def f(z):
        a, b = z
        return 0.5 * a + 0.1 * b.mean(dim=(1, 2))[:, None], 0.3 * b + 1

    solution = solve(f, (torch.ones(2, 3), torch.zeros(2, 4, 2)), max_iterations=80, tol=1e-6)
    assert torch.allclose(solution.z[1], torch.full((2, 4, 2), 1 / 0.7), rtol=1e-5)
    assert solution.z[0].shape == (2, 3) and solution.residual.shape == (2,)


@quasi_newton
def test_autocast_does_not_change_the_iterates_of_a_step_in_float32(solve):
    """In float16, Broyden's updates would overflow near the solution."""
    linear = linear_map(1.2)
    matrix, offset = linear.matrix.detach().float(), linear.offset.detach().float()

    def f(z):
        return (matrix * z[:, None]).sum(2) + offset  # no product that autocast would round

    expected = solve(f, torch.zeros(4, 8), max_iterations=60, tol=1e-5)
    assert expected.converged.all()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found = solve(f, torch.zeros(4, 8), max_iterations=60, tol=1e-5)
        assert torch.equal(found.trace, expected.trace) and torch.equal(found.z, expected.z)


@every_solver
def test_a_fixed_count_compiles_to_one_graph(solve):
    """As training does by default on a GPU."""
    torch._dynamo.reset()
    weight, inputs = (leaf.detach() for leaf in tanh_leaves())

    def solved(inputs):
        return solve(tanh_map(weight, inputs), torch.zeros_like(inputs), max_iterations=5).z

    assert torch.allclose(torch.compile(solved, backend="aot_eager", fullgraph=True)(inputs), solved(inputs))
