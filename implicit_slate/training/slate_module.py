"""SLATE under training: jointly with its dVAE as in the paper, or on a frozen one."""

import torch

from implicit_slate.metrics import CodeUsage
from implicit_slate.models import SLATE
from implicit_slate.training.base import TrainingModule
from implicit_slate.training.dvae_module import load_dvae
from implicit_slate.training.optimization import Optimization, cosine


class SLATEModule(TrainingModule):
    """SLATE and its losses.

    Args:
        optimization: the optimiser's settings and tricks.
        tau_start: temperature of the dVAE's Gumbel-softmax at step 0.
        tau_final: temperature from step `tau_steps` on.
        tau_steps: steps of the cosine between the two.
        hard: give the dVAE's decoder one-hot samples, straight-through.
        dvae_checkpoint: a checkpoint of `DVAEModule` or `SLATEModule` whose dVAE is taken and stays frozen; its tokens
            are then the argmax ones, without noise, and only the rest is trained.
    """

    def __init__(
        self,
        optimization: Optimization = Optimization(),
        tau_start: float = 1.0,
        tau_final: float = 0.1,
        tau_steps: int = 30_000,
        hard: bool = False,
        dvae_checkpoint: str | None = None,
        **slate,
    ):
        super().__init__(optimization)
        self.save_hyperparameters()
        self.tau_start, self.tau_final, self.tau_steps, self.hard = tau_start, tau_final, tau_steps, hard
        self.model = SLATE(**slate)
        self.dvae_is_frozen = dvae_checkpoint is not None
        if dvae_checkpoint is not None:
            load_dvae(self.model.dvae, dvae_checkpoint)
            self.model.dvae.requires_grad_(False)
        self.code_usage = CodeUsage(self.model.vocab_size)

    def parameter_groups(self):
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        groups = {
            "dvae": [p for name, p in trained.items() if name.startswith("dvae.")],
            "main": [p for name, p in trained.items() if not name.startswith("dvae.")],
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    def training_step(self, batch, batch_idx) -> torch.Tensor:
        if self.dvae_is_frozen:
            loss = self.model.cross_entropy(self.model.tokenize(batch["image"]))
            self.log("train/cross_entropy", loss)
        else:
            tau = cosine(self.global_step, self.tau_start, self.tau_final, self.tau_steps)
            losses = self.model.losses(batch["image"], tau, self.hard)
            loss = losses.cross_entropy + losses.mse
            self.log_dict({"train/cross_entropy": losses.cross_entropy, "train/mse": losses.mse, "train/tau": tau})
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/learning_rate", self.optimizers().param_groups[-1]["lr"])
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        self._log_code_usage("val")

    def test_step(self, batch, batch_idx) -> None:
        self._evaluate(batch, "test")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        self._log_code_usage("test")

    def _evaluate(self, batch, split: str) -> None:
        losses = self.model.losses(batch["image"])
        values = {
            f"{split}/cross_entropy": losses.cross_entropy,
            f"{split}/mse": losses.mse,
            f"{split}/loss": losses.cross_entropy + losses.mse,
        }
        self.log_dict(values, batch_size=len(batch["image"]), sync_dist=True)
        self.code_usage.update(losses.tokens)

    def _log_code_usage(self, split: str) -> None:
        self.log_dict({f"{split}/{name}": value for name, value in self.code_usage.compute().items()})
        self.code_usage.reset()
