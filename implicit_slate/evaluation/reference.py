"""Inception's features of true images, computed once for a split and kept: FID and KID need them every time."""

import io
import os
from hashlib import sha256
from pathlib import Path

import numpy as np

from data_modules.base import Images
from implicit_slate.files import write_atomically
from implicit_slate.metrics.inception import to_uint8

BATCH = 256


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/implicit_slate`, by default below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "implicit_slate"


class Reference:
    """The features of the first `count` images, float32 (N, 2048), in a file named after the images' own bytes: other
    images, another size or another order never meet it."""

    def __init__(self, images: Images, count: int):
        content = sha256()
        for start in range(0, count, BATCH):
            batch = images[list(range(start, min(start + BATCH, count)))]["image"]
            content.update(str(tuple(batch.shape)).encode() + to_uint8(batch).cpu().numpy().tobytes())
        self.path = cache_folder() / "inception" / f"{content.hexdigest()[:32]}.npy"
        self.count = count

    def load(self) -> np.ndarray | None:
        """The features, if they are kept; a damaged file is as none."""
        try:
            features = np.load(self.path)
        except (OSError, ValueError, EOFError):
            return None
        return features if len(features) == self.count else None

    def save(self, features: np.ndarray) -> None:
        file = io.BytesIO()
        np.save(file, features)
        write_atomically(self.path, file.getvalue())
