"""What callbacks that look at slots have in common."""

from lightning import Callback, LightningModule, Trainer

from implicit_slate.errors import UserError


class OfSlots(Callback):
    """Base of callbacks of a module whose `model` has slots; `UserError` for another one, before it trains."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(getattr(pl_module, "model", None), "slot_attention"):
            name, kind = type(self).__name__, type(pl_module).__name__
            raise UserError(f"trainer.callbacks: {name} needs slots, but a {kind} has none")
