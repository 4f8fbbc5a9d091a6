"""Pictures of what a model does: one row per image, with the image, its reconstructions and the mask of each slot."""

import math
from pathlib import Path

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from callbacks.of_slots import OfProbe
from callbacks.probe import evaluating
from implicit_slate.allowed import Checked, PositiveInt
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically
from implicit_slate.models import SlotModel
from implicit_slate.pictures import panel_picture, panels_npz, strip, to_png


class Panels(Checked, OfProbe):
    """Draws the first images of the validation split: original | reconstructions | one mask per slot.

    Drawn before training, after validations 1, 2, 3, 5, 8, 12, 18, … (each 1.5 times the previous number, since masks
    form early), and at the end. The picture goes to TensorBoard (tag `panels`) and to `panels.png` in the logger's
    folder; `panels.npz` beside it has the arrays shown, and `panels/<step>.webp` is a small picture for the report. The
    initial slots are the same every time, so that pictures of different steps and models are comparable. The model's
    mode and all random states are left unchanged.
    """

    def __init__(self, num_images: PositiveInt = 6):
        self.num_images = num_images
        self._validations = 0
        self._drawn_at: int | None = None

    def state_dict(self) -> dict:
        return {"validations": self._validations}

    def load_state_dict(self, state: dict) -> None:
        self._validations = state["validations"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        for logger in trainer.loggers:
            panels = Path(logger.log_dir or "") / "panels.png"
            if panels.exists() and not panels.with_suffix(".npz").exists():
                raise UserError(f"{panels}: exists already, and was not made by a training; it is not overwritten")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._draw(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        due = 1
        while due < self._validations:
            due = math.ceil(1.5 * due)
        if due == self._validations:
            self._draw(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        if not trainer.is_global_zero or logger is None or self._drawn_at == trainer.global_step:
            return
        self._drawn_at = trainer.global_step
        with isolate_rng():
            shown = panel_images(pl_module.model, trainer.datamodule.probe(self.num_images)["image"])
        panels, folder = panel_picture(*shown), Path(logger.log_dir)
        logger.experiment.add_image("panels", np.asarray(panels), trainer.global_step, dataformats="HWC")
        write_atomically(folder / "panels.png", to_png(panels))
        write_atomically(folder / "panels.npz", panels_npz(*shown))
        write_atomically(folder / "panels" / f"{trainer.global_step}.webp", strip(*shown[:3]))


def panel_images(model: SlotModel, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The arguments of `panel_picture` for images (B, 3, H, W) in [0, 1]; tokens are generated greedily.

    The initial slots come from a fixed seed, so that panels of different models are comparable.
    """
    image = image.to(next(model.parameters()))  # its device and dtype
    slots_init = model.sample_slots(len(image), generator=torch.Generator().manual_seed(0)).detach()
    with evaluating(model):
        views, ceiling = model.views(image, slots_init.to(image)), model.ceiling(image)
    return image, views.reconstruction, views.masks, ceiling
