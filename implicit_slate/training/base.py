"""What training has in common whichever model is trained."""

import math
import os

import lightning as L
import numpy as np
import torch
from torch import nn

from implicit_slate.training.optimization import Optimization, Plateau


class TrainingModule(L.LightningModule):
    """Adam with warmup, decay and infinity-norm clipping; noise that is a function of seed, step and rank.

    A subclass names its parameters in `parameter_groups` and logs `val/loss`, which plateau halving watches.
    """

    def __init__(self, optimization: Optimization):
        super().__init__()
        self.optimization = optimization
        self.plateau = Plateau(optimization.patience)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters of the groups `dvae` and `main`; a group may be missing."""
        raise NotImplementedError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        rates = {"dvae": self.optimization.dvae_learning_rate, "main": self.optimization.learning_rate}
        groups = [
            {"params": parameters, "lr": rates[name], "name": name}
            for name, parameters in self.parameter_groups().items()
        ]
        # The fused update does the same in one pass; under a gradient scaler it would take over the unscaling from
        # Lightning, which then refuses to clip.
        fused = self._trainer is None or getattr(self.trainer.precision_plugin, "scaler", None) is None
        return torch.optim.Adam(groups, lr=self.optimization.learning_rate, fused=fused)

    def on_train_batch_start(self, batch, batch_idx) -> None:
        # Noise depends on nothing before this step, so that a resumed run repeats the one that was not interrupted.
        self._reseed(self.global_step)
        halving = self.plateau.factor if self.optimization.decay == "plateau" else 1.0
        for group in self.optimizers().param_groups:
            if group["name"] == "main":
                factor = halving * self.optimization.main_factor(self.global_step)
                group["lr"] = self.optimization.learning_rate * factor
            else:
                group["lr"] = self.optimization.dvae_learning_rate * halving

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        # Lightning's own option clips by the L2 norm, or value by value; the public SLATE by the infinity norm.
        if self.optimization.clip_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.optimization.clip_norm, norm_type=math.inf)

    def on_validation_epoch_start(self) -> None:
        self._reseed(-1)  # the same initial slots at every validation

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking and "val/loss" in self.trainer.callback_metrics:
            self.plateau.update(float(self.trainer.callback_metrics["val/loss"]))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["plateau"] = vars(self.plateau).copy()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        vars(self.plateau).update(checkpoint.get("plateau", {}))

    def _reseed(self, step: int) -> None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        state = np.random.SeedSequence((seed, step + 1, self.global_rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> np.uint64(1)))
