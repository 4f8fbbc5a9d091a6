"""FID and KID of features: closed forms, comparison with torchmetrics, few images."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from implicit_slate.errors import UserError
from implicit_slate.metrics import fid as fid_module
from implicit_slate.metrics.fid import fid, kid


def features(count: int, dimensions: int = 16, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=generator)
    return torch.randn(count, dimensions, generator=generator) @ mix + shift


def covariance(dimensions: int, seed: int) -> Tensor:
    return features(3 * dimensions, dimensions, seed).T.double().cov()


def having(mean: Tensor, covariance: Tensor) -> Tensor:
    """Features (2 D, D) with exactly this mean and covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * (values.clamp_min(0) * (2 * len(mean) - 1) / 2).sqrt()
    return mean + torch.cat([root.T, -root.T])


@pytest.mark.parametrize(("count", "dimensions"), [(2, 16), (10, 64), (300, 16), (300, 64)])
def test_of_a_set_with_itself_is_zero(count, dimensions):
    whole = 100 * features(count, dimensions)
    assert abs(fid(whole, whole)) < 1e-3
    assert abs(fid(whole, whole.flip(0))) < 1e-3


def test_is_the_closed_form_of_gaussians():
    a, b = torch.tensor([1.0, 4.0, 0.0, 9.0]).double(), torch.tensor([1.0, 1.0, 4.0, 0.0]).double()
    mean = torch.tensor([0.0, 0.0, 0.0, 2.0]).double()
    expected = 4 + 0 + 1 + 4 + 9  # |m - m'|² + Σ (σ - σ')²
    assert fid(having(mean, a.diag()), having(0 * mean, b.diag())) == pytest.approx(expected, abs=1e-12)

    mean, a, b = features(1, 24)[0].double(), covariance(24, 1), covariance(24, 2)
    root = np.real(scipy.linalg.sqrtm(a.numpy() @ b.numpy()))
    expected = mean.square().sum() + (a + b).trace() - 2 * np.trace(root)
    first, second = having(mean, a), having(0 * mean, b)
    assert fid(first, second) == pytest.approx(expected.item(), rel=1e-9)
    assert fid(second, first) == pytest.approx(fid(first, second), rel=1e-12)


class PassThrough(nn.Identity):
    num_features = 16


@pytest.mark.parametrize(("counts", "digits"), [((500, 400), 1e-9), ((12, 400), 1e-4), ((12, 9), 1e-4)])
def test_is_torchmetrics_distance_of_the_same_features(counts, digits):
    """Also with fewer images than features, where torchmetrics loses digits."""
    a, b = features(counts[0]), features(counts[1], seed=1, shift=0.5)
    metric = FrechetInceptionDistance(PassThrough())
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    assert fid(a, b) == pytest.approx(metric.compute().item(), rel=digits)


def test_images_that_are_all_the_same():
    same, other = torch.ones(5, 8), torch.zeros(5, 8)
    assert fid(same, other) == pytest.approx(8) and fid(same, same) == 0


def test_one_image_only():
    one, many = features(1), features(9)
    with pytest.raises(UserError, match="FID: needs at least 2 images on each side, got 1"):
        fid(many, one)
    with pytest.raises(UserError, match="KID: needs at least 2 images on each side, got 1"):
        kid(one, many, seed=0)


def unbiased(a: Tensor, b: Tensor) -> float:
    """The kernel distance between all of a and all of b."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def between(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    a, b = a.double(), b.double()
    return (between(a) + between(b) - 2 * kernel(a, b).mean()).item()


def test_kid_of_few_images_is_the_unbiased_estimate():
    a, b = features(30), features(30, seed=1, shift=1.0)
    assert kid(a, b, seed=0) == pytest.approx(unbiased(a, b), rel=1e-5)


@pytest.mark.parametrize("count", [40, 60])
def test_kid_is_the_mean_of_many_subsets_unless_one_holds_all_images(monkeypatch, count):
    monkeypatch.setattr(fid_module, "KID_SUBSET_SIZE", 40)
    a, b = features(60), features(count, seed=1, shift=1.0)
    assert kid(a, b, seed=0) == pytest.approx(unbiased(a, b), rel=0.04)


def test_kid_of_subsets_is_a_function_of_the_seed_and_small_within_one_distribution():
    a, b = features(60), features(40, seed=1, shift=1.0)
    state = torch.random.get_rng_state()
    first, second, other = kid(a, b, seed=0), kid(a, b, seed=0), kid(a, b, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == second != other
    same = kid(features(400), features(800)[400:], seed=0)
    assert abs(same) < 0.1 * kid(features(400), features(400, shift=1.0), seed=0)
