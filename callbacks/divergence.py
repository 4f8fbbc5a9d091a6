"""Training ends at once when a gradient is not finite, and says at which step."""

import torch
from lightning import Callback, LightningModule, Trainer


class Diverged(RuntimeError):
    """A loss or gradient was not finite at `step` (gradient steps done before it)."""

    def __init__(self, step: int):
        super().__init__(f"training diverged at step {step}: the gradient is not finite")
        self.step = step


class Divergence(Callback):
    """Raises `Diverged` at the first step whose gradient is not finite; a loss that is not finite has such a gradient.

    All processes hold the same averaged gradient, so all stop at the same step. With a gradient scaler (16-bit floats)
    infinite gradients are part of the method and only NaN in the weights counts.
    """

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            tensors = parameters
        else:
            tensors = [p.grad for p in parameters if p.grad is not None]
        if not torch.isfinite(torch.nn.utils.get_total_norm(tensors, float("inf"))):
            raise Diverged(trainer.global_step)
