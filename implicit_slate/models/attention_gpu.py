"""Causal attention with dropout for a GPU, as two operations that `torch.compile` and CUDA graphs take as they are.

What `attention_kernels` computes takes half the time of cuDNN's attention at the paper's size, and spares a twelfth of
a step. Only these functions import it, when they run: Triton is not everywhere.
"""

import math
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.library import custom_op

HAS_TRITON = find_spec("triton") is not None
LONGEST = 32
"""Numbers in a head. With more, both kernels compute with 64."""
OF_QUERIES = {"QUERIES": 64, "KEYS": 32, "num_warps": 4}
OF_KEYS = {"QUERIES": 32, "KEYS": 64, "num_warps": 4, "num_stages": 2}
"""Tiles of the kernels that hold queries and of the one that holds keys: of nine that were tried the quickest
on an H200."""


def takes(queries: Tensor) -> bool:
    """Whether `attend` is for such queries: of 16 bits, of short heads, on a GPU, where the step is compiled. Op by op,
    a call keeps the CPU longer than the GPU, and a step at the paper's size took 54 ms instead of 33."""
    is_small = queries.dtype in (torch.bfloat16, torch.float16) and queries.shape[-1] <= LONGEST
    return HAS_TRITON and queries.device.type == "cuda" and is_small and torch.compiler.is_compiling()


def attend(queries: Tensor, keys: Tensor, values: Tensor, rate: float) -> Tensor:
    """As `attention.attend`, (B, heads, N, d) each -> (B, heads, N, d), in 16 bits."""
    batch, heads, length, _ = queries.shape
    numbers = torch.randint(2**31, (batch * heads + 1, length), device=queries.device)
    odd = (2 * numbers + 1).to(torch.int32)  # of 32 bits, whose sign is one of them
    last_heads = (x.transpose(1, 2) for x in (queries, keys, values))
    return attend_dropped(*last_heads, odd[:-1], odd[-1], rate)[0].transpose(1, 2)


@custom_op("implicit_slate::attend_dropped", mutates_args=())
def attend_dropped(
    queries: Tensor, keys: Tensor, values: Tensor, rows: Tensor, columns: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """(B, N, H, d) each, rows (B·H, N) and columns (N,) odd numbers -> the mixture of values (B, N, H, d), contiguous,
    and the logarithms of the softmax's sums (B, H, N), to the base 2; see `attention_kernels`."""
    from implicit_slate.models.attention_kernels import forward_kernel

    mixed, logsumexp = _outputs(queries)
    arguments = _arguments(queries, keys, values, rate)
    forward_kernel[_blocks(queries, OF_QUERIES["QUERIES"])](
        queries, keys, values, rows, columns, 0.0, mixed, logsumexp, **arguments, **OF_QUERIES
    )
    return mixed, logsumexp


@custom_op("implicit_slate::attend_dropped_backward", mutates_args=())
def attend_dropped_backward(
    queries: Tensor, keys: Tensor, values: Tensor, rows: Tensor, columns: Tensor, mixed: Tensor, logsumexp: Tensor,
    to_mixed: Tensor, rate: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of queries, keys and values, contiguous, from `to_mixed`, that of their mixture, contiguous."""
    from implicit_slate.models.attention_kernels import to_keys_kernel, to_queries_kernel

    to_queries, to_keys, to_values = (_outputs(queries)[0] for _ in range(3))
    inners, given = torch.empty_like(logsumexp), (queries, keys, values, rows, columns)
    arguments = _arguments(queries, keys, values, rate)
    arguments["FACTOR"] = queries.shape[-1] ** -0.5 / arguments["KEPT"]
    to_queries_kernel[_blocks(queries, OF_QUERIES["QUERIES"])](
        *given, mixed, logsumexp, to_mixed, inners, to_queries, **arguments, **OF_QUERIES
    )
    to_keys_kernel[_blocks(queries, OF_KEYS["KEYS"])](
        *given, logsumexp, to_mixed, inners, to_keys, to_values, **arguments, **OF_KEYS
    )
    return to_queries, to_keys, to_values


@attend_dropped.register_fake
def _(queries, keys, values, rows, columns, rate):
    return _outputs(queries)


@attend_dropped_backward.register_fake
def _(queries, keys, values, rows, columns, mixed, logsumexp, to_mixed, rate):
    return tuple(_outputs(queries)[0] for _ in range(3))


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.rate = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, to_mixed: Tensor, _):
    return *attend_dropped_backward(*ctx.saved_tensors, to_mixed.contiguous(), ctx.rate), None, None, None


attend_dropped.register_autograd(_backward, setup_context=_keep)


def _outputs(queries: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = queries.shape
    mixed = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    return mixed, torch.empty(batch, heads, length, dtype=torch.float32, device=queries.device)


def _arguments(queries: Tensor, keys: Tensor, values: Tensor, rate: float) -> dict[str, float]:
    _, length, heads, size = queries.shape
    cut = min(round(rate * 2**32), 2**32 - 1)
    found = {
        "H": heads, "N": length, "D": size, "WIDTH": max(16, 1 << (size - 1).bit_length()),
        "WHOLE": length % 64 == 0,
        "SCALE": size**-0.5 * math.log2(math.e), "CUT": cut, "KEPT": 1 - cut / 2**32,
    }  # fmt: skip
    for name, x in {"QUERY": queries, "KEY": keys, "VALUE": values}.items():
        if x.stride(-1) != 1:
            raise ValueError(f"{name.lower()} numbers of a head must lie side by side")
        found |= {f"{name}_{what}": x.stride(i) for i, what in enumerate(("BATCH", "STEP", "HEAD"))}
    return found


def _blocks(queries: Tensor, size: int) -> tuple[int, int]:
    batch, length, heads, _ = queries.shape
    return batch * heads, -(-length // size)
