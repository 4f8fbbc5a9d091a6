"""Checkpoints as Lightning writes them, read without running what they may hold."""

from pathlib import Path
from typing import Any

import torch

from implicit_slate.errors import UserError
from implicit_slate.training.optimization import Optimization


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of one of our modules. `UserError` if there is none at `path`, or it cannot be read."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals([Optimization]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({type(error).__name__})") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: not a checkpoint of ours: it holds no state_dict")
    return checkpoint
