"""Forward solvers for z = f(z). All have the same signature and return a `Solution`.

Each evaluates f once per step and proposes the next iterate from the evaluations so far. Without a tolerance, a solver
takes n steps and returns the n-th iterate. With a tolerance, it stops once every image's residual has been at most
that, and returns for each image the f(z) with the smallest residual, because on a map that does not contract the last
one may be the worst. So z0 itself is never returned.

A solver waits for a GPU only if it has a tolerance: then at every step, to decide whether to stop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from implicit_slate.allowed import NonNegativeFloat, PositiveInt, check, is_known, restricted
from implicit_slate.fixed_point.state import (
    NotFinite,
    State,
    Step,
    all_finite,
    check_start,
    check_step,
    flatten,
    relative_residual,
    select,
    unflatten,
    without_autocast,
)


@dataclass
class Adjoint:
    """The outcome of the backward solve of an `exact` gradient; empty until the backward pass has run."""

    residual: Tensor | None = None
    """(B,) ‖uJ + g - u‖ / ‖g‖ of the solution u; for `broyden` and `anderson`, of the iterate before it."""
    products: int = 0
    """Number of vector-Jacobian products."""


class Solution(NamedTuple):
    """Where a solver stopped."""

    z: Any
    """The state, in the form of z0."""
    residual: Tensor
    """(B,) ‖f(z) - z‖ / ‖f(z)‖ of the solver's last step; with a tolerance, of the step that returned `z`."""
    evaluations: int
    """Number of evaluations of f, including those recorded for the gradient."""
    trace: Tensor
    """(steps, B) the residual of every step."""
    converged: Tensor | None = None
    """(B,) whether the residual is within the tolerance; None without one. As the residual is relative to f(z), this is
    also true if z has grown very large, as in Anderson's method if there is no fixed point."""
    adjoint: Adjoint | None = None
    """The backward solve, for `exact` gradients."""
    finite: Tensor | None = None
    """() whether the first evaluation of f was finite. If not, the result is not finite either; see `checked`."""

    def changed(self, **fields: Any) -> "Solution":
        """A copy with new values of some fields, as `_replace`, which torch 2.11 cannot compile."""
        return Solution(*(fields.get(name, value) for name, value in zip(self._fields, self, strict=True)))

    def checked(self) -> "Solution":
        """This solution. Raises `NotFinite` if f's first evaluation was not finite; this check waits for a GPU, and is
        skipped under `torch.compile`."""
        if self.finite is not None and not torch.compiler.is_compiling() and not self.finite:
            raise NotFinite()
        return self


Propose = Callable[[State, State], State]
"""The next iterate from z and f(z)."""


def picard(f: Step, z0: State, *, max_iterations: int, tol: float | None = None) -> Solution:
    """Repeated application z <- f(z). Autograd records it, unless autograd is turned off."""
    return _iterate(f, z0, lambda z, fz: fz, max_iterations, tol)


@torch.no_grad()
def anderson(f: Step, z0: State, *, max_iterations: int, tol: float | None = None, memory: int = 10) -> Solution:
    """Anderson mixing of the last `memory` + 1 steps, for each image separately (Walker and Ni 2011, type II)."""
    return _iterate(f, z0, _flat(_AndersonMixing(memory)), max_iterations, tol)


@torch.no_grad()
def broyden(f: Step, z0: State, *, max_iterations: int, tol: float | None = None, memory: int = 50) -> Solution:
    """Broyden's good method on f(z) - z, for each image separately; it restarts after `memory` updates."""
    return _iterate(f, z0, _flat(_BroydenUpdate(memory)), max_iterations, tol)


SOLVERS: dict[str, Callable[..., Solution]] = {"picard": picard, "anderson": anderson, "broyden": broyden}


if TYPE_CHECKING:
    SolverName = str
else:
    SolverName = restricted("SolverName", str, "the name of a solver", lambda name: is_known("solver", name, SOLVERS))


@dataclass(frozen=True)
class Solver:
    """A forward solver with its settings: `solver(f, z0) -> Solution`."""

    name: SolverName = "picard"
    max_iterations: PositiveInt = 7
    """Largest number of evaluations of f; without `tol`, the exact number."""
    tol: NonNegativeFloat | None = None
    """Stop when every image's relative residual has been at most this, at some step."""

    def __post_init__(self):
        if not torch.compiler.is_compiling():  # torch.compile cannot trace the reading of annotations
            check(type(self), vars(self))

    def __call__(self, f: Step, z0: State) -> Solution:
        return SOLVERS[self.name](f, z0, max_iterations=self.max_iterations, tol=self.tol)


def _iterate(f: Step, z0: State, propose: Propose, max_iterations: int, tol: float | None) -> Solution:
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    check_start(z0)
    z, trace = z0, []
    for step in range(max_iterations):
        fz = f(z)
        if step == 0:
            check_step(z, fz)
            finite = all_finite(fz)
        residual = relative_residual(fz, z)
        trace.append(residual)
        if tol is not None:
            if step == 0:
                best, lowest = fz, residual
            better = residual < lowest  # false for NaN
            best, lowest = select(better, fz, best), torch.where(better, residual, lowest)
            if (lowest <= tol).all():
                break
        if tol is None or step + 1 < max_iterations:
            z = propose(z, fz)
    if tol is None:
        return Solution(z, residual, len(trace), torch.stack(trace), finite=finite)
    return Solution(best, lowest, len(trace), torch.stack(trace), lowest <= tol, finite=finite)


def _flat(propose: Callable[[Tensor, Tensor], Tensor]) -> Propose:
    """Turn `propose`, which works on rows (B, D), into a function of states. If an image's proposal is not finite, its
    next iterate is f(z); if that is not finite either, it keeps its z."""

    def propose_state(z: State, fz: State) -> State:
        x, fx = flatten(z), flatten(fz)
        fx = torch.where(_finite_rows(fx), fx, x)
        with without_autocast(x):
            proposal = propose(x, fx)
        return unflatten(torch.where(_finite_rows(proposal), proposal, fx), z)

    return propose_state


def _finite_rows(x: Tensor) -> Tensor:
    """(B, 1) whether a row's sum is finite, so also false if the sum overflows. Makes one pass over x; `isfinite` makes
    four."""
    return x.sum(1, keepdim=True).isfinite()


class _AndersonMixing:
    """z⁺ = f(z) - ΔFᵀγ, where γ minimises ‖g - ΔGᵀγ‖, with g = f(z) - z and ΔG, ΔF the last differences of g and f."""

    def __init__(self, memory: int):
        self.memory, self.count = memory, 0

    def __call__(self, x: Tensor, fx: Tensor) -> Tensor:
        gx = fx - x
        if self.count == 0:
            shape = (len(x), self.memory, x.shape[1])
            self.differences_g, self.differences_f = x.new_empty(shape), x.new_empty(shape)
            self.gram = x.new_empty((len(x), self.memory, self.memory), dtype=torch.float64)
            self.fx, self.gx, self.count = fx, gx, 1
            return fx
        slot, used = (self.count - 1) % self.memory, min(self.count, self.memory)
        difference = gx - self.gx
        # Scaled to unit length: differences shrink by orders of magnitude, and the ridge below must suit all of them.
        scale = 1 / difference.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        self.differences_g[:, slot] = difference * scale
        self.differences_f[:, slot] = (fx - self.fx) * scale
        self.fx, self.gx, self.count = fx, gx, self.count + 1

        g, f = self.differences_g[:, :used], self.differences_f[:, :used]
        # Vectors are rows, because on a CPU batched products with columns take eight times as long.
        products = (torch.stack((g[:, slot], gx), dim=1) @ g.mT).double()
        self.gram[:, slot, :used] = self.gram[:, :used, slot] = products[:, 0]
        self.gram[:, slot, slot] += torch.finfo(x.dtype).eps  # a ridge
        gamma = torch.linalg.solve_ex(self.gram[:, :used, :used], products[:, 1])[0].to(x)
        return fx - (gamma[:, None] @ f).squeeze(1)


class _BroydenUpdate:
    """z⁺ = z - Hg, then H⁺ = H + (Δz - HΔg) ΔzᵀH / (ΔzᵀHΔg), with g = f(z) - z and H = -I + UVᵀ ≈ (∂g/∂z)⁻¹."""

    x: Tensor
    h_gx: Tensor

    def __init__(self, memory: int):
        self.memory, self.count = memory, 0

    def __call__(self, x: Tensor, fx: Tensor) -> Tensor:
        gx = fx - x
        used = self.count % (self.memory + 1)
        if used == 0:
            shape = (len(x), self.memory, x.shape[1])
            self.u, self.v = x.new_empty(shape), x.new_empty(shape)
            h_gx = -gx
        else:
            u, v = self.u[:, : used - 1], self.v[:, : used - 1]
            dx = x - self.x
            h_gx = _rank_one_sum(u, v, gx) - gx
            h_dg = h_gx - self.h_gx
            dx_h = _rank_one_sum(v, u, dx) - dx
            denominator = (dx * h_dg).sum(1, keepdim=True)
            # With a vanishing denominator the update would consist of rounding errors, so H is not updated.
            rounding = torch.finfo(x.dtype).eps * dx.norm(dim=1, keepdim=True) * h_dg.norm(dim=1, keepdim=True)
            new_u = torch.where(denominator.abs() > rounding, (dx - h_dg) / denominator, 0.0)
            self.u[:, used - 1], self.v[:, used - 1] = new_u, dx_h
            h_gx = h_gx + new_u * (dx_h * gx).sum(1, keepdim=True)
        self.x, self.h_gx, self.count = x, h_gx, self.count + 1
        return x - h_gx


def _rank_one_sum(u: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """(Σᵢ uᵢ vᵢᵀ) x for u, v (B, k, D) and x (B, D)."""
    # Vectors are rows, because on a CPU batched products with columns take eight times as long.
    return (x[:, None] @ v.mT @ u).squeeze(1)
