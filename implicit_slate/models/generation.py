"""Generation of tokens from slots, one position at a time with a key-value cache, and how a token is chosen."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from implicit_slate.errors import UserError
from implicit_slate.models.transformer import DecoderBlock, TransformerDecoder

BLOCK = 64
"""On a GPU the cache is read in whole blocks of this many positions; those not yet generated are masked out. So shapes
change only every `BLOCK` positions, and a step is captured as a CUDA graph (or compiled) once for each block."""


class Decoding:
    """The state of generating N tokens from slots: call `step` N times.

    Args:
        dictionary: embeddings of the tokens, index 0 begins the sequence.
        positions: (1, N + 1, D), of which the first N are added to the embeddings.
        transformer: in evaluation mode.
        to_logits: D -> V.
        memory: (B, K, D), the slots as the transformer reads them.
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
        self.to_logits = to_logits.weight.T.contiguous()
        self.num_tokens = len(self.embedded_positions) - 1
        self.blocks = [_CachedBlock(block, memory, self.num_tokens) for block in transformer.blocks]  # type: ignore[arg-type]
        self.norm = transformer.norm
        self._positions = torch.arange(self.num_tokens, device=memory.device)
        self._position = 0

    def step(self, index: Tensor) -> Tensor:
        """Dictionary indices (B,) of the last tokens, at first 0 -> logits (B, V) of the next ones."""
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
        """A step as a function of tensors, which changes the cache in place: (B,) -> (B, V).

        Args:
            index: dictionary indices (B,) of the tokens at `position`.
            position: (1,) on the device, where their keys and values go.
            seen: how many positions of the cache are read, more than `position`.
            masked: leave out what comes after `position`; there is nothing if `seen` is the next position.
        """
        mask = (self._positions[:seen] <= position)[None] if masked else None
        x = self.dictionary(index) + self.embedded_positions[position]
        for block in self.blocks:
            x = block.step(x, position, seen, mask)
        return self.norm(x) @ self.to_logits

    def _capture(self, index: Tensor, at: Tensor, seen: int) -> None:
        self._index, self._at = index.clone(), at.clone()

        def run() -> None:
            self._logits = self.next_logits(self._index, self._at, seen, masked=True)

        self._graph = capture(run)


def capture(run: Callable[[], None], warm_up: int = 1) -> torch.cuda.CUDAGraph:
    """What `run` does as a CUDA graph, which repeats it on the same tensors.

    Before that it runs `warm_up` times on a stream of its own, for what libraries set up at first use.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


class _CachedBlock:
    """A block of the transformer for one position at a time, in few operations: at small batches their number is what
    takes time. Queries, keys and values are one product, and the slots' keys and values are computed once. Weights lie
    as a product of few rows reads them: with weights that are not in the cache, that of four images takes two thirds
    of the time.
    """

    def __init__(self, block: DecoderBlock, memory: Tensor, length: int):
        self.block, attention = block, block.self_attention
        batch, (heads, width) = len(memory), (attention.num_heads, memory.shape[2] // attention.num_heads)
        into, _, out, _ = block.ffn
        projections = (attention.project_q.weight, attention.project_k.weight, attention.project_v.weight)
        self.to_queries_keys_values = torch.cat(projections).T.contiguous()
        self.from_heads = attention.project_out.weight.T.contiguous()
        self.to_hidden, self.hidden_bias = into.get_parameter("weight").T.contiguous(), into.get_parameter("bias")
        self.from_hidden, self.bias = out.get_parameter("weight").T.contiguous(), out.get_parameter("bias")
        self.keys = memory.new_zeros(batch * heads, width, length)  # so both are read as they lie
        self.values = memory.new_zeros(batch * heads, length, width)
        keys, self.slot_values = block.cross_attention.keys_and_values(memory)  # (B, heads·K, D)
        self.slot_keys = keys.mT.contiguous()  # (B, D, heads·K)

    def step(self, x: Tensor, position: Tensor, seen: int, mask: Tensor | None) -> Tensor:
        """The block at one position, (B, D) -> (B, D); its key and value go into the cache."""
        block, batch, (flat, width, _) = self.block, len(x), self.keys.shape
        normed = block.norm_self(x)
        query, key, value = (normed @ self.to_queries_keys_values).view(batch, 3, -1, width).unbind(1)
        keys = self.keys.index_copy_(2, position, key.reshape(flat, width, 1))[..., :seen]
        values = self.values.index_copy_(1, position, value.reshape(flat, 1, width))[:, :seen]
        logits = (query.reshape(flat, 1, width) * width**-0.5) @ keys
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        mixed = (logits.softmax(-1) @ values).view(batch, -1)
        x = torch.addmm(normed if block.is_first else x, mixed, self.from_heads)
        weights = (block.norm_cross(x)[:, None] @ self.slot_keys).view(batch, flat // batch, -1).softmax(-1)
        x = torch.baddbmm(x[:, None], weights.view(batch, 1, -1), self.slot_values)[:, 0]
        hidden = torch.addmm(self.hidden_bias, block.norm_ffn(x), self.to_hidden).relu_()
        return torch.addmm(x + self.bias, hidden, self.from_hidden)


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
