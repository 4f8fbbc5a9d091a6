"""The discrete VAE: images to grids of N = (H/4)² tokens, and back (Ramesh et al. 2021; docs/method.md)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from implicit_slate.models import gumbel_gpu
from implicit_slate.models.layers import uniform_like, xavier_uniform_

WIDTH = 64
"""Channels of every hidden layer."""


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, where a 1×1 convolution of channels-last images is computed as a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        # By default torch uses TF32 for convolutions of float32 on a GPU, but not for matrix products.
        is_slower = x.device.type == "cuda" and not torch.is_autocast_enabled("cuda")
        if self.kernel_size == (1, 1) and x.is_contiguous(memory_format=torch.channels_last) and not is_slower:
            return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)
        return super().forward(x)


class ImageNorm(nn.GroupNorm):
    """`nn.GroupNorm` with one group, whose compiled version keeps the memory layout."""

    def __init__(self, channels: int):
        super().__init__(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and self.weight.dtype in (torch.float32, torch.float64):
            return _Normalise.apply(x, self.weight, self.bias, self.eps)
        return super().forward(x)


class _Normalise(torch.autograd.Function):
    """Normalise each image (B, C, H, W) of any precision to mean 0 and variance 1; apply weight and bias, both (C,).

    Inductor computes torch's group norm in a different layout than the channels-last one of the neighbouring
    convolutions, with copies in between. Its own backward pass of these lines has three times as many kernels.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        precise, count = x.to(weight.dtype), x.shape[1:].numel()
        mean, mean_square = (y.sum((2, 3)).sum(1)[:, None, None, None] / count for y in (precise, precise.square()))
        # `var_mean` takes 167 µs for the largest images on an H200, where reading them takes 14 µs.
        scale = ((mean_square - mean.square()).clamp_min(0) + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale)
        return (precise - mean) * scale * weight[:, None, None] + bias[:, None, None]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight, mean, scale = ctx.saved_tensors
        normed = (x.to(weight.dtype) - mean) * scale
        to_bias, to_weight = gradient.sum((2, 3)), (gradient * normed).sum((2, 3))  # for each image
        along_mean, along_normed = ((each * weight).sum(1)[:, None, None, None] for each in (to_bias, to_weight))
        to_x = scale * (gradient * weight[:, None, None] - (along_mean + normed * along_normed) / x.shape[1:].numel())
        return to_x.to(x.dtype), to_weight.sum(0), to_bias.sum(0), None


def conv_block(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> nn.Module:
    """Convolution without bias, GroupNorm with one group, ReLU."""
    conv = Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, ImageNorm(out_channels), nn.ReLU())


def conv1x1(in_channels: int, out_channels: int) -> nn.Module:
    conv = Conv2d(in_channels, out_channels, 1)
    xavier_uniform_(conv)
    return conv


class DiscreteVAE(nn.Module):
    """An encoder to logits over V codes for each token, and a decoder from codes or mixtures of them.

    Codes have the shape (B, N, V). This is how channels-last convolutions lay out their memory, so softmax and sampling
    run along contiguous numbers.
    """

    def __init__(self, vocab_size: int, image_channels: int = 3):
        super().__init__()
        self.encoder = nn.Sequential(
            conv_block(image_channels, WIDTH, 4, stride=4),
            *(conv_block(WIDTH, WIDTH, 1) for _ in range(6)),
            conv1x1(WIDTH, vocab_size),
        )
        self.decoder = nn.Sequential(
            conv_block(vocab_size, WIDTH, 1),
            conv_block(WIDTH, WIDTH, 3, padding=1),
            conv_block(WIDTH, WIDTH, 1),
            conv_block(WIDTH, WIDTH, 1),
            conv_block(WIDTH, 4 * WIDTH, 1),
            nn.PixelShuffle(2),
            conv_block(WIDTH, WIDTH, 3, padding=1),
            conv_block(WIDTH, WIDTH, 1),
            conv_block(WIDTH, WIDTH, 1),
            conv_block(WIDTH, 4 * WIDTH, 1),
            nn.PixelShuffle(2),
            conv1x1(WIDTH, image_channels),
        )
        self.to(memory_format=torch.channels_last)

    def logits(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> unnormalised log probabilities (B, N, V), tokens row by row.

        Computed without autocast, so the tokens that the transformer learns are the same in every precision.
        """
        with torch.autocast(image.device.type, enabled=False):
            features = self.encoder(image.contiguous(memory_format=torch.channels_last))
        return features.permute(0, 2, 3, 1).flatten(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Soft or one-hot codes (B, N, V) -> image (B, C, H, W), not clamped."""
        side = math.isqrt(codes.shape[1])
        return self.decoder(codes.unflatten(1, (side, side)).permute(0, 3, 1, 2))

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) -> image (B, C, H, W), not clamped: `decode` of one-hot codes, as a table look-up."""
        conv, norm, relu = self.decoder[0].children()
        side = math.isqrt(tokens.shape[1])
        codes = conv.get_parameter("weight")[:, :, 0, 0].T  # (V, WIDTH)
        features = F.embedding(tokens, codes).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return self.decoder[1:](relu(norm(features)))


def squared_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """The dVAE's loss on images (B, C, H, W): squared error summed over C, H, W, mean over B."""
    if torch.compiler.is_compiling():  # the compiled kernel's gradient would not have the layout that inductor expects
        reconstruction = reconstruction.contiguous()
    return F.mse_loss(reconstruction, image, reduction="sum") / len(image)


def gumbel_softmax(logits: Tensor, tau: float | Tensor, hard: bool = False, noise: Tensor | None = None) -> Tensor:
    """A sample of the relaxed categorical distribution over the last dimension (Jang et al. 2017), like `logits`.

    Args:
        tau: temperature.
        hard: return one-hot values with the gradient of the soft ones (straight-through).
        noise: standard Gumbel noise; drawn if not given.
    """
    if noise is None:
        if not hard and gumbel_gpu.takes(logits):
            return gumbel_gpu.sample(logits, tau)
        noise = gumbel_noise(logits)
    soft = (logits + noise).div_(tau).softmax(-1).to(logits.dtype)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return one_hot + (soft - soft.detach())


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log U) in the shape of `like`, always in float32.

    Computed in place from uniform numbers; torch draws exponential numbers one by one, which is far slower.
    """
    return uniform_like(like).log_().neg_().log_().neg_()


@torch.no_grad()
def sample_tokens(logits: Tensor) -> Tensor:
    """Sample tokens from softmax(logits), (B, N, V) -> (B, N): distributed as the argmax of a Gumbel-softmax sample.

    This takes two random numbers per token, one to choose a block of the vocabulary and one to choose the token in the
    block; Gumbel noise would take V. Inverting the whole distribution function would take one, but its cumulative sum
    costs more. Cumulative sums are at least float32: with an 8-bit significand rare tokens would never be drawn.
    """
    probabilities = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    blocks = probabilities.unflatten(-1, (-1, math.gcd(logits.shape[-1], 64)))
    block = _draw(blocks.sum(-1))
    inside = _draw(blocks.take_along_dim(block[..., None, None], dim=-2).squeeze(-2))
    return block * blocks.shape[-1] + inside


def _draw(weights: Tensor) -> Tensor:
    """Sample an index of the last dimension, with probability proportional to `weights`, by inverse transform."""
    cumulative = weights.cumsum(-1)
    threshold = torch.rand_like(cumulative[..., :1]) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp_max(weights.shape[-1] - 1)
