"""The transformer decoder: what a position depends on, its cache, attention with and without dropout."""

import pytest
import torch

from implicit_slate.models import attention, layers
from implicit_slate.models.transformer import Attention, TransformerDecoder


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(dropout: float = 0.0, num_blocks: int = 2) -> tuple[TransformerDecoder, torch.Tensor, torch.Tensor]:
    """A decoder, an input (B, N, D) and slots (B, K, D)."""
    return TransformerDecoder(16, num_blocks, 4, dropout), torch.randn(2, 9, 16), torch.randn(2, 3, 16)


@pytest.fixture
def without_dropping(monkeypatch):
    """Training mode with the code path of dropout, and nothing dropped."""
    for module in (attention, layers):
        monkeypatch.setattr(module, "draw_dropped", lambda count, rate: torch.empty(0, dtype=torch.long))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_position_sees_no_later_one(dropout, without_dropping):
    decoder, x, slots = make(dropout)
    later = x.clone()
    later[:, 5:] += torch.randn(2, 4, 16)
    before, after = decoder(x, slots), decoder(later, slots)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert ((before - after)[:, 5:].abs().amax(-1) > 1e-3).all()


def test_every_position_sees_itself_and_every_slot():
    decoder, x, slots = make()
    x.requires_grad_(), slots.requires_grad_()
    decoder(x, slots)[0, 4, 0].backward()  # one feature: the sum of a LayerNorm's outputs is constant
    assert (x.grad[0, :5].abs().amax(-1) > 0).all() and not x.grad[0, 5:].any()
    assert (slots.grad[0].abs().amax(-1) > 0).all() and not slots.grad[1].any()


def test_projections_in_one_product_are_those_one_by_one():
    layer, x = Attention(16, 4, dropout=0.0, gain=1.0), torch.randn(2, 9, 16)
    together = layer.queries_keys_values(x)
    for part, project in zip(together, (layer.project_q, layer.project_k, layer.project_v), strict=True):
        assert torch.allclose(part, project(x).view(2, 9, 4, 4).transpose(1, 2), atol=1e-6)
    assert torch.allclose(together[0], layer.queries(x), atol=1e-6)
    for part, alone in zip(together[1:], layer.keys_and_values(x), strict=True):
        assert torch.allclose(part, alone, atol=1e-6)


def test_dropout_on_attention_weights_is_unbiased_and_there():
    layer, x = Attention(16, 4, dropout=0.3, gain=1.0), torch.randn(1, 9, 16)
    with torch.no_grad():
        expected = layer.eval()(*layer.queries_keys_values(x))
        samples = layer.train()(*layer.queries_keys_values(x.expand(20_000, 9, 16)))
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - expected[0]).abs() < 5 * error).all()
    # Weights are dropped before outputs are: without that, a kept output would always be the same.
    kept = samples[:, 0, 0][samples[:, 0, 0] != 0]
    assert kept.std() > 0.01
