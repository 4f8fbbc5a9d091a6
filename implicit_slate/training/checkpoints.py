"""Read Lightning's checkpoints, without running code that they may contain, and load the models in them.

Importing this module allows torch to read `Optimization`, the only class of ours in a checkpoint's settings, with
`weights_only=True`. So `trainer.fit(..., ckpt_path=PATH, weights_only=True)` can resume training of our modules without
running any code from the file.
"""

import errno
import pkgutil
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile, is_zipfile

import torch

from implicit_slate.errors import UserError
from implicit_slate.models import SlotModel
from implicit_slate.models.portable import build, load_weights
from implicit_slate.training.optimization import Optimization
from implicit_slate.training.slot_module import SlotModule

torch.serialization.add_safe_globals([Optimization])

DEFAULT = "implicit_slate.training.SLATEModule"
"""The class of checkpoints that do not name one, such as those imported from the public code."""
ONLY_FOR_TRAINING = ("optimization", "dvae_checkpoint", "compile")
"""Settings that a trained model does not need. The weights from `dvae_checkpoint` are in the checkpoint itself."""

ENCODER = "encoder"
"""Key of the settings of the model in `encoder_checkpoint`. They are copied because that file may have moved."""


class Foreign(UserError):
    """A checkpoint has objects other than tensors and plain data, which may run code."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of one of our modules, to the CPU.

    Raises:
        UserError: the file is missing, unreadable or damaged, or is not a checkpoint of a module.
        Foreign: it has objects other than tensors and plain data.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        damaged = _damaged_part(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of exceptions for files in other formats
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which the first kilobytes of a file give
            raise UserError(f"{path}: {error.strerror or error}") from None
        if foreign := _foreign(path):
            raise Foreign(f"{path}: not loaded, because it holds {', '.join(foreign)}, which may run code") from None
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({type(error).__name__})") from None
    if damaged is not None:
        raise UserError(f"{path}: a damaged checkpoint (the checksum of {damaged} is wrong)")
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: not a checkpoint of ours: it holds no state_dict")
    return checkpoint


def _damaged_part(path: str | Path) -> str | None:
    """The name of the first part of a checkpoint whose checksum is wrong, which torch does not notice."""
    if not is_zipfile(path):
        return None
    with ZipFile(path) as archive:
        return archive.testzip()


def _foreign(path: str | Path) -> list[str]:
    """The names that a checkpoint would import besides tensors and plain data; empty if that cannot be determined."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return []


class Trained(NamedTuple):
    model: SlotModel
    """In evaluation mode, on the CPU."""
    step: int | None
    """Gradient steps of its training; None if the checkpoint does not say."""
    settings: dict[str, Any] | None = None
    """Settings of the module that trained it, including its class; None if there was none."""


def load_trained(path: str | Path) -> Trained:
    """Load the model with slots from a checkpoint of any `SlotModule` that can be imported.

    Raises:
        UserError: the checkpoint is missing, damaged, or of something else; names the file.
    """
    checkpoint = read_checkpoint(path)
    module = _initialised(checkpoint, path)
    load_weights(module, checkpoint["state_dict"], path)
    model = module.model.eval().requires_grad_(False)
    return Trained(model, checkpoint.get("global_step"), checkpoint["hyper_parameters"])


def load_untrained(path: str | Path, seed: int) -> SlotModel:
    """As `load_trained`, but with random initial weights drawn with `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _initialised(read_checkpoint(path), path).model.eval().requires_grad_(False)


def _initialised(checkpoint: dict[str, Any], path: str | Path) -> SlotModule:
    """The module of a checkpoint, with its initial weights."""
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
    settings = {
        key: value for key, value in settings.items() if not str(key).startswith("_") and key not in ONLY_FOR_TRAINING
    }
    if ENCODER not in checkpoint:
        return build(kind, settings, path)
    module = build(kind, settings | {"encoder_checkpoint": None}, path)
    module.use_encoder(_initialised({"hyper_parameters": checkpoint[ENCODER]}, path).model)
    return module
