"""Ends training when a gradient is not finite, and says at which step."""

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from implicit_slate import host
from implicit_slate.errors import TrainingError

NEVER = torch.iinfo(torch.int64).max


class Diverged(TrainingError):
    """The quantity named by `not_finite` was not finite at `step` (the number of gradient steps done before)."""

    def __init__(self, step: int, not_finite: str = "the gradient"):
        super().__init__(f"training diverged at step {step}: {not_finite} is not finite")
        self.step = step


class Watch(Callback):
    """Base of callbacks that raise `Diverged` at the first step at which a quantity is not finite (a bad step).

    On a CPU each step is checked before its update, so a bad step does not change the weights. On a GPU this would make
    the CPU wait, so the number of the first bad step is stored on the device. It is read at every `log_every_n_steps`,
    before each validation, before anything is saved, and at the end. So no checkpoint is saved after a bad step, and
    the error names the same step as on a CPU, but it comes some steps later, when the weights are already corrupted.
    """

    watched = "the gradient"
    """The quantity that is not finite at a bad step."""

    def __init__(self):
        self._first: Tensor | None = None
        """The first bad step, (), or `NEVER`; on the device on which it is computed."""

    def note(self, trainer: Trainer, sound: Tensor) -> None:
        """To be called in every step, before its update. `sound`: bool (), whether the quantity is finite. If it is not
        in one process, all raise `Diverged`; if one did so alone, the others would wait for it."""
        step = trainer.global_step
        if host.is_free_to_read(sound):
            if not trainer.strategy.reduce_boolean_decision(bool(sound)):
                raise Diverged(step, self.watched)
            return
        if self._first is None:
            self._first = torch.full((), NEVER, device=sound.device)
        self._first = torch.where(sound, self._first, self._first.clamp_max(step))
        if host.is_logged(trainer):
            self._read(trainer)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._first = None

    def _read(self, trainer: Trainer, *_) -> None:
        # The earliest bad step of all watches: a first evaluation may be non-finite because of the previous gradient.
        watches = [watch for watch in trainer.callbacks if isinstance(watch, Watch) and watch._first is not None]
        firsts = [(int(trainer.strategy.reduce(watch._first, reduce_op="min")), watch.watched) for watch in watches]
        first, watched = min(firsts, default=(NEVER, self.watched))
        if first < NEVER:
            raise Diverged(first, watched)

    on_validation_start = on_save_checkpoint = on_train_end = _read


class Divergence(Watch):
    """Raises `Diverged` at the first step whose gradient is not finite, which includes every loss that is not finite.

    All processes have the same averaged gradient, so all stop at the same step. With a gradient scaler (16-bit floats),
    infinite gradients are part of the method, so the weights are checked instead of the gradient.

    On a GPU the error names the same step, but training ends some steps later; see `Watch`.
    """

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer) -> None:
        is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not is_scaled and hasattr(module, "largest_gradient"):  # our modules, which also use it for clipping
            largest = module.largest_gradient()
        else:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            tensors = parameters if is_scaled else [p.grad for p in parameters if p.grad is not None]
            largest = torch.nn.utils.get_total_norm(tensors, float("inf"))
        self.note(trainer, torch.isfinite(largest))


class FirstEvaluation(Watch):
    """Raises `Diverged` at the first step whose first evaluation of the refinement is not finite.

    Every training of slots includes this callback. If only one process has images that cause this, all stop.
    """

    watched = "the first evaluation of the refinement"

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        self.note(trainer, module.first_evaluation_is_finite)
