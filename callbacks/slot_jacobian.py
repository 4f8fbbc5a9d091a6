"""How strongly the slots' refinement stretches, measured while it is trained."""

import copy

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from implicit_slate.fixed_point import largest_singular_value, spectral_radius
from implicit_slate.models import SLATE


class SlotJacobian(Callback):
    """Spectral norm of the Jacobian of one more refinement at z*, where the forward solve stops; and its residual.

    Always on the same images (the first of the validation split) and from the same initial slots, in evaluation mode
    and float32 whatever the training's precision. The first process measures and logs; it needs nothing from the
    others. Logged at step 0, every `every_n_steps` and at the end, as mean and maximum over the images:
    `jacobian/spectral_norm`, `residual`, and once `evaluations` of f in a training step. The spectral radius, which
    takes more products, is measured at the end only.

    Args:
        every_n_steps: steps between two measurements.
        num_images: images of the probe batch.
        tol: of the power iteration, see `spectral_norm`; the norm's own relative error is far smaller.
    """

    def __init__(self, every_n_steps: int = 200, num_images: int = 8, tol: float = 1e-3):
        self.every_n_steps, self.num_images, self.tol = every_n_steps, num_images, tol
        self.latest: dict[str, float] = {}
        self._images: Tensor | None = None
        self._slots_init: Tensor | None = None
        self._vector: Tensor | None = None

    def state_dict(self) -> dict:
        return {"slots_init": self._slots_init, "vector": self._vector}

    def load_state_dict(self, state: dict) -> None:
        self._slots_init, self._vector = state["slots_init"], state["vector"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._images = trainer.datamodule.probe(self.num_images).to(module.device)
        if self._slots_init is None:
            generator = torch.Generator().manual_seed(0)
            self._slots_init = module.model.sample_slots(len(self._images), generator).detach().float().cpu()
        if trainer.global_step == 0:
            self._measure(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx) -> None:
        is_last = trainer.global_step == trainer.max_steps  # measured in `on_train_end`
        if trainer.is_global_zero and trainer.global_step % self.every_n_steps == 0 and not is_last:
            self._measure(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._measure(trainer, module, with_radius=True)

    def _measure(self, trainer: Trainer, module: LightningModule, with_radius: bool = False) -> None:
        model: SLATE = module.model
        if model.positions.dtype not in (torch.float32, torch.float64):
            model = copy.deepcopy(model).float()
        was_training = model.training
        model.eval()
        with torch.autocast(module.device.type, enabled=False):
            images, slots_init = self._images.to(model.positions.dtype), self._slots_init.to(module.device)
            tokens = model.tokenize(images)
            with torch.no_grad():
                f = model.slot_update(tokens)
                solution = model.slot_attention.solver(f, slots_init)
            norm = largest_singular_value(f, solution.z, tol=self.tol, v0=self._warm_start())
            self._vector = norm.vector.cpu()
            values = {"jacobian/spectral_norm": norm.value, "residual": solution.residual}
            if with_radius:
                values["jacobian/spectral_radius"] = spectral_radius(f, solution.z, tol=self.tol)
            if not self.latest:
                with torch.no_grad():
                    values["evaluations"] = torch.tensor([float(model.solve(tokens, slots_init).evaluations)])
        model.train(was_training)

        means = {name: float(value.mean()) for name, value in values.items()}
        largest = {f"{name}_image_max": float(value.max()) for name, value in values.items() if name != "evaluations"}
        self.latest |= means
        if trainer.loggers:
            trainer.logger.log_metrics(means | largest, step=trainer.global_step)

    def _warm_start(self) -> Tensor | None:
        """The last vector, a little off: should two singular values have crossed, an exact start would miss it."""
        if self._vector is None:
            return None
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self._vector.shape, generator=generator, dtype=self._vector.dtype)
        vector = self._vector + 0.1 * noise / noise.norm(dim=1, keepdim=True)
        return vector.to(self._images.device)
