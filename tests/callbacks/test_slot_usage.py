"""SlotUsage: what its measures mean, that they match the model, and that a collapse is reported once."""

import logging
import math

import pytest
import torch

from callbacks import SlotUsage
from callbacks.slot_usage import attention_entropy, attention_information, slots_in_use
from implicit_slate.metrics import adjusted_rand_index
from implicit_slate.training import SpatialBroadcastModule
from tests.callbacks.fitting import KINDS, fit, module
from tests.tiny import TinyImages


def one_hot(*winners, num_slots=4):
    """Hard attention (1, N, K), from the slot of each input."""
    return torch.nn.functional.one_hot(torch.tensor([winners]), num_slots).float()


@pytest.mark.parametrize(
    ("attention", "entropy", "information", "in_use"),
    [
        (torch.full((1, 8, 4), 1 / 4), 1, 0, 1),  # among equal slots the first one wins
        (one_hot(*[2] * 8), 0, 0, 1),
        (one_hot(0, 1, 2, 3), 0, 1, 4),
        (one_hot(0, 0, 3, 3), 0, math.log(2) / math.log(4), 2),
        (torch.tensor([[[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]]), 0.5, 0.5, 2),
        (torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(1, 8, 4), 0.678, 0, 1),  # each slot is uniform over the image
        (torch.ones(1, 8, 1), 0, 0, 1),
    ],
)
def test_attention_by_hand(attention, entropy, information, in_use):
    assert attention_entropy(attention).item() == pytest.approx(entropy, abs=1e-3)
    assert attention_information(attention).item() == pytest.approx(information, abs=1e-6)
    assert slots_in_use(attention).tolist() == [in_use]


def test_a_slot_in_use_wins_one_input_in_a_hundred():
    attention = one_hot(*[0] * 197, 1, 2, 2, num_slots=3)
    assert slots_in_use(torch.cat([attention, attention.roll(1, 2)])).tolist() == [2, 2]


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_the_model_s_attention_and_masks(kind, gradient):
    model, callback = module(kind, gradient=gradient), SlotUsage(every_n_steps=1, num_images=5)
    scalars = fit(model, callback)
    batch, model = TinyImages().probe(5), model.model.eval()
    slots = model.sample_slots(5, torch.Generator().manual_seed(0)) if gradient == "implicit" else callback._slots_init
    with torch.no_grad():
        f, masks = model.refinement(batch["image"]), model.segment(batch["image"], slots)
        for _ in range(3):
            slots = f(slots)
    p = f.attention
    expected = {
        "slots/attention_entropy": -(p * p.log()).sum(2).mean() / math.log(3),
        "slots/in_use": (p.argmax(2)[..., None] == torch.arange(3)).any(1).sum(1).float().mean(),  # 16 or 256 inputs
        "slots/fg_ari": adjusted_rand_index(batch["mask"], masks.argmax(1), foreground_only=True).mean(),
    }
    if kind is SpatialBroadcastModule:
        del expected["slots/in_use"]  # because one pixel is not enough there
    assert scalars.keys() == {*expected, "slots/in_use", "slots/information"}
    for name, value in expected.items():
        assert list(scalars[name]) == [0, 1, 2]
        assert scalars[name][2] == pytest.approx(value.item(), abs=1e-5), name
    assert 0 <= scalars["slots/information"][2] <= 1 - scalars["slots/attention_entropy"][2] + 1e-6


class Background(TinyImages):
    """Images of which only the first `labelled` have objects in their masks; None: without masks."""

    def __init__(self, labelled: int | None):
        super().__init__()
        self.labelled = labelled

    def probe(self, num_images):
        batch = super().probe(num_images)
        if self.labelled is None:
            del batch["mask"]
        else:
            batch["mask"][self.labelled :] = 0
        return batch


@pytest.mark.parametrize("labelled", [None, 0])
def test_without_objects_there_is_no_fg_ari(labelled):
    scalars = fit(module(), SlotUsage(num_images=3), data=Background(labelled))
    assert "slots/fg_ari" not in scalars and "slots/in_use" in scalars


def test_images_without_objects_do_not_count():
    some, alone = (SlotUsage(num_images=number) for number in (4, 2))
    scalars = fit(module(), some, data=Background(2), max_steps=1)
    expected = fit(module(), alone, max_steps=1)
    # The first images' initial slots do not depend on the number of images.
    assert torch.equal(some._slots_init[:2], alone._slots_init)
    assert scalars["slots/fg_ari"][0] == pytest.approx(expected["slots/fg_ari"][0], abs=1e-5)


class Collapsed(SlotUsage):
    """Uses the given attentions, one per measurement, instead of the model's; the last one is repeated."""

    def __init__(self, *attentions):
        super().__init__(every_n_steps=1, num_images=1)
        self.attentions = list(attentions)

    def measure(self, model, batch, slots_init, is_last):
        attention = self.attentions.pop(0) if len(self.attentions) > 1 else self.attentions[0]
        return {
            "slots/attention_entropy": attention_entropy(attention),
            "slots/in_use": slots_in_use(attention).float(),
            "slots/information": attention_information(attention),
        }


@pytest.fixture
def said(caplog, monkeypatch):
    """The printed lines that start with `warning`."""
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "level", logging.INFO)
    return lambda: [record.message for record in caplog.records if record.message.startswith("warning")]


GOOD, ONE = one_hot(0, 1, 2, 2, num_slots=3), one_hot(1, 1, 1, 1, num_slots=3)
ALIKE = torch.softmax(0.01 * torch.rand(1, 9, 3, generator=torch.Generator().manual_seed(0)), 2)
ONE_WINS = "one slot wins nearly everywhere: 1.00 of 3 slots in use, attention entropy 0.000, information 0.000"
ALL_ALIKE = "the slots look everywhere alike: 3.00 of 3 slots in use, attention entropy 1.000, information 0.000"


@pytest.mark.parametrize(
    ("attentions", "max_steps", "expected"),
    [
        ([GOOD], 2, []),
        ([GOOD, GOOD, GOOD, ONE], 6, [f"warning: step 3: {ONE_WINS}"]),
        ([ALIKE], 2, [f"warning: step 1: {ALL_ALIKE}"]),
        ([ONE, ONE, GOOD], 20, []),  # no warning in the first tenth of the steps
        ([ONE, ONE, ONE, GOOD], 20, [f"warning: step 2: {ONE_WINS}"]),
    ],
)
def test_collapse_is_said_once_with_its_numbers_and_the_step(said, attentions, max_steps, expected):
    fit(module(), Collapsed(*attentions), max_steps=max_steps)
    assert said() == expected


def test_a_tenth_of_a_run_that_counts_epochs(said):
    fit(module(), Collapsed(ONE, ONE, GOOD), max_steps=-1, max_epochs=5, limit_train_batches=4)
    assert said() == []


def test_a_single_slot_is_fine(said):
    fit(module(num_slots=1), SlotUsage(num_images=2))
    assert said() == []


def test_a_resumed_run_does_not_say_it_again(said, tmp_path):
    fit(module(), Collapsed(ONE), max_steps=2, save=tmp_path / "last.ckpt")
    assert len(said()) == 1
    fit(module(), Collapsed(ONE), max_steps=4, resume=tmp_path / "last.ckpt")
    assert len(said()) == 1


def test_a_real_collapse_is_seen(said):
    """All keys are zero, so no slot can distinguish positions."""
    model = module()
    with torch.no_grad():
        model.model.slot_attention.project_k.weight.zero_()
    model.model.slot_attention.project_k.requires_grad_(False)
    scalars = fit(model, SlotUsage(num_images=4))
    assert scalars["slots/attention_entropy"][2] == pytest.approx(1)
    assert scalars["slots/information"][2] == pytest.approx(0, abs=1e-6)
    assert said()[0].startswith("warning: step 2: one slot wins nearly everywhere: 1.00 of 3")
