"""What the model sees and makes, as a picture: a row an image, from the truth to each slot's mask."""

import io
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from callbacks.probe import evaluating
from implicit_slate.files import write_atomically
from implicit_slate.models import SlotModel

TILE = 96
"""Images are enlarged by a whole factor to at least this many pixels a side, so that titles fit above them."""
GAP, TITLE_HEIGHT = 4, 22


class Panels(Callback):
    """Draws the first images of the validation split: truth | reconstructions | one mask a slot.

    It goes to TensorBoard (tag `panels`) and to `panels.png` in the logger's folder, every `every_n_validations`
    validations and at the end of training. The initial slots are the same every time, so that pictures of different
    steps and models compare; the model's mode and all random states are left as they were.
    """

    def __init__(self, num_images: int = 6, every_n_validations: int = 10):
        self.num_images = num_images
        self.every_n_validations = every_n_validations
        self._validations = 0
        self._drawn_at: int | None = None

    def state_dict(self) -> dict:
        return {"validations": self._validations}

    def load_state_dict(self, state: dict) -> None:
        self._validations = state["validations"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            self._draw(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        if not trainer.is_global_zero or logger is None or self._drawn_at == trainer.global_step:
            return
        self._drawn_at = trainer.global_step
        with isolate_rng():
            panels = draw_panels(pl_module.model, trainer.datamodule.probe(self.num_images))
        pixels = torch.frombuffer(bytearray(panels.tobytes()), dtype=torch.uint8)
        logger.experiment.add_image(
            "panels", pixels.view(panels.height, panels.width, 3), trainer.global_step, dataformats="HWC"
        )
        file = io.BytesIO()
        panels.save(file, format="PNG")
        write_atomically(Path(logger.log_dir) / "panels.png", file.getvalue())


def draw_panels(model: SlotModel, image: Tensor) -> Image.Image:
    """The panels of images (B, 3, H, W) in [0, 1]: B rows of tiles under a line of titles.

    First the truth, then the model's reconstructions, then K slots: the image where the slot looks, fading to white
    where others do. `panels.png` of two models show the same images and start from the same noise.
    """
    image = image.to(next(model.parameters()))  # its device, and its floats
    slots_init = model.sample_slots(len(image), generator=torch.Generator().manual_seed(0)).detach()
    with evaluating(model):
        views = model.views(image, slots_init.to(image))
    columns = {"truth": image} | views.images
    for k, mask in enumerate(views.masks.unsqueeze(2).unbind(1)):
        columns[f"slot {k + 1}"] = image * mask + 1 - mask
    return _tile(torch.stack(list(columns.values()), 1), list(columns))


def _tile(images: Tensor, titles: list[str]) -> Image.Image:
    """(rows, columns, 3, H, W) as one picture, with a title above each column."""
    factor = -(-TILE // min(images.shape[-2:]))
    images = images.float().clamp(0, 1).repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    rows, columns, _, height, width = images.shape
    pixels = (images * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()
    canvas = Image.new("RGB", (columns * (width + GAP) + GAP, TITLE_HEIGHT + rows * (height + GAP)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for column, title in enumerate(titles):
        left = GAP + column * (width + GAP)
        draw.text((left + width / 2, TITLE_HEIGHT / 2), title, fill="black", font=font, anchor="mm")
        for row in range(rows):
            canvas.paste(Image.fromarray(pixels[row, column]), (left, TITLE_HEIGHT + row * (height + GAP)))
    return canvas
