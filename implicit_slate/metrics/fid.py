"""Fréchet and kernel Inception distance between two sets of images, from their features (N, D).

Fréchet: Heusel et al. 2017, ‖m - m'‖² + Tr(C + C' - 2 (C C')^½). Kernel: Bińkowski et al. 2018, by torchmetrics.
torchmetrics computes the Fréchet distance from the eigenvalues of the unsymmetric matrix C C', which lose digits if
there are fewer images than features; the singular values used here do not.
"""

import warnings

import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from implicit_slate.errors import UserError

KID_SUBSET_SIZE = 1000


def fid(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance between Gaussians fitted to features (N, D) and (M, D); N and M may be below D.

    It falls as the number of images grows, so compare only equal numbers of images.

    Raises:
        UserError: a set has fewer than 2 images.
    """
    a, b = (features.detach().cpu().double() for features in (a, b))
    for features in (a, b):
        _at_least_two("FID", len(features))
    # With C = Fᵀ F, the eigenvalues of C C' are the squares of the singular values of F F'ᵀ.
    factors = [_factor(features) for features in (a, b)]
    trace_of_root = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    traces = sum(factor.square().sum() for factor in factors)
    return float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * trace_of_root)


def _factor(features: Tensor) -> Tensor:
    """F (min(N, D), D) with Fᵀ F = the covariance of features (N, D)."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R


def kid(a: Tensor, b: Tensor, seed: int) -> float:
    """The kernel distance between features (N, D) and (M, D): its mean over subsets, which is unbiased for any N, and
    may be negative.

    Each of 100 subsets has min(1000, N, M) images of both sets, drawn with `seed`. If these are all images of both
    sets, there is one subset.

    Raises:
        UserError: a set has fewer than 2 images.
    """
    for features in (a, b):
        _at_least_two("KID", len(features))
    subset_size = min(KID_SUBSET_SIZE, len(a), len(b))
    subsets = 1 if len(a) == len(b) == subset_size else 100
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
        # The features already come from all processes.
        metric = KernelInceptionDistance(nn.Identity(), subsets, subset_size, sync_on_compute=False)
    metric.update(a.detach().cpu().double(), real=True)
    metric.update(b.detach().cpu().double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, _ = metric.compute()
    return float(mean)


def _at_least_two(metric: str, count: int) -> None:
    if count < 2:
        raise UserError(f"{metric}: needs at least 2 images on each side, got {count}")
