"""Slot attention's refinement at random initialisation, as a test problem for time and memory."""

import copy

import torch
from torch import Tensor

from benchmarks.memory import peak_bytes, saved_bytes
from implicit_slate.fixed_point import Solution, Solver, fixed_point, parse_gradient
from implicit_slate.models.slot_attention import SlotAttention, SlotUpdate


class Refinement:
    """Slot attention's step, its forward solve, and the backward pass.

    Keys and values are leaves, so only the refinement is measured, not the projections of its inputs.
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
        """n Picard iterations, and the applications of f that the mode records."""
        start = self.slots_init.detach()
        start.requires_grad_(parse_gradient(gradient).reaches_start(Solver(max_iterations=n)))
        step = copy.copy(self.step)  # because a step keeps its last attention, which must not outlive the solve
        return fixed_point(step, start, max_iterations=n, gradient=gradient)

    def backward(self, solution: Solution) -> list[Tensor]:
        """The gradients of weights, keys and values (and initial slots, if reached) from a random cotangent of z."""
        reached = [leaf for leaf in self.leaves if leaf.requires_grad]
        gradients = torch.autograd.grad(solution.z, reached, self.cotangent, allow_unused=True)
        return [gradient for gradient in gradients if gradient is not None]

    def peak_bytes(self, gradient: str, n: int) -> int:
        """For forward and backward together, including the gradients of the weights."""
        return peak_bytes(lambda: self.backward(self.forward(gradient, n)), self.device)

    def saved_bytes(self, gradient: str, n: int) -> int:
        """Kept between forward and backward, not counting weights, keys, values and initial slots."""
        return saved_bytes(lambda: self.forward(gradient, n), besides=self.leaves)[0]
