"""How a loss reaches the weights through z* = f(z*).

A gradient mode is a value with one call, `mode(f, z0, solve) -> Solution`, so that models never branch on it. Its
spelling (`unrolled`, `implicit`, …) is the same in Python, YAML and on the command line.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import torch

from implicit_slate.errors import UserError, nearest
from implicit_slate.fixed_point.solvers import SOLVERS, Solution
from implicit_slate.fixed_point.state import State, Step, detach

Solve = Callable[[Step, State], Solution]


class Gradient(Protocol):
    """What every gradient mode is."""

    reaches_start: ClassVar[bool]
    """Whether z0 gets a gradient. Where it does not, parameters of the initial state must be frozen."""

    def __call__(self, f: Step, z0: State, solve: Solve) -> Solution: ...


@dataclass(frozen=True)
class Unrolled:
    """Backpropagation through every application of f: time and memory O(n)."""

    reaches_start = True

    def __call__(self, f: Step, z0: State, solve: Solve) -> Solution:
        return solve(f, z0)


@dataclass(frozen=True)
class Implicit:
    """The paper's method: solve without a tape, then record one application to the detached z*. Time and memory O(1).

    Of the implicit gradient's series Σ Jⁱ this keeps the term i = 0 (the paper speaks of first-order Neumann).
    Chang, Griffiths, Levine 2022, figure 2, but for its tape: there the n iterations are recorded, then detached.
    """

    reaches_start = False

    def __call__(self, f: Step, z0: State, solve: Solve) -> Solution:
        with torch.no_grad():
            solution = solve(f, z0)
        return solution._replace(z=f(detach(solution.z)), evaluations=solution.evaluations + 1)


MODES: dict[str, type[Gradient]] = {"unrolled": Unrolled, "implicit": Implicit}


def parse_gradient(gradient: str | Gradient) -> Gradient:
    """The mode that a spelling such as `implicit` names; a mode itself is passed through. Raises `UserError`."""
    if not isinstance(gradient, str):
        return gradient
    spelling = re.fullmatch(r"\s*(\w+)\s*", gradient)
    if not spelling or spelling[1] not in MODES:
        raise UserError(f"unknown gradient mode {gradient!r}{nearest(gradient, MODES)}")
    return MODES[spelling[1]]()


def fixed_point(
    f: Step,
    z0: State,
    solver: str = "picard",
    max_iterations: int = 7,
    tol: float | None = None,
    gradient: str | Gradient = "implicit",
) -> Solution:
    """Solve z = f(z) from z0, differentiably.

    Args:
        f: maps a tensor, or a tuple of tensors, whose first dimension is the batch B, to the same.
        z0: the initial state.
        solver: the forward solver's name (`SOLVERS`).
        max_iterations: at most so many applications; without `tol`, exactly so many.
        tol: stop when every image's relative residual is at most this.
        gradient: a gradient mode or its spelling.

    Raises:
        UserError: an unknown solver or gradient mode.
    """
    if solver not in SOLVERS:
        raise UserError(f"unknown solver {solver!r}{nearest(solver, SOLVERS)}")
    solve = partial(SOLVERS[solver], max_iterations=max_iterations, tol=tol)
    return parse_gradient(gradient)(f, z0, solve)
