"""Causal attention with dropout for a GPU, as two custom operators, for `torch.compile` and CUDA graphs.

At the paper's size the Triton kernels in `attention_kernels` take half the time of cuDNN's attention, which saves a
twelfth of a step. They are imported only when these operators run, because Triton is not available everywhere.
"""

import math

import torch
from torch import Tensor
from torch.library import custom_op

from implicit_slate import host

LONGEST = 32
"""Longest supported head. For longer heads our kernels would compute with a width of 64, as cuDNN's does."""
OF_QUERIES = {"QUERIES": 64, "KEYS": 32, "num_warps": 4}
OF_KEYS = {"QUERIES": 32, "KEYS": 64, "num_warps": 4, "num_stages": 2}
"""Tile sizes of the kernels that process a block of queries, and of the one that processes a block of keys: the fastest
of nine on an H200."""


def takes(projected: Tensor) -> bool:
    """Whether `attend` supports these queries, keys and values: 16-bit, with short heads, on a GPU, in a compiled step.
    Without compilation a call takes longer on the CPU than on the GPU, and a step at the paper's size takes 54 ms
    instead of 33."""
    is_small = projected.dtype in (torch.bfloat16, torch.float16) and projected.shape[-1] <= LONGEST
    return is_small and host.is_for_triton(projected)


def attend(projected: Tensor, rate: float) -> Tensor:
    """As `attention.attend`, (B, N, 3, heads, d) -> (B, N, heads, d), in 16 bits."""
    batch, length, _, heads, _ = projected.shape
    numbers = torch.randint(2**31, (batch * heads + 1, length), device=projected.device)
    odd = (2 * numbers + 1).to(torch.int32)  # 32 random bits, including the sign
    return attend_dropped(projected.contiguous(), odd[:-1], odd[-1], rate)[0]


@custom_op("implicit_slate::attend_dropped", mutates_args=())
def attend_dropped(projected: Tensor, rows: Tensor, columns: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Queries, keys and values (B, N, 3, H, d), and odd numbers for rows (B·H, N) and columns (N,), all contiguous ->
    the output (B, N, H, d), and the base-2 logarithms of the softmax's sums (B, H, N); see `attention_kernels`."""
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
    """The gradient of `projected`, from the contiguous gradient `to_mixed` of the output."""
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
