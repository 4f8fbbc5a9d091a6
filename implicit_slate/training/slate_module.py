"""Training of SLATE: jointly with its dVAE as in the paper, or on a frozen one."""

import torch

from data_modules.base import ImageDataModule
from implicit_slate.allowed import NonNegativeFloat, PositiveFloat, PositiveInt
from implicit_slate.errors import UserError
from implicit_slate.metrics import CodeUsage
from implicit_slate.models import SLATE
from implicit_slate.models.dvae import squared_error
from implicit_slate.training.compiling import INDUCTOR_OPTIONS, compile_losses
from implicit_slate.training.cuda_graphs import CUDAGraphs
from implicit_slate.training.dvae_module import load_dvae
from implicit_slate.training.optimization import Optimization, cosine
from implicit_slate.training.slot_module import SlotModule

TOKENIZED_AT_ONCE = 20_000
"""Largest number of training images whose tokens from a frozen dVAE are kept in memory; the same for validation."""
CHUNK = 100
"""How many of them are tokenized at a time."""


class SLATEModule(SlotModule):
    """SLATE and its losses, trained with its dVAE or on a frozen one.

    Args:
        optimization: the optimiser's settings and tricks.
        tau_start: temperature of the dVAE's Gumbel-softmax at step 0.
        tau_final: temperature from step `tau_steps` on.
        tau_steps: number of steps of the cosine schedule between the two.
        hard: give the dVAE's decoder one-hot samples, with straight-through gradients.
        dvae_checkpoint: where to load a dVAE, which stays frozen; for the possible values see `load_dvae`. Its tokens
            are the most likely ones, without noise, and only the rest of the model is trained.
        jacobian_weight: weight of the Jacobian regulariser ‖vᵀJ‖²/D at the resulting slots, which is added to the loss.
        compile: have `torch.compile` fuse the losses, forward and backward, without graph breaks. Compiling takes a
            minute, and does not pay off on a CPU. Dropout and noise then use other random numbers of the same
            distributions. The number of iterations must be fixed; None compiles on a GPU if it is.

    Raises:
        UserError: sizes or settings that do not fit together, such as `compile` with `tol` or `exact` gradients, whose
            number of iterations depends on the data.
    """

    def __init__(
        self,
        optimization: Optimization = Optimization(),
        tau_start: PositiveFloat = 1.0,
        tau_final: PositiveFloat = 0.1,
        tau_steps: PositiveInt = 30_000,
        hard: bool = False,
        dvae_checkpoint: str | None = None,
        jacobian_weight: NonNegativeFloat = 0.0,
        compile: bool | None = None,
        **slate,
    ):
        super().__init__(optimization, jacobian_weight)
        self.save_hyperparameters()
        self.tau_start, self.tau_final, self.tau_steps, self.hard = tau_start, tau_final, tau_steps, hard
        self.model = SLATE(**slate)
        self.dvae_is_frozen = dvae_checkpoint is not None
        if dvae_checkpoint is not None:
            load_dvae(self.model.dvae, dvae_checkpoint)
            self.model.dvae.requires_grad_(False)
        self.split_metric = CodeUsage(self.model.vocab_size)
        self._train_tokens: torch.Tensor | None = None
        self._kept: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._losses, self._predict = self.model.losses, self.model.predict
        solver, gradient = self.model.slot_attention.solver, self.model.slot_attention.gradient
        fixed = solver.tol is None and gradient.compiles
        if compile and not fixed:
            given = f"gradient {str(gradient)!r}" if solver.tol is None else f"tol={solver.tol}"
            raise UserError(f"compile=True: expected a fixed number of iterations, which {given} does not have")
        self._compile = compile if compile is not None or fixed else False

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._kept.clear()  # the data may have changed
        self._train_tokens = None

    def on_fit_start(self) -> None:
        on_gpu = self.device.type == "cuda"
        if not (on_gpu if self._compile is None else self._compile):
            return
        options = {"options": INDUCTOR_OPTIONS} if on_gpu else {}
        self._losses = compile_losses(self.model.losses, **options)
        self._predict = compile_losses(self.model.predict, **options)
        # The regulariser differentiates the update that the losses return, which a CUDA graph's results do not support.
        is_single = self.trainer.world_size == self.trainer.accumulate_grad_batches == 1
        if on_gpu and is_single and not self.jacobian_weight:
            self._losses = CUDAGraphs(self.model, self._losses)
            self._predict = CUDAGraphs(self.model, self._predict)

    def on_fit_end(self) -> None:
        self._losses, self._predict = self.model.losses, self.model.predict  # frees the memory of CUDA graphs

    def training_step(self, batch, batch_idx) -> torch.Tensor:
        if self.dvae_is_frozen:
            prediction = self._predict(self._tokenize(batch))
            loss = prediction.cross_entropy
        else:
            tau = cosine(self.global_step, self.tau_start, self.tau_final, self.tau_steps)
            # A tensor, because `torch.compile` would compile again for each new number.
            losses = self._losses(batch["image"], torch.full((), tau, device=self.device), hard=self.hard)
            prediction, loss = losses.prediction, losses.cross_entropy + losses.mse
            self.log_step({"train/mse": losses.mse, "train/tau": tau})
        self.log_step({"train/cross_entropy": prediction.cross_entropy})
        return self.log_training_loss(loss, prediction.solution, prediction.update)

    def on_train_start(self) -> None:
        data = self.trainer.datamodule
        images = data.splits.train if self.dvae_is_frozen and isinstance(data, ImageDataModule) else ()
        if 0 < len(images) <= TOKENIZED_AT_ONCE:
            chunks = torch.arange(len(images)).split(CHUNK)
            like = next(self.parameters())
            tokens = [self.model.tokenize(images[chunk.tolist()]["image"].to(like)).int() for chunk in chunks]
            self._train_tokens = torch.cat(tokens)

    def _tokenize(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The frozen dVAE's tokens (B, N) of training images. Computing them takes a twentieth of a small model's step,
        so for a small data set they are computed once, at the start."""
        if self._train_tokens is None:
            return self.model.tokenize(batch["image"])
        return self._train_tokens[batch["index"]].long()

    def evaluate(self, batch):
        tokens, mse = self._through_dvae(batch)
        cross_entropy = self.model.predict(tokens).cross_entropy
        self.split_metric.update(tokens)
        return {"cross_entropy": cross_entropy, "mse": mse, "loss": cross_entropy + mse}

    def _through_dvae(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens (B, N) of images and the error of their reconstruction, in evaluation mode. With a frozen dVAE
        they are the same in every validation and would take half of its time, so they are kept, too."""
        key = None
        if self.dvae_is_frozen and "index" in batch:
            key = tuple(batch["index"].tolist())
        if key not in self._kept:
            tokens = self.model.tokenize(batch["image"])
            mse = squared_error(self.model.dvae.decode_tokens(tokens), batch["image"])
            if key is None or (len(self._kept) + 1) * len(tokens) > TOKENIZED_AT_ONCE:
                return tokens, mse
            self._kept[key] = tokens.int(), mse
        tokens, mse = self._kept[key]
        return tokens.long(), mse
