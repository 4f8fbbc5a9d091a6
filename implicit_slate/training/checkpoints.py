"""Checkpoints as Lightning writes them, read without running what they may hold.

Importing this module lets torch read `Optimization`, the only class of ours in a checkpoint's settings, with
`weights_only=True`. So `trainer.fit(..., ckpt_path=PATH, weights_only=True)` continues a training of our modules, and
runs no code that somebody may have put into the file.
"""

from pathlib import Path
from typing import Any

import torch

from implicit_slate.errors import UserError
from implicit_slate.training.optimization import Optimization

torch.serialization.add_safe_globals([Optimization])


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of one of our modules, on the CPU.

    Raises:
        UserError: there is no file at `path`, it is damaged, holds more than data, or is no checkpoint of a module.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        if foreign := _foreign(path):
            raise UserError(f"{path}: not loaded, because it holds {', '.join(foreign)}, which may run code") from None
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
