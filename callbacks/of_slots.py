"""The base of callbacks that need slots."""

from lightning import Callback, LightningModule, Trainer

from implicit_slate.errors import UserError


class OfSlots(Callback):
    """Base of callbacks for modules whose `model` has slots; before training, UserError for any other module."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(getattr(pl_module, "model", None), "slot_attention"):
            name, kind = type(self).__name__, type(pl_module).__name__
            raise UserError(f"trainer.callbacks: {name} needs slots, but a {kind} has none")


class OfProbe(OfSlots):
    """Base of callbacks that look at the data module's probe images; `UserError` where it has none, too."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not hasattr(trainer.datamodule, "probe"):
            name, kind = type(self).__name__, type(trainer.datamodule).__name__
            raise UserError(
                f"trainer.callbacks: {name} needs a data module with probe(num_images), a batch of validation images; "
                f"{'there is none' if trainer.datamodule is None else f'{kind} has none'}"
            )
