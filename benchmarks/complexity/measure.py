"""What is measured: slot attention's refinement with n iterations, in one gradient mode after another."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from benchmarks.complexity.memory import Result, peak_bytes, saved_bytes
from implicit_slate.fixed_point import Solution, Solver, fixed_point, parse_gradient
from implicit_slate.models.slot_attention import SlotAttention, SlotUpdate

GRADIENTS = (
    "unrolled",
    "truncated(2)",
    "implicit",
    "neumann(3)",
    "phantom(3, 0.5)",
    "bilevel",
    "exact(broyden)",
    "exact(anderson)",
    "exact(gmres)",
    "exact(dense)",
)
ITERATIONS = (2, 4, 8, 16, 32)
"""From 2 on, where `truncated(2)` is what it says."""
PATIENCE = 2.0
"""Seconds that a mode at one n is timed for: `exact(dense)`, with its K·S products, is timed once or twice only."""


class Refinement:
    """Slot attention's step at random initialisation, its solve, and the backward pass of the solve.

    Keys and values are leaves: what is measured is the refinement alone, not the projections of its inputs.
    """

    def __init__(self, num_slots: int, slot_size: int, num_inputs: int, batch_size: int, device: str = "cpu"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = SlotAttention(slot_size, num_slots, slot_size, mlp_size=slot_size)
            inputs = torch.randn(batch_size, num_inputs, slot_size)
            self.slots_init, self.cotangent = torch.randn(2, batch_size, num_slots, slot_size, device=device)
        self.device = device
        self.step = SlotUpdate(module.to(device), inputs.to(device))
        self.step.keys = self.step.keys.detach().requires_grad_()
        self.step.values = self.step.values.detach().requires_grad_()
        self.leaves: list[Tensor] = [self.step.keys, self.step.values, self.slots_init, *module.parameters()]
        self.description = f"K={num_slots} slots of width S={slot_size}, N={num_inputs} inputs, batch {batch_size}"

    def forward(self, gradient: str, n: int) -> Solution:
        """n Picard iterations, and what the mode records."""
        start = self.slots_init.detach()
        start.requires_grad_(parse_gradient(gradient).reaches_start(Solver(max_iterations=n)))
        return fixed_point(self.step, start, max_iterations=n, gradient=gradient)

    def backward(self, solution: Solution) -> None:
        """From a random cotangent to the gradients of the weights, the keys and the values."""
        for leaf in self.leaves:
            leaf.grad = None
        solution.z.backward(self.cotangent)

    def peak_bytes(self, gradient: str, n: int) -> int:
        """Of forward and backward together, the gradients of the weights included."""
        self._forget()
        return peak_bytes(lambda: self.backward(self.forward(gradient, n)), self.device)

    def saved_bytes(self, gradient: str, n: int) -> int:
        """Held between forward and backward, besides weights, keys, values and the initial slots."""
        return saved_bytes(lambda: self.forward(gradient, n), besides=self.leaves)[0]

    def _forget(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None
        self.step._attention = None


@dataclass
class Cell:
    """One gradient mode at one n."""

    gradient: str
    n: int
    forward_seconds: list[float] = field(default_factory=list)
    """One number a round, the rounds of all cells taken in turn."""
    backward_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    saved_bytes: int = 0
    products: int = 0
    """Vector-Jacobian products of the backward solve of an `exact` mode: set by its convergence, not by n."""

    @property
    def forward(self) -> float:
        """Median seconds."""
        return median(self.forward_seconds)

    @property
    def backward(self) -> float:
        """Median seconds."""
        return median(self.backward_seconds)

    @property
    def backward_a_product(self) -> float:
        """Median seconds of the backward pass over its products, of which a mode without a backward solve has one."""
        return self.backward / max(self.products, 1)


def measure(
    refinement: Refinement,
    gradients: Iterable[str] = GRADIENTS,
    iterations: Iterable[int] = ITERATIONS,
    rounds: int = 7,
    track: Callable[[list], Iterable] = iter,
) -> list[Cell]:
    """All modes at all n. A first round measures memory and warms up; then `rounds` times all cells are timed in turn.

    So whatever else the machine does meets all cells alike. `track` wraps the work to be done, to show its progress.
    """
    cells = [Cell(gradient, n) for gradient in gradients for n in iterations]
    for number, cell in track([(number, cell) for number in range(rounds + 1) for cell in cells]):
        if number == 0:
            cell.saved_bytes = refinement.saved_bytes(cell.gradient, cell.n)
            cell.peak_bytes = refinement.peak_bytes(cell.gradient, cell.n)
        elif sum(cell.forward_seconds + cell.backward_seconds) < PATIENCE:
            seconds, solution = timed(lambda: refinement.forward(cell.gradient, cell.n), refinement.device)
            cell.forward_seconds.append(seconds)
            cell.backward_seconds.append(timed(lambda: refinement.backward(solution), refinement.device)[0])
            cell.products = solution.adjoint.products if solution.adjoint else 0
    return cells


def timed(run: Callable[[], Result], device: str) -> tuple[float, Result]:
    """Seconds that `run` takes, on a GPU those of the GPU, and what it returns."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        result = run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, result
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result
