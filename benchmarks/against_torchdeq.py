"""`python -m benchmarks.against_torchdeq`: times of an evaluation of f and of a backward product, ours and torchdeq's.

Both libraries solve the same problem with the same number of evaluations, alternating in one process. A map of one
layer costs next to nothing, so its time is that of the solver; slot attention's step shows how much of the difference
remains in a model. Both keep the best iterate and its residuals, as solvers with a tolerance do; the tolerance is 0,
which neither reaches. In Anderson's method both mix the same number of iterates: 11 forward, all of them backward.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median, quantiles
from typing import NamedTuple

import torch
from torch import Tensor
from torchdeq import get_deq
from torchdeq.solver import get_solver, register_solver

from benchmarks.common import DEVICE, describe, in_turn, make_console, make_table, shown, timed
from benchmarks.refinement import Refinement
from implicit_slate.errors import positive
from implicit_slate.fixed_point import Solver, fixed_point

EVALUATIONS = (7, 30)
"""The paper's number of iterations, and one at which the solvers' histories are full."""
THEIR_SOLVERS = {
    "picard": get_solver("fixed_point_iter"),
    "anderson": partial(get_solver("anderson"), m=11),  # iterates; ours keeps their 10 differences
    "broyden": get_solver("broyden"),
}
BACKWARD = ("phantom(5, 0.5)", "exact(anderson, 7)", "exact(anderson, 30)", "exact(broyden, 7)", "exact(broyden, 30)")
SHORTEST = 0.01
"""Minimum seconds of one timing; faster calls are repeated within it."""


class Problem(NamedTuple):
    """z = f(z) from z0, differentiated with respect to `leaves`."""

    f: Callable[[Tensor], Tensor]
    z0: Tensor
    leaves: list[Tensor]


class Run(NamedTuple):
    """One task for both libraries: a call makes `count` evaluations of f, or products of a backward solve."""

    what: str
    count: int
    ours: Callable[[], object]
    theirs: Callable[[], object]


def layer(batch: int = 32, size: int = 256, device: str = "cpu") -> Problem:
    """f(z) = tanh(Wz + x), W a rotation times 0.95, and x small, so that no solver converges within `EVALUATIONS`."""
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
    """A forward solve without a graph."""
    iterations = evaluations - (solver == "broyden")  # torchdeq's first evaluation of f is not counted
    theirs = partial(THEIR_SOLVERS[solver], problem.f, problem.z0, max_iter=iterations, tol=0.0, stop_mode="rel")
    ours = partial(Solver(solver, evaluations, tol=0.0), problem.f, problem.z0)
    return Run(f"forward, {solver}, {evaluations} steps", evaluations, torch.no_grad()(ours), torch.no_grad()(theirs))


def backward_run(problem: Problem, gradient: str) -> Run:
    """The backward pass after three Picard iterations; the graph is kept for the next call."""
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

    return Run(f"backward, {gradient}", count, partial(backward, z_ours), partial(backward, states[-1]))


def runs(problem: Problem) -> list[Run]:
    forward = [forward_run(problem, solver, count) for solver in THEIR_SOLVERS for count in EVALUATIONS]
    return forward + [backward_run(problem, gradient) for gradient in BACKWARD]


def measure(run: Run, rounds: int) -> list[str]:
    """A row of the table: microseconds per evaluation or product, ours and torchdeq's, and the ratio over rounds."""
    calls = {"ours": run.ours, "theirs": run.theirs}
    for call in calls.values():  # warm-up
        call()
    repeats = max(1, round(SHORTEST / min(timed(call)[0] for call in calls.values())))

    def microseconds(call: Callable[[], object]) -> float:
        return 1e6 * timed(lambda: [call() for _ in range(repeats)] and None)[0] / repeats / run.count

    values = in_turn({name: partial(microseconds, call) for name, call in calls.items()}, rounds)
    ratios = [ours / theirs for ours, theirs in zip(*values.values(), strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    ours, theirs = (f"{median(values[name]):.0f}" for name in calls)
    return [run.what, ours, theirs, f"{median(ratios):.2f}", f"{low:.2f} to {high:.2f}"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=21, help="timings of each, in turn (%(default)s)")
    rounds = parser.parse_args(arguments).rounds
    torch.set_num_threads(1)
    console = make_console()
    problems = {
        "one layer, tanh(Wz + x), D=256, batch 32": layer(device=DEVICE),
        "slot attention's step, K=12, S=192, N=256, batch 4": slots(device=DEVICE),
    }
    console.print(f"Microseconds per evaluation of f, or per product of the backward solve, on {describe()}")
    for title, problem in problems.items():
        table = make_table(title, ["what"], ["ours µs", "torchdeq µs", "ratio", "middle half"])
        for run in shown(runs(problem), title, console):
            table.add_row(*measure(run, rounds))
        console.print(table)
    console.print("A ratio below 1: ours is quicker. Medians of the ratios of neighbouring timings.")


if __name__ == "__main__":
    main()
