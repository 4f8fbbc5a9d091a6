"""The benchmark's own machinery, on a model that takes milliseconds."""

import io

import pytest
import torch
from rich.console import Console

from benchmarks import training_step
from benchmarks.plain_slate import PlainSLATE
from implicit_slate import SLATE

TINY = dict(
    image_size=16, vocab_size=12, d_model=16, num_slots=2, slot_size=16, slot_mlp_size=16, num_blocks=1, num_heads=2
)


@pytest.mark.parametrize("model", [SLATE, PlainSLATE])
def test_one_step_moves_every_trained_parameter(model):
    torch.manual_seed(0)
    model = model(**TINY, gradient="unrolled")
    before = [p.detach().clone() for p in model.parameters()]
    training_step.make_step(model, torch.rand(4, 3, 16, 16))()
    for (name, after), old in zip(model.named_parameters(), before, strict=True):
        unused = name == "dictionary.weight"  # tokens that did not occur
        assert torch.equal(after, old) <= unused, name
        assert (after - old).abs().max() <= 1.01e-4  # Adam's first step is the learning rate


def test_steps_are_taken_in_turn(monkeypatch):
    order = []
    monkeypatch.setattr(training_step, "prepare", lambda name, *_: lambda: order.append(name))
    seconds = training_step.time_steps(TINY, batch_size=4, rounds=3, device="cpu")
    assert order == ["plain", "ours"] * 4  # the first round warms up
    assert {name: len(values) for name, values in seconds.items()} == {"plain": 3, "ours": 3}


def test_peak_memory_holds_the_maps_over_the_vocabulary_and_forgets_its_parent():
    sizes, batch = TINY | dict(image_size=32, vocab_size=4096), 16
    one_map = 4 * batch * 64 * 4096  # bytes of B×N×V numbers; logits, noise, samples, gradients: at least five at once
    ballast = torch.ones(50 * one_map // 4)  # a parent with more than that
    peak = training_step.peak_memory_apart("plain", sizes, batch, "cpu")
    assert 5 * one_map < peak < ballast.nbytes


def test_the_speedup_is_the_median_of_neighbours():
    seconds = {"plain": [2.0, 9.0, 4.0], "ours": [1.0, 3.0, 2.0]}
    cell = training_step.Cell(12, "implicit", seconds, memory={"plain": 30, "ours": 10})
    assert cell.speedup == 2.0
    assert cell.seconds_a_step("plain") == 4.0
    printed = io.StringIO()
    Console(file=printed, width=80).print(training_step.table([cell], "title"))
    row = next(line for line in printed.getvalue().splitlines() if "implicit" in line)
    fields = [field.strip() for field in row.strip("│").split("│")]
    assert fields == ["12", "implicit", "4.000", "2.000", "2.00", "0", "0", "3.00"]
