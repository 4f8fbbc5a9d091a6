"""A plain SLATE as a baseline: the model of docs/method.md, "SLATE", without any optimisation for speed.

Tokens are one-hot vectors, both Gumbel samples draw V exponential numbers per token, attention is written out, and
convolutions use torch's default layout. It has the same parameters as `SLATE`, so the two can share a state dict.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from implicit_slate import SLATE
from implicit_slate.models import Losses
from implicit_slate.models.slot_attention import SlotAttention
from implicit_slate.models.transformer import Attention


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise in the shape of `like`: minus the logarithm of exponential noise."""
    return -torch.empty_like(like).exponential_().log()


def gumbel_softmax(log_probabilities: Tensor, tau: float, hard: bool, noise: Tensor) -> Tensor:
    """A relaxed sample over dimension 1; if `hard`, one-hot with the gradient of the relaxed sample."""
    soft = F.softmax((log_probabilities + noise) / tau, dim=1)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft


class PlainSLATE(SLATE):
    """`SLATE` with plainly computed training losses."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.dvae.to(memory_format=torch.contiguous_format)

    def losses(
        self, image: Tensor, tau: float = 1.0, hard: bool = False, noise: tuple[Tensor, Tensor] | None = None
    ) -> Losses:
        """As `SLATE.losses` in training mode. `noise`: Gumbel noise, (B, V, H/4, W/4), for each of the two samples."""
        batch = len(image)
        log_probabilities = F.log_softmax(self.dvae.encoder(image), dim=1)
        for_dvae, for_target = noise or (gumbel_noise(log_probabilities), gumbel_noise(log_probabilities))
        reconstruction = self.dvae.decoder(gumbel_softmax(log_probabilities, tau, hard, for_dvae))
        target = gumbel_softmax(log_probabilities, tau, True, for_target).detach()
        target = target.permute(0, 2, 3, 1).flatten(1, 2)  # (B, N, V), one-hot

        tokens = F.pad(target, (1, 0, 1, 0))  # one-hot over V + 1; the added row and column are the start token
        tokens[:, 0, 0] = 1.0
        embedded = F.dropout(tokens @ self.dictionary.weight + self.positions, self.dropout.p, self.training)
        slots = refine(self.slot_attention, self.slot_encoder(embedded[:, 1:]))
        log_predicted = F.log_softmax(self._transform(embedded[:, :-1], self.slot_projection(slots)), dim=-1)
        return Losses(
            cross_entropy=-(target * log_predicted).sum() / batch,
            mse=((image - reconstruction) ** 2).sum() / batch,
            tokens=target.argmax(-1),
            prediction=None,
        )

    def _transform(self, x: Tensor, memory: Tensor) -> Tensor:
        """(B, N, D) embedded tokens and (B, K, D) slots -> logits (B, N, V)."""
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        for block in self.transformer.blocks:
            normed = block.norm_self(x)
            x = (normed if block.is_first else x) + attend(block.self_attention, normed, normed, future)
            x = x + attend(block.cross_attention, block.norm_cross(x), memory)
            hidden = F.relu(block.ffn[0](block.norm_ffn(x)))
            x = x + F.dropout(block.ffn[2](hidden), self.dropout.p, self.training)
        return self.to_logits(self.transformer.norm(x))


def attend(attention: Attention, x: Tensor, memory: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Multi-head attention from x (B, L, D) to memory (B, M, D); positions where `hidden` (L, M) is True are masked."""

    def heads(y: Tensor) -> Tensor:
        return y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    q, k, v = heads(attention.project_q(x)), heads(attention.project_k(memory)), heads(attention.project_v(memory))
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = F.dropout(F.softmax(scores, dim=-1), attention.dropout.p, attention.training)
    mixed = attention.project_out((weights @ v).transpose(1, 2).flatten(2))
    return F.dropout(mixed, attention.dropout.p, attention.training)


def refine(module: SlotAttention, inputs: Tensor) -> Tensor:
    """Inputs (B, N, D) -> slots (B, K, S), with the gradient mode of `module`, which is `unrolled` or `implicit`."""
    heads, width = module.num_heads, module.slot_size // module.num_heads
    inputs = module.norm_inputs(inputs)
    k = module.project_k(inputs).unflatten(-1, (heads, width)) * width**-0.5  # (B, N, heads, S / heads)
    v = module.project_v(inputs).unflatten(-1, (heads, width))

    def step(slots: Tensor) -> Tensor:
        q = module.project_q(module.norm_slots(slots)).unflatten(-1, (heads, width))
        scores = torch.einsum("bnhs,bkhs->bnhk", k, q)
        weights = F.softmax(scores.flatten(2), dim=-1).view_as(scores) + module.epsilon
        weights = weights / weights.sum(dim=1, keepdim=True)
        updates = torch.einsum("bnhk,bnhs->bkhs", weights, v)
        slots = module.gru(updates.flatten(2).flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        return slots + module.mlp(module.norm_mlp(slots))

    slots = module.sample_slots(len(inputs))
    with torch.set_grad_enabled(torch.is_grad_enabled() and module.gradient.reaches_start(module.solver)):
        for _ in range(module.solver.max_iterations):
            slots = step(slots)
    return slots if module.gradient.reaches_start(module.solver) else step(slots)
