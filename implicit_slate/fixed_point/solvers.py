"""Forward solvers for z = f(z). All have one signature and return one `Solution`."""

from typing import NamedTuple

import torch
from torch import Tensor

from implicit_slate.fixed_point.state import State, Step, each, relative_residual


class Solution(NamedTuple):
    """Where a solver stopped."""

    z: State
    """The state, in the form of z0."""
    residual: Tensor
    """(B,) ‖f(z) - z‖ / ‖f(z)‖ of the solver's last step (with a tolerance: of the returned iterate)."""
    evaluations: int
    """Evaluations of f, those recorded for the gradient included."""
    trace: Tensor
    """(steps, B) the residual of every step."""


def picard(f: Step, z0: State, *, max_iterations: int, tol: float | None = None) -> Solution:
    """Repeated application z <- f(z).

    Without `tol` it applies f exactly `max_iterations` times and returns the last iterate. With `tol` it stops as soon
    as every image's residual is at most `tol`, and returns for each image the best iterate seen: on a map that does not
    contract, the last one may be the worst.
    """
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    z, best, lowest, trace = z0, z0, None, []
    for _ in range(max_iterations):
        z_next = f(z)
        trace.append(relative_residual(z_next, z))
        z = z_next
        if tol is None:
            best, lowest = z, trace[-1]
            continue
        better = trace[-1] < lowest if lowest is not None else torch.ones_like(trace[-1], dtype=torch.bool)
        best = _select(better, z, best)
        lowest = torch.where(better, trace[-1], lowest) if lowest is not None else trace[-1]
        if (lowest <= tol).all():
            break
    return Solution(best, lowest, len(trace), torch.stack(trace))


def _select(images: Tensor, state: State, other: State) -> State:
    """`state` where `images` (B,) is true, `other` elsewhere."""
    return each(lambda new, old: torch.where(images.view(-1, *[1] * (new.ndim - 1)), new, old), state, other)


SOLVERS = {"picard": picard}
