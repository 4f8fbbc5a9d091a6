"""Fréchet and kernel Inception distance between two sets of images, from their features (B, D).

Fréchet: Heusel et al. 2017, |m - m'|² + Tr(C + C' - 2 (C C')^½). Kernel: Bińkowski et al. 2018, by torchmetrics.
torchmetrics has the Fréchet distance, too, from features only. Ours is from statistics, which can be kept, and draws no
roots of rounding noise where there are fewer images than features (with 300 images torchmetrics is off by 1e-4).
"""

import io
import os
import warnings
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically

KID_SUBSET_SIZE = 1000


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the Fréchet distance needs to know of a set of features. A sum of two is that of both sets together."""

    count: int
    mean: Tensor
    """Float64 (D,)."""
    covariance: Tensor
    """Float64 (D, D), divided by count - 1; zero for one image."""

    @classmethod
    def of(cls, features: Tensor) -> "Statistics":
        """Of features (N, D), N at least 1."""
        features = features.detach().cpu().double()
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred / max(len(features) - 1, 1))

    def __add__(self, other: "Statistics") -> "Statistics":
        """Chan, Golub and LeVeque 1979: nothing cancels."""
        count = self.count + other.count
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        scatter = self.covariance * (self.count - 1) + other.covariance * (other.count - 1)
        scatter += torch.outer(difference, difference) * (self.count * other.count / count)
        return Statistics(count, mean, scatter / (count - 1))

    @cached_property
    def root(self) -> Tensor:
        """R (D, rank) with R Rᵀ = covariance, from its eigenvalues that are more than rounding noise."""
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        return vectors[:, kept] * values[kept].sqrt()

    def save(self, path: str | os.PathLike) -> None:
        """As an npz file (D = 2048: 34 MB), whole or not there. UserError where nothing can be written."""
        buffer = io.BytesIO()
        np.savez(buffer, count=self.count, mean=self.mean.numpy(), covariance=self.covariance.numpy())
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Statistics":
        """UserError if it is no such file, or damaged."""
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                count, mean, covariance = int(file["count"]), file["mean"], file["covariance"]
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
            raise UserError(f"{path}: expected statistics of features as an npz file{reason}") from error
        fits = mean.ndim == 1 and covariance.shape == (len(mean), len(mean)) and mean.dtype == covariance.dtype == float
        if not (fits and count >= 1 and np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError(f"{path}: expected count, mean (D,) and covariance (D, D), finite and in float64")
        return cls(count, torch.from_numpy(mean), torch.from_numpy(covariance))


def fid(a: Statistics, b: Statistics) -> float:
    """The Fréchet distance of the two Gaussians. Finite with fewer images than features, too.

    It falls as the number of images grows, so it says little without that number.

    Raises:
        UserError: a set has fewer than 2 images.
    """
    for statistics in (a, b):
        _at_least_two("FID", statistics.count)
    # The eigenvalues of C C' = R Rᵀ R' R'ᵀ are the squares of the singular values of Rᵀ R'.
    trace_of_root = torch.linalg.svdvals(a.root.T @ b.root).sum()
    traces = a.covariance.trace() + b.covariance.trace()
    return float((a.mean - b.mean).square().sum() + traces - 2 * trace_of_root)


def kid(a: Tensor, b: Tensor, seed: int) -> tuple[float, float]:
    """The kernel distance of features (N, D) and (M, D): its mean over subsets, and their standard deviation.

    A subset is of min(1000, N, M) images of each, drawn by `seed`. Where that is all of both, there is one, and the
    deviation is 0. The mean has no bias at any N, and may be negative.

    Raises:
        UserError: a set has fewer than 2 images.
    """
    for features in (a, b):
        _at_least_two("KID", len(features))
    subset_size = min(KID_SUBSET_SIZE, len(a), len(b))
    subsets = 1 if len(a) == len(b) == subset_size else 100
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(nn.Identity(), subsets, subset_size)
    metric.update(a.detach().cpu().double(), real=True)
    metric.update(b.detach().cpu().double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def _at_least_two(metric: str, count: int) -> None:
    if count < 2:
        raise UserError(f"{metric}: needs at least 2 images on each side, got {count}")
