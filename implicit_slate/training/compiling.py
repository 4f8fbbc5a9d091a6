"""Losses compiled by `torch.compile`, for training on a GPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

INDUCTOR_OPTIONS = {"combo_kernels": True}
"""Options of `torch.compile` for a GPU: small independent kernels are combined, which leaves 1,160 of 1,410 kernels at
the paper's size."""


def compile_losses(losses: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """`losses`, a function of tensors and keyword arguments, as one graph of `torch.compile` with the settings `how`.

    torch traces the backward pass in the autocast in which the compiled function is called. The gradients of what the
    losses compute in float32, such as the refinement, would be computed in 16 bits. So the compiled function is called
    without autocast, and switches it on itself.
    """

    def in_autocast(*tensors: Tensor, dtype: torch.dtype, enabled: bool, **options: Any) -> Any:
        with torch.autocast(tensors[0].device.type, dtype, enabled):
            return losses(*tensors, **options)

    compiled = torch.compile(in_autocast, fullgraph=True, **how)

    def call(*tensors: Tensor, **options: Any) -> Any:
        device = tensors[0].device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False):
            return compiled(*tensors, dtype=dtype, enabled=enabled, **options)

    return call
