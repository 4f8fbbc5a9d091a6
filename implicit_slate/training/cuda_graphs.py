"""Losses whose forward and backward passes are each launched as one CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from implicit_slate.models.generation import run_apart

WARM_UP = 2
"""How often the losses are computed before they are recorded, to compile them and for what libraries set up at first
use."""


class CUDAGraphs:
    """Losses of `model`, recorded as two CUDA graphs at the first call for each shape of their tensors.

    Launching the thousand kernels of a step one by one takes longer than running them. Inductor can record graphs, too,
    but in every step it checks all tensors that are kept for the backward pass. Through `fit`, a step at 64×64 takes
    10 ms with these graphs and 14 with Inductor's, on an H200.

    The results and the gradients of parameters lie in memory that the next call overwrites. So gradients cannot be
    accumulated over several calls.

    Args:
        losses: a function of tensors, and keyword arguments, that returns a named tuple. Gradients are those of its
            scalars; its other fields have values, but no gradients.
    """

    def __init__(self, model: nn.Module, losses: Callable[..., Any]):
        self._losses, self._parameters = losses, [p for p in model.parameters() if p.requires_grad]
        self._recorded: dict[tuple, _Recorded] = {}

    def __call__(self, *tensors: Tensor, **options: Any) -> Any:
        key = (*(tensor.shape for tensor in tensors), *options.items())
        if key not in self._recorded:
            copies = [tensor.clone() for tensor in tensors]
            self._recorded[key] = _Recorded(lambda: self._losses(*copies, **options), copies, self._parameters)
        recorded = self._recorded[key]
        for copy, tensor in zip(recorded.inputs, tensors, strict=True):
            copy.copy_(tensor)
        return recorded.found._replace(**dict(zip(recorded.scalars, _Replay.apply(recorded, *self._parameters))))


class _Recorded:
    """The graphs of `losses`, a function without arguments of the tensors `inputs`, and the memory that they use."""

    def __init__(self, losses: Callable[[], Any], inputs: list[Tensor], parameters: list[nn.Parameter]):
        self.inputs, self.forward, self.backward = inputs, torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()

        def differentiate() -> tuple[Tensor | None, ...]:
            with torch.autocast(inputs[0].device.type, enabled=False):  # as in a backward pass that is not recorded
                return torch.autograd.grad([*self.scalars.values()], parameters, self.arriving, allow_unused=True)

        def compute() -> None:
            self.found = losses()
            self.scalars = {
                name: x
                for name, x in self.found._asdict().items()
                if isinstance(x, Tensor) and x.requires_grad and not x.ndim
            }

        def compute_and_differentiate() -> None:
            compute()
            self.arriving = [torch.ones_like(scalar) for scalar in self.scalars.values()]
            differentiate()

        # Recording draws random numbers. Afterwards the generators are as before, so that training does not depend on
        # when it happens.
        with torch.random.fork_rng(devices=[inputs[0].device]):
            run_apart(compute_and_differentiate, WARM_UP)
            # `thread_local`: the thread of a data loader may use the GPU meanwhile.
            with torch.cuda.graph(self.forward, capture_error_mode="thread_local"):
                compute()
            with torch.cuda.graph(self.backward, self.forward.pool(), capture_error_mode="thread_local"):
                self.gradients = differentiate()


class _Replay(torch.autograd.Function):
    """The recorded scalars, as a function of the parameters."""

    @staticmethod
    def forward(ctx, recorded: _Recorded, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.recorded = recorded
        recorded.forward.replay()
        return tuple(scalar.detach() for scalar in recorded.scalars.values())

    @staticmethod
    @once_differentiable
    def backward(ctx, *arriving: Tensor):
        for memory, gradient in zip(ctx.recorded.arriving, arriving, strict=True):
            memory.copy_(gradient)
        ctx.recorded.backward.replay()
        # As new tensors, so that autograd takes them without a copy.
        return None, *(gradient if gradient is None else gradient.detach() for gradient in ctx.recorded.gradients)
