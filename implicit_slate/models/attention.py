"""Causal scaled dot-product attention with dropout on its weights (Vaswani et al. 2017), made fast for CPUs.

The kernels for GPUs are in `attention_gpu`.

torch's fused CPU kernel has no dropout. Without a fused kernel, attention with dropout makes a dozen passes over
matrices of (heads, N, N) for each image, most of them through main memory. The version here works in pieces that stay
in the cache, skips most of what lies above the diagonal, and touches dropped weights one by one. At N = 576 and a
dropout rate of 0.1 it is four times as fast as a chain of torch operations, and needs a third of the memory.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from implicit_slate.models import attention_gpu
from implicit_slate.models.layers import draw_dropped

ROWS = 64
"""Queries in a piece. With fewer, more of what is above the diagonal is skipped, but more operations are needed."""
PIECE = 2**20
"""Approximate number of attention weights in a piece, few enough for the cache that cores share. Pieces of a quarter of
the size, which fit a core's own cache, take 1.2 to 2 times as long on two cores, which wait for one another after every
operation."""


def attend(projected: Tensor, rate: float = 0.0) -> Tensor:
    """Causal attention: queries, keys and values (B, N, 3, heads, d) -> (B, N, heads, d). Query i sees keys up to i.

    Args:
        rate: dropout rate of the attention weights; those kept are scaled by 1 / (1 - rate).
    """
    if 0 < rate < 1 and attention_gpu.takes(projected):
        return attention_gpu.attend(projected, rate)
    queries, keys, values = (part.transpose(1, 2) for part in projected.unbind(2))
    if 0 < rate < 1 and queries.device.type == "cpu" and not torch.compiler.is_compiling():
        return _DroppedAttention.apply(queries, keys, values, rate).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=rate, is_causal=True)
    return mixed.transpose(1, 2)


class _DroppedAttention(torch.autograd.Function):
    """Attention with dropout, O = WV, where W = P∘mask/(1 - rate) and P = softmax(QKᵀ/√d).

    Its gradients are dV = WᵀdO and, for the logits, W∘(dO Vᵀ) - P∘(dO∘O)1 (Dao et al. 2022, appendix B). For the
    backward pass it keeps P, with a negative sign where a weight was dropped.
    """

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, values: Tensor, rate: float) -> Tensor:
        # Batches of matrices (B·heads, N, d), contiguous for the products. Queries and values are scaled instead of
        # logits and weights, because they are fewer.
        ctx.heads, ctx.rate = queries.shape[:2], rate
        queries, values = queries * queries.shape[-1] ** -0.5, values * (1 / (1 - rate))
        queries, keys, values = (x.reshape(-1, *x.shape[2:]) for x in (queries, keys, values))
        mixed = torch.empty_like(queries)
        future = torch.ones(ROWS, ROWS, dtype=torch.bool).triu(1)
        signed = []
        for heads, rows, seen in _pieces(queries):
            logits = queries[heads, rows] @ keys[heads, seen].mT
            size = rows.stop - rows.start
            logits[..., rows].masked_fill_(future[:size, :size], -torch.inf)
            weights = logits.softmax(-1)
            flat, dropped = weights.view(-1), draw_dropped(weights.numel(), rate)
            flat.index_copy_(0, dropped, flat.index_select(0, dropped).neg_())
            mixed[heads, rows] = weights.clamp_min(0) @ values[heads, seen]
            signed.append(weights)
        ctx.save_for_backward(queries, keys, values, mixed, *signed)
        return mixed.unflatten(0, ctx.heads)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        queries, keys, values, mixed, *signed = ctx.saved_tensors
        gradient = gradient.reshape(mixed.shape)
        # (B·heads, N, 1). In bfloat16 they are rounded like the products: float32 would not reduce the error of the
        # gradients (0.55%), and would make the subtraction slower.
        shares = (gradient * mixed).sum(-1, keepdim=True)
        to_queries, to_keys, to_values = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for (heads, rows, seen), weights in zip(_pieces(queries), signed, strict=True):
            arriving, kept = gradient[heads, rows], weights.clamp_min(0)
            to_values[heads, seen].baddbmm_(kept.mT, arriving)
            to_logits = (arriving @ values[heads, seen].mT).mul_(kept).sub_(weights.abs().mul_(shares[heads, rows]))
            to_queries[heads, rows] = to_logits @ keys[heads, seen]
            to_keys[heads, seen].baddbmm_(to_logits.mT, queries[heads, rows])
        to_queries.mul_(queries.shape[-1] ** -0.5)
        to_values.mul_(1 / (1 - ctx.rate))
        return *(x.unflatten(0, ctx.heads) for x in (to_queries, to_keys, to_values)), None


def _pieces(queries: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """For queries (B·heads, N, d), yield for each piece its heads, its queries, and the keys that these see."""
    num_heads, length, _ = queries.shape
    size = min(ROWS, length)
    step = max(1, PIECE // (size * length))
    for head in range(0, num_heads, step):
        for row in range(0, length, size):
            stop = min(row + size, length)
            yield slice(head, head + step), slice(row, stop), slice(stop)
