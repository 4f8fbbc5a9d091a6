"""Dropout has the distribution and gradient of torch's, the loss that keeps no logits equals that of all logits, and
random numbers drawn by several threads differ."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from implicit_slate.models import layers
from implicit_slate.models.layers import Dropout, LinearCrossEntropy, draw_dropped, uniform_like


@pytest.mark.parametrize("rate", [1e-4, 0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    dropped = Dropout(rate)(torch.ones(999, 1001))
    zeros = (dropped == 0).float().mean()
    assert abs(zeros - rate) < 5 * (rate * (1 - rate) / dropped.numel()) ** 0.5
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / (1 - rate))]
    assert dropped.double().mean() == pytest.approx(1, abs=5 * (rate / (1 - rate) / dropped.numel()) ** 0.5)


@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_every_place_is_dropped_independently_of_the_others(rate):
    torch.manual_seed(0)
    zeros = torch.stack([Dropout(rate)(torch.ones(6)) == 0 for _ in range(10_000)]).double()
    assert (zeros.mean(0) - rate).abs().max() < 5 * (rate * (1 - rate) / len(zeros)) ** 0.5  # at both ends, too
    correlation = torch.corrcoef(zeros.T) - torch.eye(6)
    assert correlation.abs().max() < 5 / len(zeros) ** 0.5


@pytest.mark.parametrize(("count", "rate"), [(1, 0.01), (3, 0.999), (1000, 1e-9), (100_000, 0.5)])
def test_dropped_indices_are_in_range_and_no_index_comes_twice(count, rate):
    torch.manual_seed(0)
    for _ in range(50):
        dropped = draw_dropped(count, rate)
        assert ((dropped >= 0) & (dropped < count)).all() and (dropped.diff() > 0).all()


def test_dropout_drops_gradients_where_it_drops_values():
    x = torch.randn(8, 33, requires_grad=True)
    y = Dropout(0.5)(x.T)
    y.sum().backward()
    assert torch.allclose(y, x.T * x.grad.T)
    assert 0 < (x.grad == 0).sum() < x.numel()


def test_dropout_repeats_with_the_seed_and_is_idle_in_evaluation_and_at_rate_zero():
    layer, x = Dropout(0.5), torch.randn(100)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x) and torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), 0 * x)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_loss_that_keeps_no_logits_and_its_gradients_are_those_of_all_logits(monkeypatch, rows):
    monkeypatch.setattr(layers, "ROWS", rows)
    torch.manual_seed(0)
    x, weight = torch.randn(20, 6, requires_grad=True), torch.randn(9, 6, requires_grad=True)
    targets = torch.randint(9, (20,))
    ours = 3 * LinearCrossEntropy.apply(x, weight, targets)
    expected = 3 * F.cross_entropy(x @ weight.T, targets, reduction="sum")
    assert torch.allclose(ours, expected)
    assert 3 * LinearCrossEntropy.apply(x, weight, targets, False) == ours  # the path used in validation
    for a, b in zip(torch.autograd.grad(ours, (x, weight)), torch.autograd.grad(expected, (x, weight)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_loss_of_an_impossible_target_is_large_and_finite():
    x, weight = torch.tensor([[1e3]]), torch.tensor([[1.0], [-1.0]])
    assert LinearCrossEntropy.apply(x, weight, torch.tensor([1])) == 2e3


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_numbers_drawn_by_several_threads_are_uniform_and_the_same_with_any_number_of_threads(monkeypatch, threads):
    monkeypatch.setattr(layers, "UNIFORM_PART", 5_000)
    drawn = []
    for count in (1, 2, 5):
        threads(count)
        torch.manual_seed(0)
        drawn.append([uniform_like(torch.empty(7, 4_000)) for _ in range(2)])
    assert all(torch.equal(a, b) for other in drawn[1:] for a, b in zip(drawn[0], other, strict=True))
    first, second = (numbers.flatten() for numbers in drawn[0])
    assert len(torch.cat([first, second]).unique()) > 0.99 * 2 * len(first)  # neither threads nor calls repeat numbers
    assert stats.kstest(first.numpy(), stats.uniform.cdf).pvalue > 1e-3
    parts = torch.stack(torch.cat([first, second])[:55_000].split(5_000))
    assert (torch.corrcoef(parts) - torch.eye(len(parts))).abs().max() < 5 / 5_000**0.5
