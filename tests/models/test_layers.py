"""Our dropout: the distribution of torch's, and its gradient."""

import pytest
import torch

from implicit_slate.models.layers import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    dropped = Dropout(rate)(torch.ones(999, 1001))  # an odd number: the last word of random bits is cut
    zeros = (dropped == 0).float().mean()
    assert abs(zeros - rate) < 5 * (rate * (1 - rate) / dropped.numel()) ** 0.5
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / (1 - rate), rel=2e-4)]
    assert dropped.double().mean() == pytest.approx(1, abs=5 * (rate / (1 - rate) / dropped.numel()) ** 0.5)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    zeros = (Dropout(0.3)(torch.ones(4_000_00)) == 0).double().view(-1, 4)  # four values share a word of random bits
    correlation = torch.corrcoef(zeros.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / len(zeros) ** 0.5


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
