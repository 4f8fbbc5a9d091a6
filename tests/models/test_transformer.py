"""The transformer decoder: dependences between positions, its cache, attention with and without dropout."""

import pytest
import torch

from implicit_slate.models import attention, layers
from implicit_slate.models.transformer import CrossAttention, SelfAttention, TransformerDecoder


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(dropout: float = 0.0, num_blocks: int = 2) -> tuple[TransformerDecoder, torch.Tensor, torch.Tensor]:
    """A decoder, an input (B, N, D) and slots (B, K, D)."""
    return TransformerDecoder(16, num_blocks, 4, dropout), torch.randn(2, 9, 16), torch.randn(2, 3, 16)


@pytest.fixture
def without_dropping(monkeypatch):
    """Training mode with the code path of dropout, but without dropping anything."""
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
    layer, x = SelfAttention(16, 4, dropout=0.0, gain=1.0), torch.randn(2, 9, 16)
    projections = layer.project_q, layer.project_k, layer.project_v
    for part, project in zip(layer.queries_keys_values(x).unbind(2), projections, strict=True):
        assert torch.allclose(part, project(x).view(2, 9, 4, 4), atol=1e-6)


def test_attention_to_slots_is_that_of_projected_positions():
    layer, x, slots = CrossAttention(16, 4, dropout=0.0, gain=1.0), torch.randn(2, 9, 16), torch.randn(2, 3, 16)
    x.requires_grad_(), slots.requires_grad_()
    queries, keys, values = (
        project(of).unflatten(-1, (4, 4)).transpose(1, 2)
        for project, of in ((layer.project_q, x), (layer.project_k, slots), (layer.project_v, slots))
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)
    ours, expected = layer(x, slots), layer.project_out(mixed.transpose(1, 2).flatten(2))
    assert torch.allclose(ours, expected, atol=1e-6)
    gradients = (torch.autograd.grad(y.square().sum(), [*layer.parameters(), x, slots]) for y in (ours, expected))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attend", ["self", "cross"])
def test_dropout_on_attention_weights_is_unbiased_and_there(attend):
    x, slots = torch.randn(1, 9, 16), torch.randn(1, 3, 16)
    layer = {"self": SelfAttention, "cross": CrossAttention}[attend](16, 4, dropout=0.3, gain=1.0)
    memory = {"self": (), "cross": (slots.expand(20_000, 3, 16),)}[attend]
    with torch.no_grad():
        expected = layer.eval()(x, *(m[:1] for m in memory))
        samples = layer.train()(x.expand(20_000, 9, 16), *memory)
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - expected[0]).abs() < 5 * error).all()
    # Attention weights are dropped before outputs; otherwise a kept output would always be the same.
    kept = samples[:, 0, 0][samples[:, 0, 0] != 0]
    assert kept.std() > 0.01
