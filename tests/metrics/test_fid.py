"""FID and KID of features: closed forms, torchmetrics, few images, statistics that are added up and kept."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from implicit_slate.errors import UserError
from implicit_slate.metrics.fid import Statistics, fid, kid


def features(count: int, dimensions: int = 16, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=generator)
    return torch.randn(count, dimensions, generator=generator) @ mix + shift


def gaussian(dimensions: int, seed: int) -> Statistics:
    draw = features(3 * dimensions, dimensions, seed).double()
    return Statistics(1000, draw[0], draw.T @ draw / len(draw))


@pytest.mark.parametrize(("count", "dimensions"), [(2, 16), (10, 64), (300, 16), (300, 64)])
def test_of_a_set_with_itself_is_zero(count, dimensions):
    statistics = Statistics.of(100 * features(count, dimensions))
    assert abs(fid(statistics, statistics)) < 1e-3
    assert abs(fid(statistics, Statistics.of(100 * features(count, dimensions).flip(0)))) < 1e-3


def test_diagonal_gaussians():
    a, b = torch.tensor([1.0, 4.0, 0.0, 9.0]).double(), torch.tensor([1.0, 1.0, 4.0, 0.0]).double()
    mean = torch.tensor([0.0, 0.0, 0.0, 2.0]).double()
    expected = 4 + 0 + 1 + 4 + 9  # |m - m'|² + Σ (σ - σ')²
    assert fid(Statistics(9, mean, a.diag()), Statistics(7, 0 * mean, b.diag())) == pytest.approx(expected, abs=1e-12)


def test_gaussians_in_the_plane():
    """There the trace of (C C')^½ is (Tr C C' + 2 (det C det C')^½)^½."""
    a, b = gaussian(2, 1), gaussian(2, 2)
    product = a.covariance @ b.covariance
    trace = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * trace
    assert fid(a, b) == pytest.approx(expected.item(), rel=1e-12)


def test_general_gaussians_by_scipy_s_matrix_root():
    a, b = gaussian(24, 1), gaussian(24, 2)
    root = np.real(scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()))
    expected = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * np.trace(root)
    assert fid(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert fid(b, a) == pytest.approx(fid(a, b), rel=1e-12)


def test_many_samples_come_near_the_gaussians_they_are_of():
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(40_000, 8, generator=generator) for _ in range(2)]
    found = fid(Statistics.of(draws[0]), Statistics.of(3 * draws[1] + 1))
    assert found == pytest.approx(8 * 1 + 8 * (3 - 1) ** 2, rel=0.02)


class PassThrough(nn.Identity):
    num_features = 16


def test_is_torchmetrics_distance_of_the_same_features():
    a, b = features(500), features(400, seed=1, shift=0.5)
    metric = FrechetInceptionDistance(PassThrough())
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    assert fid(Statistics.of(a), Statistics.of(b)) == pytest.approx(metric.compute().item(), rel=1e-9)


def test_fewer_images_than_features():
    """Then the trace is the nuclear norm of the product of the centred features."""
    a, b = features(12, 64).double(), features(9, 64, seed=1, shift=2.0).double()
    centred = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    traces = sum(x.square().sum() for x in centred) - 2 * torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + traces
    assert fid(Statistics.of(a), Statistics.of(b)) == pytest.approx(expected.item(), rel=1e-9)


def test_images_that_are_all_the_same():
    same, other = Statistics.of(torch.ones(5, 8)), Statistics.of(torch.zeros(5, 8))
    assert fid(same, other) == pytest.approx(8) and fid(same, same) == 0


@pytest.mark.parametrize("sizes", [[20, 30], [1, 49], [1] * 50, [49, 1]])
def test_statistics_add_up_over_batches(sizes):
    whole = features(50).double() + 1e6  # a mean at which a sum of squares would lose most digits
    total, *rest = [Statistics.of(batch) for batch in whole.split(sizes)]
    for part in rest:
        total = total + part
    direct = Statistics.of(whole)
    assert total.count == 50
    assert torch.allclose(total.mean, direct.mean, rtol=1e-12)
    assert torch.allclose(total.covariance, torch.cov(whole.T), rtol=1e-6, atol=1e-8)
    assert torch.allclose(direct.covariance, torch.cov(whole.T), rtol=1e-6, atol=1e-8)


def test_statistics_are_the_same_from_a_file(tmp_path):
    statistics = Statistics.of(features(40))
    statistics.save(tmp_path / "new" / "train.npz")
    loaded = Statistics.load(tmp_path / "new" / "train.npz")
    assert loaded.count == 40 and torch.equal(loaded.mean, statistics.mean)
    assert torch.equal(loaded.covariance, statistics.covariance) and fid(loaded, statistics) < 1e-9


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def pickled(path):
    np.savez(path, count=3, mean=np.array([object()]), covariance=np.zeros((1, 1)))


@pytest.mark.parametrize("damage", [
    cut, pickled, lambda path: path.unlink(), lambda path: path.write_text("words"),
    lambda path: np.savez(path, mean=np.zeros(3)),
    lambda path: np.savez(path, count=3, mean=np.zeros(3), covariance=np.zeros((3, 2))),
    lambda path: np.savez(path, count=3, mean=np.zeros(3), covariance=np.full((3, 3), np.nan)),
    lambda path: np.savez(path, count=0, mean=np.zeros(3), covariance=np.zeros((3, 3))),
    lambda path: np.save(path.open("wb"), np.zeros(3)),
])
def test_a_damaged_file_is_one_line(tmp_path, damage):
    path = tmp_path / "statistics.npz"
    Statistics.of(features(40)).save(path)
    damage(path)
    with pytest.raises(UserError, match=r"statistics\.npz: expected") as raised:
        Statistics.load(path)
    assert "\n" not in str(raised.value)


def test_one_image_only():
    one, many = features(1), features(9)
    with pytest.raises(UserError, match="FID: needs at least 2 images on each side, got 1"):
        fid(Statistics.of(many), Statistics.of(one))
    with pytest.raises(UserError, match="KID: needs at least 2 images on each side, got 1"):
        kid(one, many, seed=0)


def test_kid_of_few_images_is_the_unbiased_estimate():
    a, b = features(30).double(), features(30, seed=1, shift=1.0).double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def between(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    expected = between(a) + between(b) - 2 * kernel(a, b).mean()
    assert kid(a.float(), b.float(), seed=0) == (pytest.approx(expected.item(), rel=1e-5), 0.0)


def test_kid_is_a_function_of_the_seed_and_draws_nothing_elsewhere():
    a, b = features(60), features(40, seed=1, shift=1.0)
    state = torch.random.get_rng_state()
    first, second, other = kid(a, b, seed=0), kid(a, b, seed=0), kid(a, b, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == second != other and first[1] > 0


def test_kid_of_one_distribution_is_near_zero():
    same, far = kid(features(400), features(800)[400:], 0), kid(features(400), features(400, shift=1.0), 0)
    assert abs(same[0]) < 0.1 * far[0]
