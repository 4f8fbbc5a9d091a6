"""Measurements during training, always of the same images and from the same initial slots."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from callbacks.of_slots import OfProbe
from data_modules.base import Batch
from implicit_slate.allowed import Checked, PositiveInt
from implicit_slate.fixed_point import NotFinite, Solution
from implicit_slate.models import SlotModel
from implicit_slate.models.slot_attention import SlotUpdate


class Probe(Checked, OfProbe):
    """Base of the callbacks that measure a model's refinement; a subclass implements `measure`.

    The images are the first of the validation split. The initial slots are drawn once and kept in checkpoints; learned
    queries are taken as they are. The model is in evaluation mode and in float32 without autocast, whatever the
    training's precision, and is left as it was. The first process measures and logs; it needs nothing from the others.
    It does so at step 0, every `every_n_steps` and at the end.

    Of a measured quantity of each image, (B,), the mean is logged under its name and the maximum under
    `<name>_image_max`; a number () is logged as it is.
    """

    kept: tuple[str, ...] = ("_slots_init", "latest")
    """The attributes that a checkpoint keeps."""

    def __init__(self, every_n_steps: PositiveInt, num_images: PositiveInt):
        self.every_n_steps, self.num_images = every_n_steps, num_images
        self.latest: dict[str, float] = {}
        """What was measured last, without the maxima."""
        self._batch: Batch | None = None
        self._slots_init: Tensor | None = None
        self._step = 0

    def measure(self, model: SlotModel, batch: Batch, slots_init: Tensor, is_last: bool) -> dict[str, Tensor]:
        """Quantities (B,) or () by their names, of the probe images, with masks where the data has them, from initial
        slots (B, K, S)."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        return {name.lstrip("_"): getattr(self, name) for name in self.kept}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update({name: state[name.lstrip("_")] for name in self.kept})

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step = trainer.global_step
        if not trainer.is_global_zero:
            return
        self._batch = trainer.datamodule.probe(self.num_images)
        slots_init = self._sample_slots(module.model)
        if self._slots_init is None or self._slots_init.shape != slots_init.shape:  # resumed with other settings
            self._slots_init = slots_init
        if trainer.global_step == 0:
            self._measure(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self._step:
            return  # a batch whose gradient is only accumulated
        self._step = trainer.global_step
        is_last = trainer.global_step == trainer.max_steps  # measured in `on_train_end`
        if trainer.is_global_zero and trainer.global_step % self.every_n_steps == 0 and not is_last:
            self._measure(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._measure(trainer, module, is_last=True)

    def _measure(self, trainer: Trainer, module: LightningModule, is_last: bool = False) -> None:
        model: SlotModel = module.model
        if next(model.parameters()).dtype not in (torch.float32, torch.float64):
            model = copy.deepcopy(model).float()
        if model.slot_attention.slot_init == "queries":
            self._slots_init = self._sample_slots(model)
        like = next(model.parameters())
        batch = {name: value.to(like.device) for name, value in self._batch.items()}
        batch["image"] = batch["image"].to(like)
        with evaluating(model), torch.autocast(like.device.type, enabled=False):
            try:
                values = self.measure(model, batch, self._slots_init.to(like), is_last)
            except NotFinite:  # there is nothing to measure; the next step ends training on all processes
                return
        means = {name: float(value.float().mean()) for name, value in values.items()}
        largest = {f"{name}_image_max": float(value.max()) for name, value in values.items() if value.ndim}
        self.latest |= means
        for logger in trainer.loggers:
            logger.log_metrics(means | largest, step=trainer.global_step)

    def _sample_slots(self, model: SlotModel) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return model.sample_slots(len(self._batch["image"]), generator).detach().float().cpu()


@torch.no_grad()
def solve(model: SlotModel, batch: Batch, slots_init: Tensor) -> tuple[SlotUpdate, Solution]:
    """f, and where its forward solve stops."""
    f = model.refinement(batch["image"])
    return f, model.slot_attention.solver(f, slots_init).checked()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every submodule is in its own mode again (a frozen part may differ)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
