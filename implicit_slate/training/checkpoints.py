"""Checkpoints as Lightning writes them, read without running what they may hold, and the models in them.

Importing this module lets torch read `Optimization`, the only class of ours in a checkpoint's settings, with
`weights_only=True`. So `trainer.fit(..., ckpt_path=PATH, weights_only=True)` continues a training of our modules, and
runs no code that somebody may have put into the file.
"""

import pkgutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from implicit_slate.errors import UserError
from implicit_slate.models import SlotModel
from implicit_slate.models.portable import build, load_weights
from implicit_slate.training.optimization import Optimization
from implicit_slate.training.slot_module import SlotModule

torch.serialization.add_safe_globals([Optimization])

DEFAULT = "implicit_slate.training.SLATEModule"
"""The class of a checkpoint that names none, as of one that was imported from the public code."""
ONLY_FOR_TRAINING = ("optimization", "dvae_checkpoint", "compile")
"""Settings that a trained model does not need; the weights of the other checkpoint are in this one."""

ENCODER = "encoder"
"""The key of the settings of the model that `encoder_checkpoint` named; its file may be elsewhere by now."""


class Foreign(UserError):
    """A checkpoint holds more than data, which may be code that somebody has put there."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of one of our modules, on the CPU.

    Raises:
        UserError: there is no file at `path`, it cannot be read, is damaged, or is no checkpoint of a module.
        Foreign: it holds more than data.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        if foreign := _foreign(path):
            raise Foreign(f"{path}: not loaded, because it holds {', '.join(foreign)}, which may run code") from None
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({type(error).__name__})") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: not a checkpoint of ours: it holds no state_dict")
    return checkpoint


def _foreign(path: str | Path) -> list[str]:
    """What a checkpoint would import besides tensors and plain data; nothing where that cannot be told."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return []


class Trained(NamedTuple):
    model: SlotModel
    """In evaluation mode, on the CPU."""
    step: int | None
    """Gradient steps of its training; None where the checkpoint does not say."""
    settings: dict[str, Any] | None = None
    """Of the module that trained it, with its class; None where there was none."""


def load_trained(path: str | Path) -> Trained:
    """The model with slots in a checkpoint of a `SlotModule`, ours or another that can be imported.

    Raises:
        UserError: there is no checkpoint, a damaged one, or one of something else; names the file.
    """
    checkpoint = read_checkpoint(path)
    module = _initialised(checkpoint, path)
    load_weights(module, checkpoint["state_dict"], path)
    model = module.model.eval().requires_grad_(False)
    return Trained(model, checkpoint.get("global_step"), checkpoint["hyper_parameters"])


def load_untrained(path: str | Path, seed: int) -> SlotModel:
    """The model of `load_trained` with the random weights that the seed gives it; errors as there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _initialised(read_checkpoint(path), path).model.eval().requires_grad_(False)


def _initialised(checkpoint: dict[str, Any], path: str | Path) -> SlotModule:
    """The module of a checkpoint as it is before training."""
    settings = checkpoint.get("hyper_parameters")
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not a checkpoint of ours: it holds no hyper_parameters")
    name = str(settings.get("_class_path", DEFAULT))
    try:
        kind = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        remedy = "if it is your own, PYTHONPATH must name its folder"
        raise UserError(f"{path}: a checkpoint of {name}, which cannot be imported here; {remedy}") from None
    if not (isinstance(kind, type) and issubclass(kind, SlotModule)):
        raise UserError(f"{path}: a checkpoint of {name}, which has no slots")
    settings = {key: value for key, value in settings.items() if key[0] != "_" and key not in ONLY_FOR_TRAINING}
    if ENCODER not in checkpoint:
        return build(kind, settings, path)
    module = build(kind, settings | {"encoder_checkpoint": None}, path)
    module.use_encoder(_initialised({"hyper_parameters": checkpoint[ENCODER]}, path).model)
    return module
