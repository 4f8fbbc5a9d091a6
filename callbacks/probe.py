"""Measurements during training, always on the same images and from the same initial slots."""

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

    The images are the first of the validation split. The initial slots are drawn once and stored in checkpoints;
    learned queries are used as they currently are. Measurements are in evaluation mode and in float32 without autocast,
    whatever the training's precision, and leave the model unchanged. Only the first process measures and logs, and it
    needs nothing from the others. It does so at step 0, every `every_n_steps` and at the end.

    For a quantity with one value per image, (B,), the mean is logged under its name and the maximum under
    `<name>_image_max`; a scalar () is logged as it is.
    """

    kept: tuple[str, ...] = ("_slots_init", "latest")
    """The attributes that are stored in checkpoints."""

    def __init__(self, every_n_steps: PositiveInt, num_images: PositiveInt):
        self.every_n_steps, self.num_images = every_n_steps, num_images
        self.latest: dict[str, float] = {}
        """The latest measurements, without the maxima."""
        self._batch: Batch | None = None
        self._slots_init: Tensor | None = None
        self._step = 0

    def measure(self, model: SlotModel, batch: Batch, slots_init: Tensor, is_last: bool) -> dict[str, Tensor]:
        """The measured quantities, (B,) or (), by name, for the probe batch (with masks if the data has them) and
        initial slots (B, K, S)."""
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
            return  # the gradient was only accumulated
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
            except NotFinite:  # nothing to measure; if training has diverged, its next step says so
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
    """f, and the solution of its forward solve."""
    f = model.refinement(batch["image"])
    return f, model.slot_attention.solver(f, slots_init).checked()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; on exit, every submodule returns to its own previous mode (that of a frozen part may differ)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
