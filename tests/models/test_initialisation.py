"""Initial weights as in docs/method.md: Xavier or Kaiming uniform, and the exceptions."""

import re

import pytest
import torch

from implicit_slate import SLATE
from implicit_slate.models import PropertyPredictor, SpatialBroadcast

BEFORE_RELU = r"dvae\..*\.0\.weight|slot_encoder\.1\.0\.weight|slot_attention\.mlp\.0\.weight|.*\.ffn\.0\.weight"
BRANCH_ENDS = r"transformer\.blocks\.\d\.(\w+_attention\.project_out|ffn\.2)\.weight"


def slate():
    return SLATE(image_size=64, vocab_size=256, d_model=64, slot_size=64, slot_mlp_size=96, num_blocks=4, num_heads=4)


def broadcast():
    return SpatialBroadcast(image_size=32)


def predictor():
    return PropertyPredictor(image_size=32)


@pytest.mark.parametrize("make", [slate, broadcast, predictor])
def test_every_parameter_starts_as_its_source_has_it(make):
    torch.manual_seed(0)
    for name, p in make().named_parameters():
        if p.ndim == 1:  # norms and biases
            assert (p == (1 if name.endswith("weight") else 0)).all(), name
        elif name == "dictionary.weight":
            assert p.std().item() == pytest.approx(1, abs=0.03)
        elif name == "positions":
            assert p.std().item() == pytest.approx(0.88, abs=0.12)  # that of a normal distribution truncated at ±2
            assert p.abs().max() <= 2
        elif name == "slot_attention.gru.weight_hh":
            assert torch.allclose(p.T @ p, torch.eye(len(p.T)), atol=1e-5)
        else:
            kernel = p[0, 0].numel()
            fan_in, fan_out = kernel * p.shape[1], kernel * p.shape[0]
            bound = (6 / (fan_in + fan_out)) ** 0.5 * (12**-0.5 if re.fullmatch(BRANCH_ENDS, name) else 1)
            if make is slate and re.fullmatch(BEFORE_RELU, name):
                bound = (6 / fan_in) ** 0.5
            assert 0.85 * bound < p.abs().max() <= bound * (1 + 1e-6), name
            assert p.numel() < 1000 or p.std().item() == pytest.approx(bound / 3**0.5, rel=0.06), name
