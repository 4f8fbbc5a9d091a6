"""That both paths generate the same, and are timed."""

import pytest
import torch

from benchmarks import generation
from implicit_slate import SLATE
from tests.tiny import SLATE_SIZES


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SLATE(**SLATE_SIZES).eval()


def test_the_plain_path_generates_what_the_cache_does(model):
    slots = model.sample_slots(2).detach()
    tokens = model.generate(slots)
    for length in range(model.num_tokens):
        assert torch.equal(generation.plain_step(model, tokens[:, :length], slots), tokens[:, length])


def test_both_are_timed(model):
    result = generation.compare(model, batch_size=2, parts=3)
    assert result.cached > 0 and result.plain > 0 and result.ratio == result.plain / result.cached


def test_paths_that_disagree_are_not_compared(model, monkeypatch):
    monkeypatch.setattr(generation, "plain_step", lambda model, tokens, slots: torch.full((len(slots),), -1))
    with pytest.raises(RuntimeError, match="disagree"):
        generation.compare(model, batch_size=2, parts=1)
