"""The panels: what they show, and that drawing them does not affect training."""

import random

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch import nn

from callbacks.panels import Panels, panel_images
from implicit_slate.errors import UserError
from implicit_slate.models import SLATE, SlotModel, SpatialBroadcast, Views
from implicit_slate.pictures import GAP, TILE, TITLE_HEIGHT, panel_picture, read_panels
from tests.callbacks.fitting import fit, module
from tests.tiny import BROADCAST_SIZES, SLATE_SIZES, TinyImages
from tests.training.setting import assert_same_weights


class HalfAndHalf(SlotModel):
    """A model with two slots, of which the first attends only to the upper half. It reconstructs all images as black,
    and its dVAE as grey."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def sample_slots(self, batch_size, generator=None):
        return torch.randn(batch_size, 2, 3, generator=generator)

    def views(self, image, slots_init):
        assert not self.training
        upper = (torch.arange(16) < 8).float().expand(len(image), 16, 16).mT
        return Views(torch.zeros_like(image), torch.stack([upper, 1 - upper], 1))

    def ceiling(self, image):
        return torch.full_like(image, 0.5)


def draw_panels(model: SlotModel, image: torch.Tensor) -> Image.Image:
    return panel_picture(*panel_images(model, image))


def tile(panels: Image.Image, row: int, column: int) -> np.ndarray:
    left, top = GAP + column * (TILE + GAP), TITLE_HEIGHT + row * (TILE + GAP)
    return np.asarray(panels.crop((left, top, left + TILE, top + TILE)))


def test_each_column_shows_what_its_title_says():
    image = torch.zeros(2, 3, 16, 16)
    image[:, 0] = 1.0  # red
    panels = draw_panels(HalfAndHalf(), image)
    assert panels.size == (5 * (TILE + GAP) + GAP, 2 * (TILE + GAP) + TITLE_HEIGHT)
    for row in range(2):
        assert (tile(panels, row, 0) == (255, 0, 0)).all()
        assert (tile(panels, row, 1) == 128).all()
        assert (tile(panels, row, 2) == 0).all()
        upper, lower = tile(panels, row, 3), tile(panels, row, 4)
        assert (upper[: TILE // 2] == (255, 0, 0)).all() and (upper[TILE // 2 :] == 255).all()
        assert (lower[: TILE // 2] == 255).all() and (lower[TILE // 2 :] == (255, 0, 0)).all()
    assert (np.asarray(panels)[:TITLE_HEIGHT] < 128).any(), "no titles"


def test_large_images_are_not_enlarged_and_small_ones_by_a_whole_factor():
    def width(side):
        model = SLATE(**{**SLATE_SIZES, "image_size": side}).eval()
        return draw_panels(model, torch.rand(1, 3, side, side)).width

    columns = 3 + SLATE_SIZES["num_slots"]
    assert width(100) == columns * (100 + GAP) + GAP
    assert width(20) == columns * (100 + GAP) + GAP  # five times


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
@pytest.mark.parametrize(
    ("kind", "sizes", "reconstructions"), [(SLATE, SLATE_SIZES, 2), (SpatialBroadcast, BROADCAST_SIZES, 1)]
)
def test_a_real_model_draws_the_same_picture_twice_and_is_left_as_it_was(kind, sizes, reconstructions, gradient):
    torch.manual_seed(0)
    model = kind(**{**sizes, "gradient": gradient})
    model.slot_encoder.eval()  # like a frozen part of a model in training
    modes = {name: module.training for name, module in model.named_modules()}
    image = torch.rand(2, 3, 16, 16)
    first, second = draw_panels(model, image), draw_panels(model, image)
    assert first.tobytes() == second.tobytes()
    assert first.width == (1 + reconstructions + sizes["num_slots"]) * (TILE + GAP) + GAP
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.grad is None for parameter in model.parameters())


class NoisyImages(TinyImages):
    def probe(self, num_images):
        torch.rand(7), np.random.rand(), random.random()
        return super().probe(num_images)


def fit_some_steps(folder, *callbacks, steps=6):
    """Trains with a validation every two steps. Returns the module, and numbers that depend on all earlier noise."""
    L.seed_everything(1, verbose=False)
    logger, made = TensorBoardLogger(folder, name="", version=""), module()
    fit(
        made,
        *callbacks,
        max_steps=steps,
        data=NoisyImages(),
        logger=logger,
        val_check_interval=2,
        num_sanity_val_steps=1,
    )
    return made, (torch.rand(()).item(), np.random.rand(), random.random())


def drawn_steps(folder):
    events = [event for path in folder.glob("events*") for event in LegacyEventFileLoader(str(path)).Load()]
    return [event.step for event in events for value in event.summary.value if value.tag == "panels"]


def test_panels_are_drawn_before_training_at_ever_rarer_validations_and_at_the_end_each_step_once(tmp_path):
    fit_some_steps(tmp_path, Panels(num_images=2), steps=12)
    assert drawn_steps(tmp_path) == [0, 2, 4, 6, 10, 12], "the validations 1, 2, 3 and 5 of 6"
    assert sorted(int(file.stem) for file in (tmp_path / "panels").iterdir()) == drawn_steps(tmp_path)
    with Image.open(tmp_path / "panels" / "12.webp") as small:
        assert small.size == (2 * 16, 3 * 16), "truths, images through the slots and masks of two images"
    with Image.open(tmp_path / "panels.png") as panels:
        assert panels.size == (6 * (TILE + GAP) + GAP, 2 * (TILE + GAP) + TITLE_HEIGHT)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "a temporary file is left"


def test_a_training_that_goes_on_draws_nothing_at_its_start(tmp_path):
    last = tmp_path / "last.ckpt"
    for steps, resume in ((2, None), (3, last)):
        logger = TensorBoardLogger(tmp_path, name="", version=str(steps))
        fit(module(), Panels(num_images=1), max_steps=steps, logger=logger, save=last, resume=resume)
    assert drawn_steps(tmp_path / "2") == [0, 2] and drawn_steps(tmp_path / "3") == [3]


def test_a_picture_that_no_training_made_is_not_overwritten(tmp_path):
    picture = tmp_path / "panels.png"
    picture.write_text("of evaluate")
    with pytest.raises(UserError, match="panels.png: exists already, and was not made by a training"):
        fit_some_steps(tmp_path, Panels(num_images=1))
    assert picture.read_text() == "of evaluate"
    (tmp_path / "panels.npz").touch()
    fit_some_steps(tmp_path, Panels(num_images=1), steps=1)
    assert picture.read_bytes()[1:4] == b"PNG"


def test_the_arrays_behind_the_panels_are_those_of_the_validation_images_whatever_the_mode(tmp_path):
    truth = TinyImages().probe(2)["image"].numpy()
    for gradient in ("implicit", "unrolled"):
        made, logger = module(gradient=gradient), TensorBoardLogger(tmp_path, name="", version=gradient)
        fit(made, Panels(num_images=2), max_steps=2, logger=logger)
        shown, reconstruction, masks = read_panels(tmp_path / gradient / "panels.npz")
        assert np.abs(shown - truth).max() <= 0.5 / 255 + 1e-6
        views = panel_images(made.model, torch.as_tensor(truth))[1:3]
        for found, expected in zip((reconstruction, masks), views):
            assert np.abs(found - expected.numpy()).max() <= 0.5 / 255 + 1e-6


def test_training_is_the_same_with_and_without_panels(tmp_path):
    plain, noise = fit_some_steps(tmp_path / "a")
    watched, noise_of_watched = fit_some_steps(tmp_path / "b", Panels(num_images=1))
    assert len(drawn_steps(tmp_path / "b")) == 4 and noise_of_watched == noise
    assert_same_weights(plain, watched)


def test_without_tensorboard_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(module(), Panels(num_images=1), val_check_interval=2)
    assert not list(tmp_path.rglob("panels.png"))


def test_the_cadence_survives_a_checkpoint():
    before, after = Panels(), Panels()
    before._validations = 7
    after.load_state_dict(before.state_dict())
    assert after._validations == 7
