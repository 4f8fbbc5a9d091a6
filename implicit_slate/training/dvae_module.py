"""Training of the discrete VAE alone, with a warm start that prevents collapse."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from implicit_slate.allowed import NonNegativeInt, PositiveFloat, PositiveInt
from implicit_slate.errors import TrainingError, UserError
from implicit_slate.metrics import CodeUsage
from implicit_slate.models.dvae import DiscreteVAE, gumbel_softmax, squared_error
from implicit_slate.models.portable import SUFFIX, load_pretrained, load_weights
from implicit_slate.training.base import TrainingModule
from implicit_slate.training.checkpoints import read_checkpoint
from implicit_slate.training.optimization import Optimization, cosine

PATCHES_PER_CODE = 200
"""Number of patches per code in the k-means clustering of the warm start."""
CHROMA_WEIGHT = 2.0
"""Weight of colour in that clustering, where grey has weight 1: most patches are background and have no colour."""


class DVAEModule(TrainingModule):
    """The discrete VAE alone: reconstruction through V codes.

    Args:
        vocab_size: V.
        image_channels: C.
        optimization: the optimiser's settings; neither warmup nor half-life apply to the dVAE's group.
        tau_start: temperature of the Gumbel-softmax at step 0.
        tau_final: temperature from step `tau_steps` on.
        tau_steps: number of steps of the cosine schedule between the two.
        warm_start_steps: number of first steps in which the encoder learns k-means labels of the 4×4 patches, and the
            decoder to reconstruct images from them; without these, a short training ends with only a few codes in use.
        min_codes: fail at the end of training if fewer codes are in use on the validation set.

    Raises:
        UserError: `min_codes` is larger than `vocab_size`.
        TrainingError: at the end of training, fewer than `min_codes` are in use.
    """

    def __init__(
        self,
        vocab_size: PositiveInt = 1024,
        image_channels: PositiveInt = 3,
        optimization: Optimization = Optimization(),
        tau_start: PositiveFloat = 1.0,
        tau_final: PositiveFloat = 0.1,
        tau_steps: PositiveInt = 30_000,
        warm_start_steps: NonNegativeInt = 0,
        min_codes: NonNegativeInt = 2,
    ):
        super().__init__(optimization)
        if min_codes > vocab_size:
            raise UserError(f"min_codes={min_codes}: there are only vocab_size={vocab_size} codes")
        self.save_hyperparameters()
        self.tau_start, self.tau_final, self.tau_steps = tau_start, tau_final, tau_steps
        self.warm_start_steps, self.min_codes = warm_start_steps, min_codes
        self.dvae = DiscreteVAE(vocab_size, image_channels)
        self.register_buffer("centroids", torch.zeros(vocab_size, image_channels * 16), persistent=False)
        self.split_metric = CodeUsage(vocab_size)
        self._codes_in_use = math.inf

    def on_fit_start(self) -> None:
        if self.warm_start_steps:
            self.centroids.copy_(self.trainer.strategy.broadcast(self._cluster_patches()))

    def _cluster_patches(self) -> Tensor:
        """k-means centroids (V, 16 C) of training patches; a function of data and seed."""
        from scipy.cluster.vq import kmeans2  # takes a second to import, and is needed only here

        wanted, patches = PATCHES_PER_CODE * len(self.centroids), []
        for batch in self.trainer.datamodule.train_dataloader():
            patches.append(colourful_patches(batch["image"]).flatten(0, 1))
            if sum(map(len, patches)) >= wanted:
                break
        data = torch.cat(patches)[:wanted].cpu().numpy()
        centroids, labels = kmeans2(data, len(self.centroids), iter=15, minit="++", rng=0)
        rank_zero_info(f"warm start: {len(set(labels.tolist()))} of {len(centroids)} clusters of {len(data)} patches")
        return torch.from_numpy(centroids).to(self.device)

    def training_step(self, batch, batch_idx) -> Tensor:
        image = batch["image"]
        logits = self.dvae.logits(image)
        if self.global_step < self.warm_start_steps:
            patches, centroids = colourful_patches(image).float(), self.centroids.float()
            labels = torch.cdist(patches, centroids.expand(len(image), -1, -1)).argmin(-1)
            cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / len(image)
            mse = squared_error(self.dvae.decode_tokens(labels), image)
            loss = cross_entropy + mse
        else:
            tau = cosine(self.global_step, self.tau_start, self.tau_final, self.tau_steps)
            reconstruction = self.dvae.decode(gumbel_softmax(logits, tau))
            loss = mse = squared_error(reconstruction, image)
            self.log_step({"train/tau": tau})
        self.log_step({"train/loss": loss, "train/mse": mse})
        return loss

    def evaluate(self, batch):
        image = batch["image"]
        tokens = self.dvae.logits(image).argmax(-1)
        self.split_metric.update(tokens)
        mse = squared_error(self.dvae.decode_tokens(tokens), image)
        return {"mse": mse, "loss": mse}

    def watch_validation(self, metrics):
        super().watch_validation(metrics)
        self._codes_in_use = float(metrics.get("val/codes_in_use", self._codes_in_use))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["codes_in_use"] = self._codes_in_use

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self._codes_in_use = checkpoint.get("codes_in_use", math.inf)

    def on_fit_end(self) -> None:
        if self._codes_in_use < self.min_codes:
            raise TrainingError(
                f"the dVAE collapsed: {int(self._codes_in_use)} of {len(self.centroids)} codes in use on the "
                f"validation set, fewer than min_codes={self.min_codes}"
            )


def colourful_patches(image: Tensor) -> Tensor:
    """The tokens' 4×4 patches, with enhanced colour: (B, C, H, W) -> (B, N, 16 C), row by row."""
    grey = image.mean(1, keepdim=True)
    return F.pixel_unshuffle(grey + CHROMA_WEIGHT * (image - grey), 4).flatten(2).mT


def load_dvae(dvae: DiscreteVAE, path: str) -> None:
    """Load the weights of `dvae`.

    Args:
        path: a checkpoint of `DVAEModule` or `SLATEModule`, a file of `implicit-slate export`, or the name of a model
            that comes with the project.

    Raises:
        UserError: the file cannot be read, or its dVAE has another size; names the file.
    """
    if path.endswith(SUFFIX) or not Path(path).is_file():
        model = load_pretrained(path)
        load_weights(dvae, getattr(model, "dvae", model).state_dict(), path)
        return
    state = read_checkpoint(path)["state_dict"]
    for prefix in ("dvae.", "model.dvae."):
        part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if part:
            break
    load_weights(dvae, part, path)
