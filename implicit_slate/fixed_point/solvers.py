"""Forward solvers for z = f(z). All have one signature and return one `Solution`.

Each evaluates f once in every step and proposes the next iterate from the evaluations so far. Without a tolerance a
solver takes n steps and returns the n-th iterate. With one it stops as soon as every image's residual has been at most
that, and returns for each image the f(z) with the smallest residual: on a map that does not contract, the last may be
the worst. So z0 itself is never returned.

Without a tolerance no solver waits for a GPU. With one it does, at every step, to know whether to stop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from implicit_slate import host
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
)


@dataclass
class Adjoint:
    """The outcome of the backward solve of an `exact` gradient; empty until the backward pass has run."""

    residual: Tensor | None = None
    """(B,) ‖uJ + g - u‖ / ‖uJ + g‖ of the solution u."""
    products: int = 0
    """Vector-Jacobian products."""


class Solution(NamedTuple):
    """Where a solver stopped."""

    z: Any
    """The state, in the form of z0."""
    residual: Tensor
    """(B,) ‖f(z) - z‖ / ‖f(z)‖ of the solver's last step; with a tolerance, of the step that ended in z."""
    evaluations: int
    """Evaluations of f, those recorded for the gradient included."""
    trace: Tensor
    """(steps, B) the residual of every step."""
    converged: Tensor | None = None
    """(B,) whether the residual is within the tolerance; None without one."""
    adjoint: Adjoint | None = None
    """Of the backward solve, for `exact` gradients."""
    finite: Tensor | None = None
    """() whether the first evaluation of f was finite. On a CPU a solver raises `NotFinite` where it was not; on a GPU,
    and under `torch.compile`, it goes on, and the result is not finite either; see `checked`."""

    def changed(self, **fields: Any) -> "Solution":
        """With other values of some fields: `_replace`, with which torch 2.11 cannot compile."""
        return Solution(*(fields.get(name, value) for name, value in zip(self._fields, self, strict=True)))

    def checked(self) -> "Solution":
        """This solution. Raises `NotFinite` if f's first evaluation was not finite; to know that, it waits for a GPU.
        Under `torch.compile` nothing can be raised."""
        if self.finite is not None and not torch.compiler.is_compiling() and not self.finite:
            raise NotFinite()
        return self


Propose = Callable[[State, State], State]
"""The next iterate from z and f(z)."""


def picard(f: Step, z0: State, *, max_iterations: int, tol: float | None = None) -> Solution:
    """Repeated application z <- f(z). Autograd records it, unless it is turned off."""
    return _iterate(f, z0, lambda z, fz: fz, max_iterations, tol)


@torch.no_grad()
def anderson(f: Step, z0: State, *, max_iterations: int, tol: float | None = None, memory: int = 10) -> Solution:
    """Anderson mixing of the last `memory` + 1 steps, for each image by itself (Walker and Ni 2011, type II)."""
    return _iterate(f, z0, _flat(_AndersonMixing(memory)), max_iterations, tol)


@torch.no_grad()
def broyden(f: Step, z0: State, *, max_iterations: int, tol: float | None = None, memory: int = 50) -> Solution:
    """Broyden's good method on f(z) - z, for each image by itself; it starts again after `memory` updates."""
    return _iterate(f, z0, _flat(_BroydenUpdate(memory)), max_iterations, tol)


SOLVERS: dict[str, Callable[..., Solution]] = {"picard": picard, "anderson": anderson, "broyden": broyden}


if TYPE_CHECKING:
    SolverName = str
else:
    SolverName = restricted("SolverName", str, "the name of a solver", lambda name: is_known("solver", name, SOLVERS))


@dataclass(frozen=True)
class Solver:
    """A forward solver and its settings, as a value: `solver(f, z0) -> Solution`."""

    name: SolverName = "picard"
    max_iterations: PositiveInt = 7
    """The largest number of evaluations of f; without `tol`, their number."""
    tol: NonNegativeFloat | None = None
    """Stop when every image's relative residual has been at most this."""

    def __post_init__(self):
        if not torch.compiler.is_compiling():  # which cannot trace the reading of annotations
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
            if host.is_free_to_read(finite) and not finite:
                raise NotFinite()
        residual = relative_residual(fz, z)
        trace.append(residual)
        if tol is not None:
            if step == 0:
                best, lowest = fz, residual
            better = residual < lowest  # false where it is NaN
            best, lowest = select(better, fz, best), torch.where(better, residual, lowest)
            if (lowest <= tol).all():
                break
        if tol is None or step + 1 < max_iterations:
            z = propose(z, fz)
    if tol is None:
        return Solution(z, residual, len(trace), torch.stack(trace), finite=finite)
    return Solution(best, lowest, len(trace), torch.stack(trace), lowest <= tol, finite=finite)


def _flat(propose: Callable[[Tensor, Tensor], Tensor]) -> Propose:
    """`propose`, which works on rows (B, D), as a function of states. If its proposal for an image is not finite, the
    next iterate is f(z); if that is not finite either, the image keeps its z."""

    def propose_state(z: State, fz: State) -> State:
        x, fx = flatten(z), flatten(fz)
        fx = torch.where(_finite_rows(fx), fx, x)
        proposal = propose(x, fx)
        return unflatten(torch.where(_finite_rows(proposal), proposal, fx), z)

    return propose_state


def _finite_rows(x: Tensor) -> Tensor:
    """(B, 1); also false where the sum overflows. One pass over x, where `isfinite` takes four."""
    return x.sum(1, keepdim=True).isfinite()


class _AndersonMixing:
    """With g = f(z) - z and the last differences ΔG, ΔF of g and f: z⁺ = f - ΔFᵀγ, where γ minimises ‖g - ΔGᵀγ‖."""

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
        # Scaled to unit length: differences shrink by orders of magnitude, and the ridge below must fit all of them.
        scale = 1 / difference.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        torch.mul(difference, scale, out=self.differences_g[:, slot])
        torch.mul(fx - self.fx, scale, out=self.differences_f[:, slot])
        self.fx, self.gx, self.count = fx, gx, self.count + 1

        g, f = self.differences_g[:, :used], self.differences_f[:, :used]
        # Vectors are rows: on a CPU a batch of matrix times column takes eight times as long.
        products = (torch.stack((g[:, slot], gx), dim=1) @ g.mT).double()
        self.gram[:, slot, :used] = self.gram[:, :used, slot] = products[:, 0]
        self.gram[:, slot, slot] += torch.finfo(x.dtype).eps  # a ridge
        gamma = torch.linalg.solve_ex(self.gram[:, :used, :used], products[:, 1])[0].to(x)
        return fx - (gamma[:, None] @ f).squeeze(1)


class _BroydenUpdate:
    """With g = f(z) - z and H ≈ (∂g/∂z)⁻¹ = -I + UVᵀ: z⁺ = z - Hg, and then H⁺ = H + (Δz - HΔg) ΔzᵀH / (ΔzᵀHΔg)."""

    x: Tensor
    h_gx: Tensor

    def __init__(self, memory: int):
        self.memory, self.count = memory, 0

    def __call__(self, x: Tensor, fx: Tensor) -> Tensor:
        gx = fx - x
        if self.count % (self.memory + 1) == 0:
            shape = (len(x), self.memory, x.shape[1])
            self.u, self.v = x.new_empty(shape), x.new_empty(shape)
            used, h_gx = 0, -gx
        else:
            used = self.count % (self.memory + 1)
            u, v = self.u[:, : used - 1], self.v[:, : used - 1]
            dx = x - self.x
            h_gx = _rank_one_sum(u, v, gx) - gx
            h_dg = h_gx - self.h_gx
            dx_h = _rank_one_sum(v, u, dx) - dx
            denominator = (dx * h_dg).sum(1, keepdim=True)
            # An update with a vanishing denominator would be made of rounding errors: H stays as it is.
            rounding = torch.finfo(x.dtype).eps * dx.norm(dim=1, keepdim=True) * h_dg.norm(dim=1, keepdim=True)
            new_u = torch.where(denominator.abs() > rounding, (dx - h_dg) / denominator, 0.0)
            self.u[:, used - 1], self.v[:, used - 1] = new_u, dx_h
            h_gx = h_gx + new_u * (dx_h * gx).sum(1, keepdim=True)
        self.x, self.h_gx, self.count = x, h_gx, self.count + 1
        return x - h_gx


def _rank_one_sum(u: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """(Σᵢ uᵢ vᵢᵀ) x for u, v (B, k, D) and x (B, D)."""
    # Vectors are rows: on a CPU a batch of matrix times column takes eight times as long.
    return (x[:, None] @ v.mT @ u).squeeze(1)
