"""Layers and initialisations that several parts of SLATE share."""

import math
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def linear(
    in_features: int, out_features: int, bias: bool = True, gain: float = 1.0, before_relu: bool = False
) -> nn.Linear:
    """A linear layer with zero bias; weights are Xavier-uniform times `gain`, or Kaiming-uniform before a ReLU."""
    layer = nn.Linear(in_features, out_features, bias)
    if before_relu:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    else:
        nn.init.xavier_uniform_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def xavier_uniform_(module: nn.Module) -> None:
    """Set all linear and convolutional layers of `module` to Keras's default: Xavier-uniform weights, zero biases."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """Two linear layers with a ReLU in between."""
    return nn.Sequential(linear(in_features, hidden, before_relu=True), nn.ReLU(), linear(hidden, out_features))


ROWS, GPU_ROWS = 1024, 8192
"""Rows of logits that `LinearCrossEntropy` holds at once. On a GPU larger pieces save 7% of an uncompiled step at the
paper's size, for half a gigabyte."""


class Dropout(nn.Dropout):
    """`nn.Dropout` at a fraction of its cost on a CPU: torch draws a random number for every value, `draw_dropped` only
    for every dropped value."""

    def forward(self, x: Tensor) -> Tensor:
        is_idle = not self.training or self.p in (0.0, 1.0)
        if is_idle or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        scaled = x.contiguous() * (1 / (1 - self.p))
        return scaled.view(-1).index_fill_(0, draw_dropped(x.numel(), self.p), 0.0).view(x.shape)


def draw_dropped(count: int, rate: float) -> Tensor:
    """The sorted indices below `count` that are dropped if each is dropped with probability `rate`, 0 < rate < 1.

    The gaps between dropped indices are geometric: floor(log U / log(1 - rate)) + 1 with a uniform U.
    """
    expected = count * rate
    enough = int(expected + 8 * math.sqrt(expected) + 8)  # eight standard deviations: practically never exceeded
    uniform = 1 - torch.rand(enough)  # above 0
    gaps = uniform.log_().mul_(1 / math.log1p(-rate)).clamp_max_(count).to(torch.int64).add_(1)
    indices = gaps.cumsum(0).sub_(1)
    return indices[: int(torch.searchsorted(indices, count))]


UNIFORM_PART = 2**20
"""How many numbers one thread draws at a time in `uniform_like`."""


def uniform_like(x: Tensor) -> Tensor:
    """Uniform float32 numbers from [0, 1) in the shape of `x`; on a CPU, large tensors are drawn by all torch threads.

    torch itself draws on a single thread, which takes 7% of a step at 64×64 and V = 4096; this function takes half of
    that on two cores. The numbers do not depend on the number of threads.
    """
    if x.device.type != "cpu" or x.numel() <= UNIFORM_PART or torch.compiler.is_compiling():
        return torch.rand_like(x, dtype=torch.float32)
    numbers = torch.empty(x.shape, dtype=torch.float32)
    parts = numbers.view(-1).split(UNIFORM_PART)
    seeds = torch.randint(2**63 - 1, (len(parts),)).tolist()

    def draw(part: Tensor, seed: int) -> None:
        part.uniform_(generator=torch.Generator().manual_seed(seed))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(draw, parts, seeds))  # `list` re-raises a thread's exception
    return numbers


class LinearCrossEntropy(torch.autograd.Function):
    """The cross-entropy, summed over M rows, of the logits x @ weight.T and the targets (M,): x (M, D), weight (V, D).

    The forward pass computes logits and their gradient for a few rows at a time and then frees them, so (M, V) numbers
    are never in memory. (torch has `linear_cross_entropy` from 2.13 on; it is a tenth slower on a CPU.) If no gradient
    is recorded, as in validation, `with_gradient=False` saves two of three matrix products.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, with_gradient: bool = True) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        loss = torch.zeros((), dtype=precise, device=x.device)
        to_x, to_weight = [], torch.zeros_like(weight)
        size = ROWS if x.device.type == "cpu" else GPU_ROWS
        for rows, part in zip(x.split(size), targets.split(size), strict=True):
            logits = F.linear(rows, weight)
            log_probabilities, targeted = logits.log_softmax(-1, dtype=precise), part[:, None]
            loss = loss - log_probabilities.gather(-1, targeted).sum()  # with `-=`, torch 2.11 compiles a zero gradient
            if not with_gradient:
                continue
            to_logits = log_probabilities.exp_().scatter_add_(-1, targeted, -torch.ones_like(targeted, dtype=precise))
            to_logits = to_logits.to(logits.dtype)
            to_x.append(to_logits @ weight)
            to_weight += to_logits.mT @ rows
        if with_gradient:
            ctx.save_for_backward(torch.cat(to_x), to_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        to_x, to_weight = ctx.saved_tensors
        return gradient * to_x, gradient * to_weight, None, None
