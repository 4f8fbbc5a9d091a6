"""The norm of the gradient, recorded so that no spike is missed."""

import torch
from lightning import LightningModule, Trainer

from callbacks.of_slots import OfSlots
from implicit_slate.allowed import Checked, PositiveInt


class GradientNorm(Checked, OfSlots):
    """L2 norm of the gradient of slot attention's parameters before clipping.

    It is computed at every step, and every `every_n_steps` the largest finite value since the last logged point is
    logged as `grad_norm`, because a spike lasts only one step. In between, no value is read, so the CPU does not wait
    for a GPU. With DDP all processes have the same averaged gradient, so only the first one logs.
    """

    def __init__(self, every_n_steps: PositiveInt = 25):
        self.every_n_steps = every_n_steps
        self._largest = torch.zeros(())

    def state_dict(self) -> dict:
        return {"largest": self._largest.cpu()}

    def load_state_dict(self, state: dict) -> None:
        self._largest = state["largest"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._largest = self._largest.to(module.device)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer) -> None:
        gradients = [p.grad for p in module.model.slot_attention.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._largest = torch.maximum(self._largest.to(norm), norm.nan_to_num(0.0, posinf=0.0))

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._log(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._log(trainer)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Exception):  # not for a stopped run, which resumes with the largest so far
            self._log(trainer, step=getattr(exception, "step", None))  # a divergence may be detected some steps later

    def _log(self, trainer: Trainer, step: int | None = None) -> None:
        if trainer.is_global_zero and self._largest > 0:
            step = trainer.global_step if step is None else step
            for logger in trainer.loggers:
                logger.log_metrics({"grad_norm": float(self._largest)}, step=step)
        self._largest = torch.zeros_like(self._largest)
