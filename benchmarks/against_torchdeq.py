"""`python -m benchmarks.against_torchdeq`: the time of an evaluation of f and of a backward product beside torchdeq's.

Both libraries solve the same problem with the same number of evaluations, in turn in one process, so that whatever else
the machine does meets both alike. A map of one layer costs next to nothing, so there it is the solvers that are timed;
slot attention's step shows what is left of the difference in a model. Both keep the best iterate and its residuals, as
solvers with a tolerance do; the tolerance is 0, which neither reaches. In Anderson's method both mix as many iterates:
11 forward, all of them backward.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median, quantiles
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torchdeq import get_deq
from torchdeq.solver import get_solver, register_solver

from benchmarks.complexity.measure import Refinement, timed
from benchmarks.complexity.report import describe
from implicit_slate.fixed_point import Solver, fixed_point

EVALUATIONS = (7, 30)
"""The paper's number of iterations, and one at which the solvers' memories are full."""
THEIR_SOLVERS = {
    "picard": get_solver("fixed_point_iter"),
    "anderson": partial(get_solver("anderson"), m=11),  # iterates; ours keeps their 10 differences
    "broyden": get_solver("broyden"),
}
BACKWARD = ("phantom(5, 0.5)", "exact(anderson, 7)", "exact(anderson, 30)", "exact(broyden, 7)", "exact(broyden, 30)")
SAMPLE = 0.01
"""Seconds that one timing takes at least: what is quicker is repeated within it."""


class Problem(NamedTuple):
    """z = f(z) from z0, differentiated by `leaves`."""

    f: Callable[[Tensor], Tensor]
    z0: Tensor
    leaves: list[Tensor]


class Run(NamedTuple):
    """One thing that both do: `count` evaluations of f, or products of a backward solve, a call."""

    what: str
    count: int
    ours: Callable[[], object]
    theirs: Callable[[], object]


def layer(batch: int = 32, size: int = 256, device: str = "cpu") -> Problem:
    """f(z) = tanh(Wz + x) with W 0.95 times a rotation and x small: no solver converges within `EVALUATIONS`."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    weight = (0.95 * rotation).to(device).requires_grad_()
    inputs = (0.1 * torch.randn(batch, size, generator=generator)).to(device).requires_grad_()
    return Problem(lambda z: torch.tanh(torch.addmm(inputs, z, weight)), torch.zeros_like(inputs), [weight, inputs])


def slots(batch: int = 4, device: str = "cpu") -> Problem:
    """Slot attention's step at random initialisation, at the paper's size."""
    refinement = Refinement(num_slots=12, slot_size=192, num_inputs=256, batch_size=batch, device=device)
    leaves = [leaf for leaf in refinement.leaves if leaf.requires_grad]
    return Problem(refinement.step, refinement.slots_init.detach(), leaves)


def forward_run(problem: Problem, solver: str, evaluations: int) -> Run:
    """A forward solve without a tape."""
    solve = THEIR_SOLVERS[solver]
    iterations = evaluations - (solver == "broyden")  # theirs evaluates f once before it counts

    @torch.no_grad()
    def theirs() -> object:
        return solve(problem.f, problem.z0, max_iter=iterations, tol=0.0, stop_mode="rel")

    @torch.no_grad()
    def ours() -> object:
        return Solver(solver, evaluations, tol=0.0)(problem.f, problem.z0)

    return Run(f"forward, {solver}, {evaluations} steps", evaluations, ours, theirs)


def backward_run(problem: Problem, gradient: str) -> Run:
    """The backward pass after three Picard iterations, the graph kept for the next."""
    f, z0, leaves = problem
    mode, _, inside = gradient.rstrip(")").partition("(")
    first, second = (argument.strip() for argument in inside.split(","))
    if mode == "phantom":
        count, options = int(first), {"grad": int(first), "tau": float(second)}
    else:
        count = int(second)
        solver = f"{first} of {count}"
        register_solver(solver, partial(get_solver(first), m=count + 1))
        options = {"ift": True, "b_solver": solver, "b_max_iter": count - (first == "broyden"), "b_tol": 0.0}
    z_ours = fixed_point(f, z0, max_iterations=3, gradient=gradient).z
    states, _ = get_deq(core="indexing", f_max_iter=3, **options)(f, z0)
    cotangent = torch.linspace(-1, 2, z0.numel(), device=z0.device).view_as(z0)

    def backward(z: Tensor) -> object:
        return torch.autograd.grad(z, leaves, cotangent, retain_graph=True, allow_unused=True)

    return Run(f"backward, {gradient}", count, lambda: backward(z_ours), lambda: backward(states[-1]))


def runs(problem: Problem) -> list[Run]:
    forward = [forward_run(problem, solver, count) for solver in THEIR_SOLVERS for count in EVALUATIONS]
    return forward + [backward_run(problem, gradient) for gradient in BACKWARD]


def time_in_turn(run: Run, rounds: int, device: str) -> tuple[list[float], list[float]]:
    """Seconds an evaluation or product of ours and of theirs in each round; who goes first changes every round."""
    pair = (run.ours, run.theirs)
    for call in pair:  # warms up
        call()
    repeats = max(1, round(SAMPLE / min(timed(call, device)[0] for call in pair)))
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            taken, _ = timed(lambda which=which: [pair[which]() for _ in range(repeats)] and None, device)
            seconds[which].append(taken / repeats / run.count)
    return seconds


def row(run: Run, ours: list[float], theirs: list[float]) -> list[str]:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return [run.what, f"{1e6 * median(ours):.0f}", f"{1e6 * median(theirs):.0f}", f"{median(ratios):.2f}",
            f"{low:.2f} to {high:.2f}"]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="timings of each, in turn (%(default)s)")
    rounds = parser.parse_args(arguments).rounds
    if rounds < 1:
        parser.error(f"--rounds {rounds}: at least 1 is needed")
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console = Console()
    if not console.is_terminal:
        console.width = 100
    problems = {
        "one layer, tanh(Wz + x), D=256, batch 32": layer(device=device),
        "slot attention's step, K=12, S=192, N=256, batch 4": slots(device=device),
    }
    console.print(f"Microseconds an evaluation of f, or a product of the backward solve, on {describe(device)}")
    for title, problem in problems.items():
        table = Table("what", title=title, title_justify="left")
        for column in ("ours µs", "torchdeq µs", "ratio", "middle half"):
            table.add_column(column, justify="right")
        hidden = not console.is_terminal  # a pipe gets the tables alone
        for run in track(runs(problem), title, console=console, disable=hidden, transient=True):
            table.add_row(*row(run, *time_in_turn(run, rounds, device)))
        console.print(table)
    console.print("A ratio below 1: ours is quicker. Medians of the ratios of neighbouring timings.")


if __name__ == "__main__":
    main()
