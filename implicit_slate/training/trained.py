"""A trained model, taken out of its checkpoint."""

import importlib
from pathlib import Path
from typing import NamedTuple

from implicit_slate.errors import UserError
from implicit_slate.models import SlotModel
from implicit_slate.training.checkpoints import read_checkpoint
from implicit_slate.training.slot_module import SlotModule

DEFAULT = "implicit_slate.training.SLATEModule"
"""The class of a checkpoint that names none, as of one that was imported from the public code."""
ONLY_FOR_TRAINING = ("optimization", "dvae_checkpoint")
"""Settings that a trained model does not need; the weights of the other checkpoint are in this one."""


class Trained(NamedTuple):
    model: SlotModel
    """In evaluation mode, on the CPU."""
    step: int | None
    """Gradient steps of its training; None where the checkpoint does not say."""


def load_trained(path: str | Path) -> Trained:
    """The model with slots in a checkpoint of a `SlotModule`, ours or another that can be imported.

    Raises:
        UserError: there is no checkpoint, a damaged one, or one of something else; names the file.
    """
    checkpoint = read_checkpoint(path)
    settings = checkpoint.get("hyper_parameters")
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not a checkpoint of ours: it holds no hyper_parameters")
    kind = _class(settings.get("_class_path", DEFAULT), path)
    settings = {
        key: value for key, value in settings.items() if not key.startswith("_") and key not in ONLY_FOR_TRAINING
    }
    try:
        module = kind(**settings)
        module.load_state_dict(checkpoint["state_dict"])
    except (TypeError, ValueError, RuntimeError) as error:  # unknown settings, impossible ones, another shape
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not a checkpoint of {kind.__name__} as it is now: {reason}") from None
    return Trained(module.model.eval().requires_grad_(False), checkpoint.get("global_step"))


def _class(name: str, path: str | Path) -> type[SlotModule]:
    module, _, attribute = str(name).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        raise UserError(f"{path}: a checkpoint of {name}, which cannot be imported here") from None
    if not (isinstance(kind, type) and issubclass(kind, SlotModule)):
        raise UserError(f"{path}: a checkpoint of {name}, which has no slots")
    return kind
