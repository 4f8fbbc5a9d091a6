"""Gradient modes: how the gradient of a loss on z* = f(z*) reaches the weights inside f.

A gradient mode is a callable `mode(f, z0, solver) -> Solution`, so models need no case distinctions. Its spelling
(`unrolled`, `neumann(3)`, …) is the same in Python, YAML and on the command line. Below, J = ∂f/∂z at z*.
To add a mode, write a class here and give it an entry in `MODES`. For the equations see docs/method.md, "Gradients".
"""

import re
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch

from implicit_slate.allowed import restricted
from implicit_slate.errors import UserError, nearest
from implicit_slate.fixed_point.adjoint import METHODS, ReplaceCotangent
from implicit_slate.fixed_point.solvers import Adjoint, Solution, Solver
from implicit_slate.fixed_point.state import State, Step, detach, each, flatten, unflatten


@dataclass(frozen=True)
class Gradient:
    """Base of the gradient modes; each is a frozen dataclass of its settings."""

    compiles = True
    """Whether the mode makes the same steps at every call; `torch.compile` and CUDA graphs repeat those of one call."""

    def __call__(self, f: Step, z0: State, solver: Solver) -> Solution:
        raise NotImplementedError

    def reaches_start(self, solver: Solver) -> bool:
        """Whether z0 gets a gradient. If not, parameters of the initial state must be frozen."""
        return False

    def check(self, solver: Solver) -> None:
        """Raise `UserError` if the mode does not work with this forward solver."""

    def __str__(self) -> str:
        """The mode's spelling, such as `implicit` or `phantom(5, 0.5)`."""
        name = next((name for name, mode in MODES.items() if mode is type(self)), type(self).__name__)
        settings = [f for f in fields(self) if f.init]
        while settings and getattr(self, settings[-1].name) == settings[-1].default:
            settings.pop()  # only defaults at the end can be left out: arguments are positional
        return f"{name}({', '.join(str(getattr(self, f.name)) for f in settings)})" if settings else name


@dataclass(frozen=True)
class Unrolled(Gradient):
    """Backpropagation through every application of f: time and memory O(n)."""

    def __call__(self, f, z0, solver):
        return solver(f, z0)

    def reaches_start(self, solver):
        return True

    def check(self, solver):
        if solver.name != "picard":
            raise UserError(f"gradient 'unrolled' works only with solver 'picard', not with {solver.name!r}")


@dataclass(frozen=True)
class Truncated(Gradient):
    """Backpropagation through the last k of n applications."""

    k: int

    def __post_init__(self):
        _check_k(self)

    def __call__(self, f, z0, solver):
        if self.k == solver.max_iterations:
            return solver(f, z0)
        with torch.no_grad():
            first = replace(solver, max_iterations=solver.max_iterations - self.k)(f, z0)
        last = replace(solver, max_iterations=self.k)(f, detach(first.z))
        evaluations, trace = first.evaluations + last.evaluations, torch.cat([first.trace, last.trace])
        return last.changed(evaluations=evaluations, trace=trace, finite=first.finite)

    def reaches_start(self, solver):
        return self.k == solver.max_iterations

    def check(self, solver):
        if solver.name != "picard" or solver.tol is not None:
            raise UserError("gradient 'truncated' works only with solver 'picard' and a fixed number of iterations")
        if self.k > solver.max_iterations:
            raise UserError(f"gradient truncated({self.k}): there are only {solver.max_iterations} iterations")


@dataclass(frozen=True)
class Phantom(Gradient):
    """Solve without recording, then record k damped steps z <- τ f(z) + (1 - τ) z (Geng et al. 2021)."""

    k: int
    tau: float

    def __post_init__(self):
        _check_k(self)
        if not isinstance(self.tau, (int, float)) or not 0 < self.tau <= 1:
            raise UserError(f"gradient 'phantom': tau must be in (0, 1], got {self.tau}")

    def __call__(self, f, z0, solver):
        with torch.no_grad():
            solution = solver(f, z0)
        z = detach(solution.z)
        for _ in range(self.k):
            z = f(z) if self.tau == 1 else each(lambda old, new: torch.lerp(old, new, self.tau), z, f(z))
        return solution.changed(z=z, evaluations=solution.evaluations + self.k)


@dataclass(frozen=True)
class Neumann(Phantom):
    """Solve without recording, then record k applications: the terms i < k of the implicit gradient's series Σ Jⁱ."""

    tau: float = field(default=1.0, init=False)


@dataclass(frozen=True)
class Implicit(Neumann):
    """The paper's method: solve without recording, then record one application to the detached z*. Time, memory O(1).

    This keeps the term i = 0 of the series Σ Jⁱ; the paper calls it first-order Neumann (Chang, Griffiths, Levine
    2022). The n iterations are not recorded; the paper's figure 2 records and then detaches them.
    """

    k: int = field(default=1, init=False)


@dataclass(frozen=True)
class Exact(Gradient):
    """The implicit function theorem: solve without recording, then record one application. The backward pass solves
    u = uJ + ∂ℓ/∂z* to a relative residual of 1e-6 (float64: 1e-10) or for `max_iterations`; see `Solution.adjoint`."""

    compiles = False

    method: str = "gmres"
    max_iterations: int = 100

    def __post_init__(self):
        if self.method not in METHODS:
            raise UserError(f"gradient 'exact': unknown method {self.method!r}{nearest(self.method, METHODS)}")
        if not isinstance(self.max_iterations, int) or self.max_iterations < 1:
            raise UserError(f"gradient 'exact': expected at least 1 backward iteration, got {self.max_iterations}")

    def __call__(self, f, z0, solver):
        with torch.no_grad():
            solution = solver(f, z0)
        z_star, record = detach(solution.z), Adjoint()

        def flat(x: torch.Tensor) -> torch.Tensor:
            return flatten(f(unflatten(x, z_star)))

        x = flatten(z_star)
        z = unflatten(ReplaceCotangent.apply(flat(x), x, flat, self.method, self.max_iterations, record), z_star)
        return solution.changed(z=z, evaluations=solution.evaluations + 1, adjoint=record)


@dataclass(frozen=True)
class Bilevel(Gradient):
    """As `Implicit`, but records the application to z* - q + q, where q = z0 and only the last q has a gradient.

    So the learned queries q get the gradient of z* by a straight-through estimator (Jia et al. 2023).
    """

    def __call__(self, f, z0, solver):
        with torch.no_grad():
            solution = solver(f, z0)
        z = f(each(lambda z_star, q: z_star.detach() - q.detach() + q, solution.z, z0))
        return solution.changed(z=z, evaluations=solution.evaluations + 1)

    def reaches_start(self, solver):
        return True


MODES: dict[str, type[Gradient]] = {
    "unrolled": Unrolled,
    "truncated": Truncated,
    "implicit": Implicit,
    "neumann": Neumann,
    "phantom": Phantom,
    "exact": Exact,
    "bilevel": Bilevel,
}


def parse_gradient(gradient: str | Gradient) -> Gradient:
    """The mode spelled `implicit`, `phantom(5, 0.5)`, …; a mode is returned unchanged. Raises `UserError`."""
    if isinstance(gradient, Gradient):
        return gradient
    if not isinstance(gradient, str):
        raise UserError(f"gradient={gradient!r}: expected a gradient mode or its name")
    spelling = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", gradient)
    if not spelling or spelling[1] not in MODES:
        raise UserError(f"unknown gradient mode {gradient!r}{nearest(gradient, MODES)}")
    mode, inside = MODES[spelling[1]], spelling[2]
    arguments = [_number_or_word(argument.strip()) for argument in inside.split(",")] if inside else []
    try:
        return mode(*arguments)
    except TypeError:  # too few or too many
        names = ", ".join(setting.name for setting in fields(mode) if setting.init)
        raise UserError(f"gradient mode {gradient!r}: expected {spelling[1]}{f'({names})' if names else ''}") from None


if TYPE_CHECKING:
    GradientName = str
else:
    GradientName = restricted(
        "GradientName", None, "a gradient mode", lambda given: isinstance(parse_gradient(given), Gradient)
    )


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
        f: maps a state to a state of the same form, shapes and types. It must be the same function at every call (no
            fresh dropout), and images of a batch must not influence one another.
        z0: the initial state: a tensor, or a tuple of tensors, whose first dimension is the batch B.
        solver: the forward solver's name (`SOLVERS`).
        max_iterations: largest number of evaluations of f in the forward solve; without `tol`, the exact number.
        tol: stop when every image's relative residual has been at most this, at some step.
        gradient: a gradient mode or its spelling.

    Raises:
        UserError: an unknown solver or gradient mode, settings out of range, or a mode that does not work with the
            solver.
        ValueError: z0 is not a state, or f changes its form, a shape, a type or a device.
        NotFinite: f's first evaluation has NaN or infinity. This check waits for a GPU; modes and solvers that are
            called directly do not check, see `Solution.checked`.
    """
    solve, mode = Solver(solver, max_iterations, tol), parse_gradient(gradient)
    mode.check(solve)
    return mode(f, z0, solve).checked()


def _check_k(mode: Truncated | Phantom) -> None:
    if not isinstance(mode.k, int) or mode.k < 1:
        raise UserError(f"gradient '{type(mode).__name__.lower()}': k must be a positive whole number, got {mode.k}")


def _number_or_word(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
