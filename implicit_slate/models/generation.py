"""Tokens from slots, one position at a time, earlier positions being kept; and how a token is chosen."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from implicit_slate.errors import UserError

if TYPE_CHECKING:
    from implicit_slate.models.slate import SLATE

BLOCK = 64
"""The cache is read in whole blocks of so many positions, what is not yet there masked out. So a step has one shape for
`BLOCK` positions: it compiles once for each, or is captured once as a CUDA graph. Little is read in vain."""


class Decoding:
    """A model's transformer at work on slots (B, K, S): `step` by `step`, N in all.

    A step costs the same at every position but for the attention to those before it. The cache is made once, in its
    full size, (B, heads, N, D/heads) for keys and for values of each block; those of the slots are computed once.
    """

    def __init__(self, model: "SLATE", slots: Tensor):
        self.model = model
        self.cache = model.transformer.make_cache(model.slot_projection(slots), model.num_tokens)
        self._positions = torch.arange(model.num_tokens, device=slots.device)
        self._position = 0

    def step(self, index: Tensor) -> Tensor:
        """Dictionary indices (B,) of the last tokens, at first 0 -> logits (B, V) of the next ones."""
        position, self._position = self._position, self._position + 1
        seen = min((position // BLOCK + 1) * BLOCK, self.model.num_tokens)
        return next_logits(self.model, index, self._positions[position : position + 1], self.cache, seen)


def next_logits(model: "SLATE", index: Tensor, position: Tensor, cache: list, seen: int) -> Tensor:
    """One step as a function of tensors, for `torch.compile`: (B,) -> (B, V).

    Args:
        index: dictionary indices (B,) of the tokens at `position`.
        position: (1,) on the device; their keys and values go there in the cache.
        cache: of `TransformerDecoder.make_cache`, changed in place.
        seen: positions that are read of the cache, more than `position`; what lies behind `position` has no influence.
    """
    embedded = model.dictionary(index)[:, None] + model.positions.index_select(1, position)
    return model.to_logits(model.transformer.step(embedded, cache, position, seen))[:, 0]


def check_sampling(vocab_size: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """UserError for settings of `choose` that make no sense."""
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature}: a number from 0 (the most likely token) on is needed")
    if temperature == 0 and (top_k, top_p) != (None, None):
        raise UserError("top_k and top_p are settings of sampling: they need a temperature above 0")
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise UserError(f"top_k={top_k}: a number from 1 to vocab_size={vocab_size} is needed")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}: a number above 0 and up to 1 is needed")


def choose(
    logits: Tensor,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A token of each row: (B, V) -> (B,). The most likely one, or a sample; see `SLATE.generate`.

    Both limits hold where both are given: the nucleus is that of the distribution over the top k (as in common use).
    """
    if temperature == 0:
        return logits.argmax(-1)
    values, tokens = (logits.float() / temperature).sort(descending=True, stable=True)
    if top_k is not None:
        values, tokens = values[:, :top_k], tokens[:, :top_k]
    probabilities = values.softmax(-1)
    if top_p is not None:  # a token stays if those before it are not likely enough: so the first always does
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return tokens.gather(-1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]
