"""Generation of tokens from slots, one position at a time with a key-value cache, and how a token is chosen."""

from collections.abc import Callable

import torch
from torch import Tensor

from implicit_slate.errors import UserError
from implicit_slate.models.transformer import BlockCache

BLOCK = 64
"""The cache is read in whole blocks of this many positions; those not yet generated are masked out. So shapes change
only every `BLOCK` positions: a step is compiled, or captured as a CUDA graph, once for each block."""

NextLogits = Callable[[Tensor, Tensor, list[BlockCache], int], Tensor]
"""See `SLATE.next_logits`."""


class Decoding:
    """The state of generating N tokens from slots: call `step` N times.

    Args:
        next_logits: one step, which changes the cache in place.
        cache: keys and values in their full size, (B, heads, N, D/heads), one `BlockCache` for each block.
    """

    def __init__(self, next_logits: NextLogits, cache: list[BlockCache]):
        self.next_logits, self.cache = next_logits, cache
        self.num_tokens = cache[0].self_keys.shape[2]
        self._positions = torch.arange(self.num_tokens, device=cache[0].self_keys.device)
        self._position = 0

    def step(self, index: Tensor) -> Tensor:
        """Dictionary indices (B,) of the last tokens, at first 0 -> logits (B, V) of the next ones."""
        position, self._position = self._position, self._position + 1
        seen = min((position // BLOCK + 1) * BLOCK, self.num_tokens)
        return self.next_logits(index, self._positions[position : position + 1], self.cache, seen)


def check_sampling(vocab_size: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise `UserError` for settings of `choose` that are out of range or contradict each other."""
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
    """The most likely token, or a sample, (B, V) -> (B,); the arguments are those of `SLATE.generate`.

    If both limits are given, `top_p` is applied to the distribution over the top k (as in common use).
    """
    if temperature == 0:
        return logits.argmax(-1)
    values, tokens = (logits.float() / temperature).sort(descending=True, stable=True)
    if top_k is not None:
        values, tokens = values[:, :top_k], tokens[:, :top_k]
    probabilities = values.softmax(-1)
    if top_p is not None:  # a token is kept if those before it do not reach p together: the first always is
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return tokens.gather(-1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]
