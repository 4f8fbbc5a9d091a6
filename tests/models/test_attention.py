"""Attention with dropout on a CPU, computed piece by piece, compared with whole matrices."""

import pytest
import torch

from implicit_slate.models import attention
from implicit_slate.models.attention import attend


def spelled_out(queries, keys, values, rate, dropped):
    """The same with whole matrices; `dropped` (B, heads, N, N) is True where a weight is dropped."""
    logits = queries @ keys.mT * queries.shape[-1] ** -0.5
    logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return (logits.softmax(-1) / (1 - rate)).masked_fill(dropped, 0.0) @ values


def draw(batch=3, heads=2, length=11, width=5, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(batch, heads, length, width, dtype=dtype, requires_grad=True) for _ in range(3)]


def attend_to(queries, keys, values, rate=0.0):
    """`attend` for queries, keys and values of shape (B, heads, N, d)."""
    return attend(torch.stack((queries, keys, values)).permute(1, 3, 0, 2, 4), rate).transpose(1, 2)


@pytest.mark.parametrize(("rows", "piece"), [(4, 1), (4, 60), (64, 2**18)])  # rows that do not divide 11, and one piece
def test_output_and_gradients_are_those_of_the_same_arithmetic_spelled_out(monkeypatch, rows, piece):
    monkeypatch.setattr(attention, "ROWS", rows)
    monkeypatch.setattr(attention, "PIECE", piece)
    tensors, dropped = draw(), torch.zeros(6, 11, 11, dtype=torch.bool)
    pieces = attention._pieces(tensors[0].flatten(0, 1))

    def record(count, rate):
        """Draws as usual, and records which weights are dropped."""
        heads, rows, seen = next(pieces)
        where = drawn(count, rate)
        part = torch.zeros_like(dropped[heads, rows, seen])
        part.view(-1)[where] = True
        dropped[heads, rows, seen] = part
        return where

    drawn = attention.draw_dropped
    monkeypatch.setattr(attention, "draw_dropped", record)
    results = []
    for function, extra in ((attend_to, ()), (spelled_out, (dropped.view(3, 2, 11, 11),))):
        mixed = function(*tensors, 0.3, *extra)
        results.append((mixed, *torch.autograd.grad(mixed.square().sum(), tensors, retain_graph=True)))
        again = torch.autograd.grad(mixed.square().sum(), tensors)  # the graph can be used twice
        assert all(map(torch.equal, results[-1][1:], again))
    assert dropped.any()
    for ours, expected in zip(*results, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-12, atol=1e-12)


def test_weights_are_dropped_at_the_rate_in_every_place(monkeypatch):
    monkeypatch.setattr(attention, "ROWS", 4)
    torch.manual_seed(0)
    queries, values = torch.zeros(20_000, 1, 6, 6), torch.eye(6).expand(20_000, 1, 6, 6)  # so outputs are weights
    weights = attend_to(queries, queries, values, 0.3)[:, 0]
    zero, seen = (weights == 0).float().mean(0), torch.ones(6, 6).tril().bool()
    assert (zero[seen] - 0.3).abs().max() < 5 * (0.3 * 0.7 / len(queries)) ** 0.5
    assert (zero[~seen] == 1).all()
    error = weights.std(0) / len(weights) ** 0.5
    assert ((weights.mean(0) - (1 / torch.arange(1.0, 7.0))[:, None] * seen).abs() <= 5 * error).all()


def test_without_dropout_it_is_scaled_dot_product_attention():
    queries, keys, values = draw(dtype=torch.float32)
    expected = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    assert torch.equal(attend_to(queries, keys, values), expected)


def test_compiled_it_is_still_attention_with_dropout():
    tensors = [x.detach() for x in draw(batch=2000, dtype=torch.float32)]
    compiled = torch.compile(lambda *x: attend_to(*x, 0.3), backend="aot_eager", fullgraph=True)
    expected = attend_to(*tensors)
    samples = compiled(*(x[:1].expand_as(x) for x in tensors))
    assert ((samples.mean(0) - expected[0]).abs() < 6 * samples.std(0) / 2000**0.5 + 1e-6).all()
