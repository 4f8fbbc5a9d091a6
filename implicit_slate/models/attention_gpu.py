"""Causal attention with dropout for a GPU, as two operations that `torch.compile` and CUDA graphs take as they are.

What `attention_kernels` computes takes half the time of cuDNN's attention at the paper's size, and spares a twelfth of
a step. Only these functions import it, when they run: Triton is not everywhere.
"""

import math

import torch
from torch import Tensor
from torch.library import custom_op

from implicit_slate import host

LONGEST = 32
"""Numbers in a head. With more, both kernels compute with 64."""
OF_QUERIES = {"QUERIES": 64, "KEYS": 32, "num_warps": 4}
OF_KEYS = {"QUERIES": 32, "KEYS": 64, "num_warps": 4, "num_stages": 2}
"""Tiles of the kernels that hold queries and of the one that holds keys: of nine that were tried the quickest
on an H200."""


def takes(projected: Tensor) -> bool:
    """Whether `attend` is for such queries, keys and values: of 16 bits, of short heads, on a GPU, where the step is
    compiled. Op by op, a call keeps the CPU longer than the GPU, and a step at the paper's size took 54 ms instead of
    33."""
    is_small = projected.dtype in (torch.bfloat16, torch.float16) and projected.shape[-1] <= LONGEST
    return is_small and host.is_for_triton(projected)


def attend(projected: Tensor, rate: float) -> Tensor:
    """As `attention.attend`, (B, N, 3, heads, d) -> (B, N, heads, d), in 16 bits."""
    batch, length, _, heads, _ = projected.shape
    numbers = torch.randint(2**31, (batch * heads + 1, length), device=projected.device)
    odd = (2 * numbers + 1).to(torch.int32)  # of 32 bits, whose sign is one of them
    return attend_dropped(projected.contiguous(), odd[:-1], odd[-1], rate)[0]


@custom_op("implicit_slate::attend_dropped", mutates_args=())
def attend_dropped(projected: Tensor, rows: Tensor, columns: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Queries, keys and values (B, N, 3, H, d), odd numbers for rows (B·H, N) and columns (N,), contiguous -> the
    mixture of values (B, N, H, d) and the logarithms of the softmax's sums (B, H, N), to the base 2; see
    `attention_kernels`."""
    from implicit_slate.models.attention_kernels import forward_kernel

    mixed, logsumexp = _outputs(projected)
    forward_kernel[_blocks(projected, OF_QUERIES["QUERIES"])](
        projected, rows, columns, 0.0, mixed, logsumexp, **_sizes(projected, rate), **OF_QUERIES
    )
    return mixed, logsumexp


@custom_op("implicit_slate::attend_dropped_backward", mutates_args=())
def attend_dropped_backward(
    projected: Tensor, rows: Tensor, columns: Tensor, mixed: Tensor, logsumexp: Tensor, to_mixed: Tensor, rate: float
) -> Tensor:
    """The gradient of `projected` from `to_mixed`, that of the mixture, contiguous."""
    from implicit_slate.models.attention_kernels import to_keys_kernel, to_queries_kernel

    to_projected, inners = torch.empty_like(projected), torch.empty_like(logsumexp)
    sizes = _sizes(projected, rate)
    sizes["FACTOR"] = projected.shape[-1] ** -0.5 / sizes["KEPT"]
    to_queries_kernel[_blocks(projected, OF_QUERIES["QUERIES"])](
        projected, rows, columns, mixed, logsumexp, to_mixed, inners, to_projected, **sizes, **OF_QUERIES
    )
    to_keys_kernel[_blocks(projected, OF_KEYS["KEYS"])](
        projected, rows, columns, logsumexp, to_mixed, inners, to_projected, **sizes, **OF_KEYS
    )
    return to_projected


@attend_dropped.register_fake
def _(projected, rows, columns, rate):
    return _outputs(projected)


@attend_dropped_backward.register_fake
def _(projected, rows, columns, mixed, logsumexp, to_mixed, rate):
    return torch.empty_like(projected)


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.rate = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, to_mixed: Tensor, _):
    return attend_dropped_backward(*ctx.saved_tensors, to_mixed.contiguous(), ctx.rate), None, None, None


attend_dropped.register_autograd(_backward, setup_context=_keep)


def _outputs(projected: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, _, heads, _ = projected.shape
    return torch.empty_like(projected[:, :, 0]), projected.new_empty(batch, heads, length, dtype=torch.float32)


def _sizes(projected: Tensor, rate: float) -> dict[str, float]:
    _, length, _, heads, size = projected.shape
    cut = min(round(rate * 2**32), 2**32 - 1)
    return {
        "H": heads, "N": length, "D": size, "WIDTH": max(16, 1 << (size - 1).bit_length()),
        "WHOLE": length % 64 == 0,
        "SCALE": size**-0.5 * math.log2(math.e), "CUT": cut, "KEPT": 1 - cut / 2**32,
    }  # fmt: skip


def _blocks(projected: Tensor, size: int) -> tuple[int, int]:
    batch, length, _, heads, _ = projected.shape
    return batch * heads, -(-length // size)
