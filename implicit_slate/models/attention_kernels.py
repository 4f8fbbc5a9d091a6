"""Causal attention with dropout on its weights as Triton kernels: flash attention (Dao 2023) for short heads.

The weight of query i for key j is kept if rᵢcⱼ mod 2³² is at least rate·2³², with odd random 32-bit numbers rᵢ and cⱼ.
So the mask costs one multiplication, forward and backward, and nothing of size N × N is stored. Multiplication by an
odd number is a bijection of the odd numbers, so every weight is dropped with the same probability, and any two weights
independently.

With heads of width 24, torch's kernels take twice as long: cuDNN's pads them to 64, this one to 32.
"""

import triton
import triton.language as tl

# `projected` holds queries, keys and values, (B, N, 3, H, D), and its gradient has the same shape; the output `mixed`
# is (B, N, H, D). A tile is a block of tokens of one head, (tokens, WIDTH); its rows are STEP numbers apart in memory.
# Sizes are compile-time constants, so Triton knows that a head of 24 numbers can be read 16 bytes at a time.


@triton.jit
def _tile(
    start, tokens, STEP: tl.constexpr, N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr
):
    """Load the tile of the head at `start`; zeros beyond its D numbers and the N tokens."""
    column = tl.arange(0, WIDTH)
    inside = column[None, :] < D
    if not WHOLE:
        inside = inside & (tokens[:, None] < N)
    return tl.load(start + tokens[:, None] * STEP + column[None, :], mask=inside, other=0.0)


@triton.jit
def _write(start, tile, tokens, STEP: tl.constexpr, N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    inside = (tokens[:, None] < N) & (column[None, :] < D)
    tl.store(start + tokens[:, None] * STEP + column[None, :], tile.to(start.dtype.element_ty), mask=inside)


@triton.jit
def _of(start, tokens, beyond, N: tl.constexpr, WHOLE: tl.constexpr):
    """Load one number for each token, and `beyond` for those past the N tokens."""
    if WHOLE:
        return tl.load(start + tokens)
    return tl.load(start + tokens, mask=tokens < N, other=beyond)


@triton.jit
def _bits(start, tokens, N: tl.constexpr, WHOLE: tl.constexpr):
    """The tokens' random numbers, as unsigned integers."""
    return _of(start, tokens, 1, N, WHOLE).to(tl.uint32, bitcast=True)


@triton.jit
def _attend_to(
    mixed, total, largest, query, row, keys, values, columns, zero, first, queries,
    STEP: tl.constexpr, N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    SCALE: tl.constexpr, CUT: tl.constexpr, DIAGONAL: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Update the running sums of a block of queries with the block of keys that begins at `first`."""
    seen = first + tl.arange(0, KEYS)
    logits = tl.dot(query, tl.trans(_tile(keys, seen, STEP, N, D, WIDTH, WHOLE)))
    if DIAGONAL:
        logits = tl.where(queries[:, None] >= seen[None, :], logits, float("-inf"))
    new = tl.maximum(largest, tl.max(logits, 1) * SCALE)
    weights = tl.exp2(logits * SCALE - new[:, None])
    shrink = tl.exp2(largest - new)
    total = total * shrink + tl.sum(weights, 1)
    # `zero` is an argument because a constant would make the compiler select after rounding, which takes three times as
    # many instructions.
    weights = tl.where(row[:, None] * _bits(columns, seen, N, WHOLE)[None, :] >= CUT, weights, zero)
    value = _tile(values, seen, STEP, N, D, WIDTH, WHOLE)
    return tl.dot(weights.to(value.dtype), value, mixed * shrink[:, None]), total, new


@triton.jit
def forward_kernel(
    projected, rows, columns, zero, mixed, logsumexp,
    H: tl.constexpr, N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    SCALE: tl.constexpr, CUT: tl.constexpr, KEPT: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """For a block of queries of one head: dropout(softmax(QKᵀ/√d)) V, and the logarithms of the softmax's sums. Both
    use base 2, whose exponentials are faster."""
    head, batch = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64)
    begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * QUERIES  # blocks that see the most keys come first
    tokens = begin + tl.arange(0, QUERIES)
    STEP: tl.constexpr = 3 * H * D
    queries = projected + batch * N * STEP + head * D
    keys, values = queries + H * D, queries + 2 * H * D
    query = _tile(queries, tokens, STEP, N, D, WIDTH, WHOLE)
    row = _bits(rows + tl.program_id(0) * N, tokens, N, WHOLE)
    sums = tl.zeros([QUERIES, WIDTH], tl.float32)
    total, largest = tl.zeros([QUERIES], tl.float32), tl.full([QUERIES], float("-inf"), tl.float32)
    for first in tl.range(0, begin, KEYS):
        sums, total, largest = _attend_to(
            sums, total, largest, query, row, keys, values, columns, zero, first, tokens,
            STEP, N, D, WIDTH, WHOLE, SCALE, CUT, False, KEYS,
        )  # fmt: skip
    for first in tl.range(begin, tl.minimum(begin + QUERIES, N), KEYS, num_stages=1):
        sums, total, largest = _attend_to(
            sums, total, largest, query, row, keys, values, columns, zero, first, tokens,
            STEP, N, D, WIDTH, WHOLE, SCALE, CUT, True, KEYS,
        )  # fmt: skip
    tl.store(logsumexp + tl.program_id(0) * N + tokens, largest + tl.log2(total), mask=tokens < N)
    sums = sums / (total * KEPT)[:, None]
    _write(mixed + batch * N * H * D + head * D, sums, tokens, H * D, N, D, WIDTH)


# The gradient of the logits is P∘(mask∘(dO Vᵀ)/KEPT - (dO∘O)1), where KEPT is the probability of keeping a weight. The
# division by KEPT comes last, so the second term, `inner`, includes it as a factor.


@triton.jit
def _to_queries(
    gradient, query, to_mixed, logsumexp, inner, row, keys, values, columns, first, queries,
    STEP: tl.constexpr, N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    SCALE: tl.constexpr, CUT: tl.constexpr, DIAGONAL: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Add to the gradient of a block of queries the part from the block of keys that begins at `first`."""
    seen = first + tl.arange(0, KEYS)
    key = _tile(keys, seen, STEP, N, D, WIDTH, WHOLE)
    to_weights = tl.dot(to_mixed, tl.trans(_tile(values, seen, STEP, N, D, WIDTH, WHOLE)))
    weights = tl.exp2(tl.dot(query, tl.trans(key)) * SCALE - logsumexp[:, None])
    if DIAGONAL:
        weights = tl.where(queries[:, None] >= seen[None, :], weights, 0.0)
    kept = tl.where(row[:, None] * _bits(columns, seen, N, WHOLE)[None, :] >= CUT, weights, 0.0)
    to_logits = kept * to_weights - weights * inner[:, None]
    return tl.dot(to_logits.to(key.dtype), key, gradient)


@triton.jit
def to_queries_kernel(
    projected, rows, columns, mixed, logsumexp, to_mixed, inners, to_projected,
    H: tl.constexpr, N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    SCALE: tl.constexpr, CUT: tl.constexpr, KEPT: tl.constexpr, FACTOR: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of queries of one head, times FACTOR; and `inners` (B, H, N), for `to_keys_kernel`."""
    head, batch = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64)
    begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * QUERIES
    tokens = begin + tl.arange(0, QUERIES)
    STEP: tl.constexpr = 3 * H * D
    here = batch * N * H * D + head * D
    there = batch * N * STEP + head * D
    keys, values = projected + there + H * D, projected + there + 2 * H * D
    query = _tile(projected + there, tokens, STEP, N, D, WIDTH, WHOLE)
    to_out = _tile(to_mixed + here, tokens, H * D, N, D, WIDTH, WHOLE)
    out = _tile(mixed + here, tokens, H * D, N, D, WIDTH, WHOLE)
    inner = tl.sum(to_out.to(tl.float32) * out.to(tl.float32), 1) * KEPT
    tl.store(inners + tl.program_id(0) * N + tokens, inner, mask=tokens < N)
    logs = _of(logsumexp + tl.program_id(0) * N, tokens, float("inf"), N, WHOLE)
    row = _bits(rows + tl.program_id(0) * N, tokens, N, WHOLE)
    gradient = tl.zeros([QUERIES, WIDTH], tl.float32)
    for first in tl.range(0, begin, KEYS):
        gradient = _to_queries(
            gradient, query, to_out, logs, inner, row, keys, values, columns, first, tokens,
            STEP, N, D, WIDTH, WHOLE, SCALE, CUT, False, KEYS,
        )  # fmt: skip
    for first in tl.range(begin, tl.minimum(begin + QUERIES, N), KEYS, num_stages=1):
        gradient = _to_queries(
            gradient, query, to_out, logs, inner, row, keys, values, columns, first, tokens,
            STEP, N, D, WIDTH, WHOLE, SCALE, CUT, True, KEYS,
        )  # fmt: skip
    _write(to_projected + there, gradient * FACTOR, tokens, STEP, N, D, WIDTH)


@triton.jit
def _to_keys(
    to_key, to_value, key, value, column, queries, to_mixed, logsumexp, inners, rows, first, keys,
    STEP: tl.constexpr, H: tl.constexpr, N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    SCALE: tl.constexpr, CUT: tl.constexpr, DIAGONAL: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Add to the gradients of a block of keys and values the parts from the block of queries that begins at `first`."""
    tokens = first + tl.arange(0, QUERIES)
    query = _tile(queries, tokens, STEP, N, D, WIDTH, WHOLE)
    to_out = _tile(to_mixed, tokens, H * D, N, D, WIDTH, WHOLE)
    logs = _of(logsumexp, tokens, float("inf"), N, WHOLE)
    inner = _of(inners, tokens, 0.0, N, WHOLE)
    weights = tl.exp2(tl.dot(key, tl.trans(query)) * SCALE - logs[None, :])
    if DIAGONAL:
        weights = tl.where(tokens[None, :] >= keys[:, None], weights, 0.0)
    kept = tl.where(column[:, None] * _bits(rows, tokens, N, WHOLE)[None, :] >= CUT, weights, 0.0)
    to_logits = kept * tl.dot(value, tl.trans(to_out)) - weights * inner[None, :]
    to_value = tl.dot(kept.to(to_out.dtype), to_out, to_value)
    return tl.dot(to_logits.to(query.dtype), query, to_key), to_value


@triton.jit
def to_keys_kernel(
    projected, rows, columns, logsumexp, to_mixed, inners, to_projected,
    H: tl.constexpr, N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    SCALE: tl.constexpr, CUT: tl.constexpr, KEPT: tl.constexpr, FACTOR: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The gradients of a block of keys, times FACTOR, and of values, of one head."""
    head, batch = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64)
    begin = tl.program_id(1) * KEYS
    tokens = begin + tl.arange(0, KEYS)
    STEP: tl.constexpr = 3 * H * D
    there = batch * N * STEP + head * D
    queries = projected + there
    to_mixed += batch * N * H * D + head * D
    logsumexp += tl.program_id(0) * N
    inners += tl.program_id(0) * N
    rows += tl.program_id(0) * N
    key = _tile(queries + H * D, tokens, STEP, N, D, WIDTH, WHOLE)
    value = _tile(queries + 2 * H * D, tokens, STEP, N, D, WIDTH, WHOLE)
    column = _bits(columns, tokens, N, WHOLE)
    to_key, to_value = tl.zeros([KEYS, WIDTH], tl.float32), tl.zeros([KEYS, WIDTH], tl.float32)
    for first in tl.range(begin, tl.minimum(begin + KEYS, N), QUERIES, num_stages=1):
        to_key, to_value = _to_keys(
            to_key, to_value, key, value, column, queries, to_mixed, logsumexp, inners, rows, first, tokens,
            STEP, H, N, D, WIDTH, WHOLE, SCALE, CUT, True, QUERIES,
        )  # fmt: skip
    for first in tl.range(begin + KEYS, N, QUERIES):
        to_key, to_value = _to_keys(
            to_key, to_value, key, value, column, queries, to_mixed, logsumexp, inners, rows, first, tokens,
            STEP, H, N, D, WIDTH, WHOLE, SCALE, CUT, False, QUERIES,
        )  # fmt: skip
    _write(to_projected + there + H * D, to_key * FACTOR, tokens, STEP, N, D, WIDTH)
    _write(to_projected + there + 2 * H * D, to_value / KEPT, tokens, STEP, N, D, WIDTH)
