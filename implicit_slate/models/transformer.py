"""The autoregressive transformer decoder that reads the slots (Singh et al. 2022; docs/method.md, "SLATE")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from implicit_slate.errors import UserError
from implicit_slate.models.attention import attend
from implicit_slate.models.layers import Dropout, linear


class Attention(nn.Module):
    """Base of multi-head attention: its projections, without biases, and the dropout of its weights and output."""

    def __init__(self, d_model: int, num_heads: int, dropout: float, gain: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = Dropout(dropout)
        self.project_q = linear(d_model, d_model, bias=False)
        self.project_k = linear(d_model, d_model, bias=False)
        self.project_v = linear(d_model, d_model, bias=False)
        self.project_out = linear(d_model, d_model, bias=False, gain=gain)

    def _project(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        """Apply all layers to x (B, L, D) in one product -> (B, L, number of layers, heads, D/heads)."""
        weight = torch.cat([layer.weight for layer in layers])
        return F.linear(x, weight).unflatten(-1, (len(layers), self.num_heads, -1))


class SelfAttention(Attention):
    """Causal self-attention: every position attends to itself and those before it."""

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, 3, heads, D/heads)."""
        return self._project(x, self.project_q, self.project_k, self.project_v)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        mixed = attend(self.queries_keys_values(x), self.dropout.p if self.training else 0.0)
        return self.dropout(self.project_out(mixed.flatten(2)))


class CrossAttention(Attention):
    """Attention of every position to the slots.

    Because there are few slots, the projections of queries and outputs are multiplied into the slots' keys and values,
    qᵀk = xᵀ(W_qᵀk). This replaces two products of every position with a D×D matrix by two with a matrix of heads·K
    columns. At 64×64 with 3 slots it saves a tenth of a step's arithmetic.
    """

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Slots (B, K, D) -> keys and values (B, heads·K, D), which include the projections of queries and outputs."""
        projected = self._project(memory, self.project_k, self.project_v)
        keys, values = (part.transpose(1, 2) for part in projected.unbind(2))  # (B, heads, K, D/heads)
        to_queries = self.project_q.weight.unflatten(0, (self.num_heads, -1)) * keys.shape[-1] ** -0.5
        from_heads = self.project_out.weight.unflatten(1, (self.num_heads, -1)).movedim(0, 2)
        return (keys @ to_queries).flatten(1, 2), (values @ from_heads).flatten(1, 2)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x (B, L, D), slots (B, K, D) -> (B, L, D)."""
        keys, values = self.keys_and_values(memory)
        weights = (x @ keys.mT).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        return self.dropout(self.dropout(weights).flatten(2) @ values)


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the slots, and a feed-forward layer, as pre-norm residual branches.

    As in the public code, the residual stream of the first block starts from its *normalised* input.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float, gain: float, is_first: bool):
        super().__init__()
        self.is_first = is_first
        self.norm_self = nn.LayerNorm(d_model)
        self.self_attention = SelfAttention(d_model, num_heads, dropout, gain)
        self.norm_cross = nn.LayerNorm(d_model)
        self.cross_attention = CrossAttention(d_model, num_heads, dropout, gain)
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
        x = residual + self.self_attention(normed)
        x = x + self.cross_attention(self.norm_cross(x), memory)
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
