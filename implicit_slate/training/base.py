"""The base class of all LightningModules."""

import math
import numbers
import os
from collections.abc import Mapping

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from implicit_slate import host
from implicit_slate.allowed import Checked
from implicit_slate.errors import UserError
from implicit_slate.training.allocator import keep_freed_memory
from implicit_slate.training.optimization import Optimization, Plateau


class TrainingModule(Checked, L.LightningModule):
    """Adam with warmup, decay and infinity-norm clipping; noise is a function of seed, step, rank and micro-batch.

    A subclass implements `training_step` and `evaluate`, whose `loss` decides on plateau halving. It may set
    `split_metric`, which measures all images of a split together.
    """

    def __init__(self, optimization: Optimization):
        super().__init__()
        self.optimization = optimization
        self.plateau = Plateau(optimization.patience)
        self.split_metric: Metric | None = None
        """Updated in `evaluate`; its `compute` returns {name: value}, which is logged at the end of a split."""
        self._largest_gradient: Tensor | None = None

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters: group `dvae` has those of a submodule called `dvae`, `main` the rest. Empty groups
        are left out."""
        groups = {"dvae": [], "main": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups["dvae" if "dvae" in name.split(".") else "main"].append(parameter)
        return {name: parameters for name, parameters in groups.items() if parameters}

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values to log, as means over the batch; one of them must be `loss`. The model is in evaluation mode."""
        raise NotImplementedError

    def log_step(self, values: Mapping[str, Tensor | float], **options) -> None:
        """Log values of a training step if a logger, the progress bar or a monitoring callback may use them at this
        step. Lightning would process them anyway, which takes 5% of a small model's step."""
        trainer = self.trainer
        monitored = any(getattr(callback, "monitor", None) for callback in trainer.callbacks)
        if monitored or trainer.progress_bar_callback is not None or host.is_logged(trainer):
            self.log_dict(values, **options)

    def log(self, name: str, value, *args, **options) -> None:
        if isinstance(value, numbers.Number):  # Lightning would copy it to the device, and wait for a GPU
            value = torch.full((), float(value), device=self.device)
        super().log(name, value, *args, **options)

    def setup(self, stage: str) -> None:
        # Lightning does this after loading a checkpoint, whose float64 weights would be rounded to float32.
        self.trainer.precision_plugin.convert_module(self)
        keep_freed_memory()
        self._threads = torch.get_num_threads()
        host.leave_threads(self.trainer.strategy.root_device)

    def teardown(self, stage: str) -> None:
        torch.set_num_threads(self._threads)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if (clip := self.trainer.gradient_clip_val) is not None:
            raise UserError(f"trainer.gradient_clip_val={clip}: has no effect here; give model.optimization.clip_norm")
        groups = [{"name": name, "params": parameters} for name, parameters in self.parameter_groups().items()]
        # The fused update does the same in one pass. It is not used with a gradient scaler, because it would do the
        # unscaling instead of Lightning, which then refuses to clip.
        fused = getattr(self.trainer.precision_plugin, "scaler", None) is None
        return torch.optim.Adam(groups, fused=fused)  # learning rates are set before each step

    def on_train_batch_start(self, batch, batch_idx) -> None:
        self._largest_gradient = None
        # Noise does not depend on earlier batches, so a resumed run gives the same results as an uninterrupted one.
        self._reseed(self.global_step, micro_batch=batch_idx % self.trainer.accumulate_grad_batches)
        halving = self.plateau.factor if self.optimization.decay == "plateau" else 1.0
        rates = self.optimization.rates(self.global_step, halving)
        for group in self.optimizers().param_groups:
            group["lr"] = rates[group["name"]]
        self.log_step({"train/learning_rate": group["lr"]})  # the last group's: that of `main`, if it exists

    def largest_gradient(self) -> Tensor:
        """() the infinity norm of the gradient of all trained parameters in this step, before clipping.

        It is computed once per step, at the first call, because clipping and `Divergence` both need it, and with a GPU
        it takes a millisecond of CPU time. Call it from `on_before_optimizer_step` on; nothing but clipping may change
        the gradient after the first call.
        """
        if self._largest_gradient is None:
            gradients = [p.grad for p in self._trained() if p.grad is not None]
            self._largest_gradient = nn.utils.get_total_norm(gradients, math.inf)
        return self._largest_gradient

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        # Lightning's own option clips by the L2 norm or by value, the public SLATE by the infinity norm.
        if self.optimization.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._trained(), self.optimization.clip_norm, self.largest_gradient())

    def _trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizers().param_groups for p in group["params"]]

    def on_validation_epoch_start(self) -> None:
        self._reseed(-1)  # the same initial slots at every validation

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch, batch_idx) -> None:
        self.log_dict(self._tags(self.evaluate(batch)), batch_size=len(batch["image"]), sync_dist=True)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        if self.split_metric is not None:
            # All processes have the same value; `sync_dist` only avoids Lightning's warning.
            self.log_dict(self._tags(self.split_metric.compute()), sync_dist=True)
            self.split_metric.reset()
        # Not in `on_validation_end`: callbacks save checkpoints before that.
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.watch_validation(self.trainer.callback_metrics)

    on_test_epoch_end = on_validation_epoch_end

    def watch_validation(self, metrics: dict[str, Tensor]) -> None:
        """Called with the results of a validation during training, before anything is saved."""
        if "val/loss" in metrics:
            self.plateau.update(float(metrics["val/loss"]))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if "plateau" in checkpoint:
            self.plateau.load_state_dict(checkpoint["plateau"])

    def _tags(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        split = "test" if self.trainer.testing else "val"
        return {f"{split}/{name}": value for name, value in values.items()}

    def _reseed(self, step: int, micro_batch: int = 0) -> None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        source = np.random.SeedSequence((seed, step + 1, self.global_rank, micro_batch))
        derived = int(source.generate_state(1, np.uint64)[0] >> np.uint64(1))
        # Seed only the generators in use: `torch.manual_seed` also records a seed, with a formatted stack trace, for
        # devices that are not initialised, which takes 2% of a small model's step.
        torch.default_generator.manual_seed(derived)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(derived)
