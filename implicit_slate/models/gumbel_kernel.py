"""A sample of the relaxed categorical distribution (`dvae.gumbel_softmax`) as a Triton kernel. It reads the logits
once, draws the noise once, and never writes the noise to memory. Inductor's kernel does not hold a whole row of logits,
so it draws the noise twice."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _log2(x, FAST: tl.constexpr):
    """FAST: use the GPU's own instruction, whose error is up to 2⁻²² for x between 1/2 and 2."""
    return libdevice.fast_log2f(x) if FAST else tl.log2(x)


@triton.jit
def _sharpened(row, columns, bits, sharpness, V: tl.constexpr, FAST: tl.constexpr):
    """(A row's logits + Gumbel noise from random 32-bit numbers) times `sharpness`, in units of base-2 logarithms."""
    uniform = tl.minimum((bits.to(tl.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)  # strictly between 0 and 1
    # Exponential number -log(1 - u), by its series if u is small, because the smallest ones give the largest noise.
    series = uniform + uniform * uniform * (0.5 + uniform * (1 / 3))
    exponential = tl.where(uniform < 2.0**-6, series, _log2(1 - uniform, FAST) * (-1 / LOG2E))
    logits = tl.load(row + columns, mask=columns < V, other=float("-inf"))
    return (logits * LOG2E - _log2(exponential, FAST)) * sharpness


@triton.jit
def gumbel_softmax_kernel(logits, tau, seed, soft, V: tl.constexpr, QUARTER: tl.constexpr, FAST: tl.constexpr):
    """One row of logits (M, V) -> one row of `soft` (M, V). The row has four parts, whose random numbers come from one
    call: Philox with 7 rounds, the fewest that pass all tests of Salmon et al. (2011)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, QUARTER)
    logits += row * V
    soft += row * V
    sharpness = 1 / tl.load(tau)
    a, b, c, d = tl.randint4x(tl.load(seed), row * QUARTER + columns, n_rounds=7)
    a = _sharpened(logits, columns, a, sharpness, V, FAST)
    b = _sharpened(logits, columns + QUARTER, b, sharpness, V, FAST)
    c = _sharpened(logits, columns + 2 * QUARTER, c, sharpness, V, FAST)
    d = _sharpened(logits, columns + 3 * QUARTER, d, sharpness, V, FAST)
    largest = tl.max(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), 0)
    a, b, c, d = tl.exp2(a - largest), tl.exp2(b - largest), tl.exp2(c - largest), tl.exp2(d - largest)
    scale = 1 / tl.sum(a + b + c + d, 0)
    _write(soft, columns, a * scale, V)
    _write(soft, columns + QUARTER, b * scale, V)
    _write(soft, columns + 2 * QUARTER, c * scale, V)
    _write(soft, columns + 3 * QUARTER, d * scale, V)


@triton.jit
def _write(row, columns, values, V: tl.constexpr):
    tl.store(row + columns, values.to(row.dtype.element_ty), mask=columns < V)
