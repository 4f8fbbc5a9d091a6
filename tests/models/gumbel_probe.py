"""The Gumbel kernel's noise for given random bits, for a test. It needs its own file because Triton compiles files."""

import math

import torch
import triton
import triton.language as tl

from implicit_slate.models.gumbel_kernel import _sharpened


@triton.jit
def _noise_kernel(bits, logits, noise, N: tl.constexpr, FAST: tl.constexpr):
    index = tl.arange(0, N)
    numbers = tl.load(bits + index).to(tl.uint32, bitcast=True)
    tl.store(noise + index, _sharpened(logits, index, numbers, 1.0, N, FAST))


def noise_of(numbers: list[int], device: str) -> torch.Tensor:
    """The noise for the given 32-bit random numbers, whose count must be a power of two."""
    bits = torch.tensor(numbers).to(torch.int32).to(device)
    noise = torch.empty(len(bits), device=device)
    _noise_kernel[(1,)](bits, torch.zeros_like(noise), noise, N=len(bits), FAST=device == "cuda")
    return noise.cpu() * math.log(2)
