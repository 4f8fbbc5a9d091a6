"""Training ends when a gradient is not finite, and says at which step."""

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from implicit_slate import host
from implicit_slate.errors import TrainingError


class Diverged(TrainingError):
    """What is `not_finite` was not so at `step` (gradient steps done before it)."""

    def __init__(self, step: int, not_finite: str = "the gradient"):
        super().__init__(f"training diverged at step {step}: {not_finite} is not finite")
        self.step = step


class Watch(Callback):
    """Base of what ends a training by `Diverged` at the first step that is not sound.

    On a CPU each step is looked at as it is made, and an unsound one changes nothing. A GPU would have to be waited
    for: it keeps the number of the first unsound step, which is read at every `log_every_n_steps`, before a validation,
    before anything is saved, and at the end. So no checkpoint comes after an unsound step, and the error names the same
    step as on a CPU; but some steps later, and the weights are then spoilt.
    """

    watched = "the gradient"
    """What is not finite at an unsound step."""

    def __init__(self):
        self._first: Tensor | None = None
        """() the first unsound step, -1 while all is well: kept where it is computed, until it is read."""

    def note(self, trainer: Trainer, sound: Tensor) -> None:
        """To be called in every step, before its update, with whether it is sound, ()."""
        step = trainer.global_step
        if host.is_free_to_read(sound):
            if not sound:
                raise Diverged(step, self.watched)
            return
        if self._first is None:
            self._first = torch.full((), -1, device=sound.device)
        self._first = self._first.masked_fill((self._first < 0) & ~sound, step)
        if host.is_logged(trainer):
            self._read(trainer)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._first = None

    def _read(self, trainer: Trainer, *_) -> None:
        # Of all watches: a first evaluation that is not finite may come of the gradient of the step before.
        watches = [watch for watch in trainer.callbacks if isinstance(watch, Watch) and watch._first is not None]
        found = [(step, watch.watched) for watch in watches if (step := int(watch._first)) >= 0]
        if found:
            raise Diverged(*min(found))

    on_validation_start = on_save_checkpoint = on_train_end = _read


class Divergence(Watch):
    """Raises `Diverged` at the first step whose gradient is not finite; a loss that is not finite has such a gradient.

    All processes hold the same averaged gradient, so all stop at the same step. With a gradient scaler (16-bit floats)
    infinite gradients are part of the method and only NaN in the weights counts.

    On a GPU the step is named as exactly, but training ends some steps later; see `Watch`.
    """

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer) -> None:
        is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not is_scaled and hasattr(module, "largest_gradient"):  # of ours, which need it for clipping, too
            largest = module.largest_gradient()
        else:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            tensors = parameters if is_scaled else [p.grad for p in parameters if p.grad is not None]
            largest = torch.nn.utils.get_total_norm(tensors, float("inf"))
        self.note(trainer, torch.isfinite(largest))


class FirstEvaluation(Watch):
    """Raises `Diverged` at the first step whose refinement begins with an evaluation that is not finite.

    Every training of slots has it. On a CPU the solver itself raises `NotFinite`, before this.
    """

    watched = "the first evaluation of the refinement"

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        self.note(trainer, module.first_evaluation_is_finite)
