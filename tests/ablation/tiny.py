"""A model that trains in milliseconds, for tests of the grid runner; cells import it through PYTHONPATH."""

import time
from dataclasses import dataclass

import torch
from lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

from callbacks import Diverged


@dataclass(frozen=True)
class TinyOptimization:
    learning_rate: float = 0.1
    clip_norm: float | None = 1.0


class TinyModule(LightningModule):
    """Logs the same tags as SLATE. Diverges at step `diverge_at`, fails at `fail_at`; a step takes `pause` seconds."""

    def __init__(
        self,
        gradient: str = "implicit",
        optimization: TinyOptimization = TinyOptimization(),
        pause: float = 0.0,
        diverge_at: int | None = None,
        fail_at: int | None = None,
        checkpoint: str | None = None,
    ):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        if checkpoint is not None:
            self.layer.load_state_dict(_layer_of(checkpoint))
        self.optimization, self.pause, self.diverge_at, self.fail_at = optimization, pause, diverge_at, fail_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.diverge_at:
            raise Diverged(self.global_step)
        if self.global_step == self.fail_at:
            raise ValueError("as the test asks")
        time.sleep(self.pause)
        torch.manual_seed(self.global_step)
        loss = (self.layer(batch[0]) - torch.randn(())).square().mean()
        self.log("train/loss", loss)
        self.log("jacobian/spectral_norm", 1.0 + self.global_step / 100)
        self.log("grad_norm", 10.0 - self.global_step / 100)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/cross_entropy", self.layer(batch[0]).square().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.optimization.learning_rate)


class TinyData(LightningDataModule):
    def __init__(self, root: str | None = None):
        super().__init__()
        self.root = root

    def setup(self, stage):
        if self.root is not None:
            open(self.root).close()

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(40, 4)), 4)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 4)), 4)


def _layer_of(checkpoint):
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    return {key.removeprefix("layer."): value for key, value in state.items()}
