"""Generation of tokens from slots, one position at a time with a key-value cache; and sampling of tokens."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from implicit_slate.errors import UserError
from implicit_slate.models.transformer import DecoderBlock, TransformerDecoder

BLOCK = 64
"""On a GPU the cache is read in whole blocks of this many positions; positions not yet generated are masked out. So
shapes change only every `BLOCK` positions, and a step is captured as a CUDA graph (or compiled) once per block."""


class Decoding:
    """The state of generating N tokens from slots: call `step` N times.

    Args:
        dictionary: token embeddings; index 0 begins the sequence.
        positions: position embeddings (1, N + 1, D); the first N are added to the token embeddings.
        transformer: in evaluation mode.
        to_logits: D -> V.
        memory: the projected slots (B, K, D).
    """

    def __init__(
        self,
        dictionary: nn.Embedding,
        positions: Tensor,
        transformer: TransformerDecoder,
        to_logits: nn.Linear,
        memory: Tensor,
    ):
        self.dictionary, self.embedded_positions = dictionary, positions[0]
        self.vocab_size, self.num_tokens = to_logits.out_features, len(self.embedded_positions) - 1
        blocks: list[DecoderBlock] = list(transformer.blocks)  # type: ignore[arg-type]
        num_heads = blocks[0].self_attention.num_heads
        parts = 1 if memory.device.type == "cuda" else math.gcd(num_heads, torch.get_num_threads())
        self.to_logits = _by_outputs(F.pad(to_logits.weight, (0, 0, 0, -self.vocab_size % parts)), parts)
        self.blocks = [_CachedBlock(block, memory, self.num_tokens, parts) for block in blocks]
        self.norm = transformer.norm
        self._positions = torch.arange(self.num_tokens, device=memory.device)
        self._position = 0

    def step(self, index: Tensor) -> Tensor:
        """Dictionary indices (B,) of the last tokens (0 in the first step) -> logits (B, V) of the next tokens."""
        position, self._position = self._position, self._position + 1
        at = self._positions[position : position + 1]
        if index.device.type != "cuda":
            return self.next_logits(index, at, position + 1)
        if position % BLOCK == 0:
            self._capture(index, at, seen=min(position + BLOCK, self.num_tokens))
        self._index.copy_(index)
        self._at.copy_(at)
        self._graph.replay()
        return self._logits.clone()

    def next_logits(self, index: Tensor, position: Tensor, seen: int, masked: bool = False) -> Tensor:
        """A step as a function of tensors, (B,) -> (B, V); changes the cache in place.

        Args:
            index: dictionary indices (B,) of the tokens at `position`.
            position: (1,), on the device: where their keys and values are stored.
            seen: number of cache positions to read, more than `position`.
            masked: mask out positions after `position`; not needed if `seen` is `position` + 1.
        """
        mask = (self._positions[:seen] <= position)[None] if masked else None
        x = self.dictionary(index) + self.embedded_positions[position]
        for block in self.blocks:
            x = block.step(x, position, seen, mask)
        return _times(self.norm(x), self.to_logits).transpose(0, 1).flatten(1)[:, : self.vocab_size]

    def _capture(self, index: Tensor, at: Tensor, seen: int) -> None:
        self._index, self._at = index.clone(), at.clone()

        def run() -> None:
            self._logits = self.next_logits(self._index, self._at, seen, masked=True)

        self._graph = capture(run)


def run_apart(run: Callable[[], None], times: int) -> None:
    """Call `run` some times on a separate stream: before a capture, for what libraries set up at first use."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            run()
    torch.cuda.current_stream().wait_stream(stream)


def capture(run: Callable[[], None], warm_up: int = 1) -> torch.cuda.CUDAGraph:
    """Capture `run` as a CUDA graph, after `run_apart`; replaying it repeats `run` on the same tensors."""
    run_apart(run, warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


class _CachedBlock:
    """A transformer block applied to one position at a time, in few operations: for small batches, time goes into the
    number of operations and into reading the weights. Queries, keys and values are one product; the slots' keys and
    values are computed once.

    On a CPU a product of so few rows uses one thread, but a batch of products uses all of them. So the weights are
    split into `parts`, each with some of the heads and hidden units. With two parts on two threads, generation takes
    three quarters of the time.
    """

    def __init__(self, block: DecoderBlock, memory: Tensor, length: int, parts: int):
        self.block, attention = block, block.self_attention
        batch, (heads, width) = len(memory), (attention.num_heads, memory.shape[2] // attention.num_heads)
        into, _, out, _ = block.ffn
        projections = (attention.project_q.weight * width**-0.5, attention.project_k.weight, attention.project_v.weight)
        self.to_queries_keys_values = torch.cat([_by_outputs(weight, parts) for weight in projections])
        self.from_heads = _by_inputs(attention.project_out.weight, parts)
        self.to_hidden = _by_outputs(into.get_parameter("weight"), parts)
        self.hidden_bias = into.get_parameter("bias").view(parts, 1, -1)
        self.from_hidden, self.bias = _by_inputs(out.get_parameter("weight"), parts), out.get_parameter("bias")
        self.cache = memory.new_zeros(2, batch * heads, length, width)  # keys and values
        keys, self.slot_values = block.cross_attention.keys_and_values(memory)  # (B, heads·K, D)
        self.slot_keys = keys.mT.contiguous()  # (B, D, heads·K)

    def step(self, x: Tensor, position: Tensor, seen: int, mask: Tensor | None) -> Tensor:
        """Apply the block at one position, (B, D) -> (B, D), and store its key and value in the cache."""
        block, batch, (_, flat, _, width), parts = self.block, len(x), self.cache.shape, len(self.from_heads)
        normed = block.norm_self(x)
        projected = _times(normed, self.to_queries_keys_values).view(3, flat, 1, width)
        keys, values = self.cache.index_copy_(2, position, projected[1:])[:, :, :seen].unbind()
        logits = torch.bmm(projected[0], keys.mT)  # (flat, 1, seen)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        mixed = torch.bmm(logits.softmax(-1), values).view(parts, batch, -1)
        x = (normed if block.is_first else x) + torch.bmm(mixed, self.from_heads).sum(0)
        weights = torch.bmm(block.norm_cross(x)[:, None], self.slot_keys).view(batch, flat // batch, -1).softmax(-1)
        x = torch.baddbmm(x[:, None], weights.view(batch, 1, -1), self.slot_values)[:, 0]
        normed = block.norm_ffn(x)
        hidden = torch.baddbmm(self.hidden_bias, normed.expand(parts, *normed.shape), self.to_hidden).relu_()
        return x + self.bias + torch.bmm(hidden, self.from_hidden).sum(0)


def _by_outputs(weight: Tensor, parts: int) -> Tensor:
    """Weights (out, in) -> (parts, in, out/parts)."""
    return weight.unflatten(0, (parts, -1)).mT.contiguous()


def _by_inputs(weight: Tensor, parts: int) -> Tensor:
    """Weights (out, in) -> (parts, in/parts, out)."""
    return weight.T.unflatten(0, (parts, -1)).contiguous()


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, in), weights of `_by_outputs` -> (parts, B, out/parts). (`@` takes 3 µs longer than `bmm`: 8% in all.)"""
    return torch.bmm(x.expand(len(weight), *x.shape), weight)


def check_sampling(vocab_size: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise `UserError` for settings of `choose` that are out of range or contradict each other."""
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature}: expected a number of at least 0 (0: the most likely token)")
    if temperature == 0 and (top_k, top_p) != (None, None):
        raise UserError("top_k and top_p are settings of sampling: they need a temperature above 0")
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise UserError(f"top_k={top_k}: expected a number from 1 to vocab_size={vocab_size}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}: expected a number above 0 and at most 1")


def choose(
    logits: Tensor,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The most likely token, or a sample, (B, V) -> (B,); for the arguments see `SLATE.generate`.

    If both `top_k` and `top_p` are given, `top_p` is applied to the distribution over the top k, as is common.
    """
    if temperature == 0:
        return logits.argmax(-1)
    # The limits keep quotients finite, and the first token even if `top_p` is below the smallest float32.
    values, tokens = (logits.float() / max(temperature, 1e-30)).sort(descending=True, stable=True)
    if top_k is not None:
        values, tokens = values[:, :top_k], tokens[:, :top_k]
    probabilities = values.softmax(-1)
    if top_p is not None:  # keep a token if the sum of those before it is below p; so the first is always kept
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= max(top_p, 1e-30), 0.0)
    return tokens.gather(-1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]
