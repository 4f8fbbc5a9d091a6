"""The training-step benchmark, on a model that takes milliseconds."""

import pytest
import torch

from benchmarks import training_step
from benchmarks.common import in_turn
from benchmarks.plain_slate import PlainSLATE
from implicit_slate import SLATE
from tests.tiny import SLATE_SIZES

LOSS = training_step.loss_of
ROUNDED = torch.autocast("cpu", torch.bfloat16)(LOSS)


@pytest.mark.parametrize(("model", "compute"), [(SLATE, LOSS), (PlainSLATE, LOSS), (SLATE, ROUNDED)])
def test_one_step_moves_every_trained_parameter(model, compute):
    torch.manual_seed(0)
    model = model(**SLATE_SIZES, gradient="unrolled")
    before = [p.detach().clone() for p in model.parameters()]
    training_step.make_step(model, torch.rand(4, 3, 16, 16), compute)()
    for (name, after), old in zip(model.named_parameters(), before, strict=True):
        unused = name == "dictionary.weight"  # rows of tokens that do not occur
        assert torch.equal(after, old) <= unused, name
        assert (after - old).abs().max() <= 1.01e-4  # the size of Adam's first step is the learning rate


def test_measurements_take_turns_after_one_that_warms_up():
    order = []
    values = in_turn({name: lambda name=name: order.append(name) or len(order) for name in "ab"}, rounds=3)
    assert order == list("baabbaab") and values == {"a": [3, 6, 7], "b": [4, 5, 8]}


def test_both_models_are_timed_and_their_peak_holds_the_maps_over_the_vocabulary():
    sizes, batch = SLATE_SIZES | dict(image_size=32, vocab_size=4096), 16
    one_map = 4 * batch * 64 * 4096  # bytes of B×N×V numbers; at least five such maps exist at once
    assert 5 * one_map < training_step.peak_memory("plain", sizes, batch, "cpu") < 20 * one_map


def test_every_model_is_timed_in_a_process_of_its_own_and_float32_once(monkeypatch):
    monkeypatch.setitem(training_step.NAMES, "default", "32-true")
    seconds = training_step.time_steps(SLATE_SIZES, batch_size=4, rounds=2, device="cpu")
    assert {name: len(values) for name, values in seconds.items()} == {"plain": 2, "float32": 2, "default": 2}
    assert all(value > 0 for values in seconds.values() for value in values)
    assert seconds["default"] == seconds["float32"]


def test_the_speedup_is_the_median_of_neighbours():
    seconds = {"plain": [2.0, 9.0, 4.0], "float32": [1.0, 3.0, 2.0], "default": [1.0, 1.0, 1.0]}
    row = training_step.row(seconds, {"plain": 3e7, "float32": 1e7})
    assert row == ["4.000", "2.000", "1.000", "2.00", "4.00", "30", "10", "3.00"]
