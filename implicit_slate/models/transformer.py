"""The autoregressive transformer decoder that reads the slots (Singh et al. 2022; docs/method.md, "SLATE")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from implicit_slate.errors import UserError
from implicit_slate.models.attention import attend
from implicit_slate.models.layers import Dropout, linear


class Attention(nn.Module):
    """Multi-head attention without biases, its projections apart from the rest: those of the slots can be kept."""

    def __init__(self, d_model: int, num_heads: int, dropout: float, gain: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = Dropout(dropout)
        self.project_q = linear(d_model, d_model, bias=False)
        self.project_k = linear(d_model, d_model, bias=False)
        self.project_v = linear(d_model, d_model, bias=False)
        self.project_out = linear(d_model, d_model, bias=False, gain=gain)

    # Each (B, L, D) -> (B, heads, L, D/heads).

    def queries(self, x: Tensor) -> Tensor:
        return self._project(x, self.project_q)[0]

    def keys_and_values(self, memory: Tensor) -> list[Tensor]:
        return self._project(memory, self.project_k, self.project_v)

    def queries_keys_values(self, x: Tensor) -> list[Tensor]:
        return self._project(x, self.project_q, self.project_k, self.project_v)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, is_causal: bool = False) -> Tensor:
        """Attention as in `attend`, its heads joined and projected: (B, L, D)."""
        mixed = attend(queries, keys, values, self.dropout.p if self.training else 0.0, is_causal)
        return self.dropout(self.project_out(mixed.transpose(1, 2).flatten(2)))

    def _project(self, x: Tensor, *layers: nn.Linear) -> list[Tensor]:
        """What the layers make of x, in one product, with heads."""
        weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
        projected = F.linear(x, weight).unflatten(-1, (len(layers), self.num_heads, -1))
        return [part.transpose(1, 2) for part in projected.unbind(2)]


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the slots, feed-forward; pre-norm residual branches.

    As in the public code, the first block's residual stream is its *normalised* input.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float, gain: float, is_first: bool):
        super().__init__()
        self.is_first = is_first
        self.norm_self = nn.LayerNorm(d_model)
        self.self_attention = Attention(d_model, num_heads, dropout, gain)
        self.norm_cross = nn.LayerNorm(d_model)
        self.cross_attention = Attention(d_model, num_heads, dropout, gain)
        self.norm_ffn = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(
            linear(d_model, 4 * d_model, before_relu=True),
            nn.ReLU(),
            linear(4 * d_model, d_model, gain=gain),
            Dropout(dropout),
        )

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x (B, N, D), memory (B, K, D) -> (B, N, D)."""
        normed = self.norm_self(x)
        residual = normed if self.is_first else x
        x = residual + self.self_attention(*self.self_attention.queries_keys_values(normed), is_causal=True)
        queries = self.cross_attention.queries(self.norm_cross(x))
        x = x + self.cross_attention(queries, *self.cross_attention.keys_and_values(memory))
        return x + self.ffn(self.norm_ffn(x))


class TransformerDecoder(nn.Module):
    """`num_blocks` blocks and a final LayerNorm."""

    def __init__(self, d_model: int, num_blocks: int, num_heads: int, dropout: float):
        super().__init__()
        if d_model % num_heads:
            raise UserError(f"d_model={d_model} is not divisible by num_heads={num_heads}")
        gain = (3 * num_blocks) ** -0.5
        self.blocks = nn.ModuleList(
            DecoderBlock(d_model, num_heads, dropout, gain, is_first=i == 0) for i in range(num_blocks)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Embedded tokens (B, N, D) and slots (B, K, D) -> features (B, N, D); position i depends on x up to i."""
        for block in self.blocks:
            x = block(x, memory)
        return self.norm(x)
