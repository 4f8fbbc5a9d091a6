"""How well two gradient modes agree, and how many fixed points f has."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from implicit_slate.errors import UserError
from implicit_slate.fixed_point.gradients import Gradient, parse_gradient
from implicit_slate.fixed_point.solvers import Adjoint, Solver
from implicit_slate.fixed_point.state import State, Step, relative_residual, without_autocast


class Agreement(NamedTuple):
    """The gradient of one mode compared with that of a reference mode."""

    cosine: Tensor
    """() cosine of the angle between the two gradients."""
    norm_ratio: Tensor
    """() the norm of the mode's gradient divided by that of the reference."""
    adjoint: Adjoint | None
    """The reference's backward solve, which must have converged for the comparison to mean anything."""


def gradient_cosine(
    loss: Callable[[State], Tensor],
    f: Step,
    z0: State,
    parameters: Iterable[Tensor],
    gradient: str | Gradient,
    solver: Solver = Solver(),
    reference: str | Gradient = "exact(gmres, 1000)",
) -> Agreement:
    """`gradient_cosines` for a single mode."""
    return gradient_cosines(loss, f, z0, parameters, [gradient], solver, reference)[0]


def gradient_cosines(
    loss: Callable[[State], Tensor],
    f: Step,
    z0: State,
    parameters: Iterable[Tensor],
    gradients: Sequence[str | Gradient],
    solver: Solver = Solver(),
    reference: str | Gradient = "exact(gmres, 1000)",
) -> list[Agreement]:
    """Compare each mode's gradient of loss(z) with respect to `parameters`, as one vector, with that of `reference`.

    All modes start from z0 and use the same forward solver. Parameters that a mode does not reach have gradient zero.
    """
    parameters = list(parameters)  # module.parameters() is an iterator, and every gradient needs it

    def vector(mode: str | Gradient) -> tuple[Tensor, Adjoint | None]:
        solution = parse_gradient(mode)(f, z0, solver)
        value = loss(solution.z)
        with without_autocast(value):
            found = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in found]), solution.adjoint

    other, adjoint = vector(reference)
    return [
        Agreement(torch.cosine_similarity(ours, other, dim=0), ours.norm() / other.norm(), adjoint)
        for ours, _ in map(vector, gradients)
    ]


class Basins(NamedTuple):
    """How many fixed points several starts converge to."""

    distinct: Tensor
    """(B,) number of distinct fixed points reached."""
    converged: Tensor
    """(B,) number of starts that converged."""


@torch.no_grad()
def count_basins(
    f: Step,
    starts: Sequence[State],
    solver: Solver = Solver("picard", max_iterations=500, tol=1e-4),
    apart: float = 1e-2,
    distance: Callable[[State, State], Tensor] = relative_residual,
) -> Basins:
    """Count for each image the distinct fixed points that the `starts` converge to.

    Args:
        solver: must have a tolerance, which decides whether a start has converged.
        apart: two points are distinct if their distance is larger than this. It should be far above the solver's
            tolerance: the error of a solution can be 1 / (1 - ρ) times the residual, which is large if ρ is near 1.
        distance: function of two states that returns (B,); a distance between sets if the order within a state has no
            meaning.

    Raises:
        UserError: the solver has no tolerance.
    """
    if solver.tol is None:
        raise UserError("count_basins: the solver must have a tolerance")
    solutions = [solver(f, start) for start in starts]
    converged = torch.stack([solution.residual <= solver.tol for solution in solutions])
    is_new = converged.clone()
    for i, solution in enumerate(solutions):
        for j in range(i):
            is_new[i] &= ~(is_new[j] & (distance(solution.z, solutions[j].z) <= apart))
    return Basins(is_new.sum(0), converged.sum(0))
