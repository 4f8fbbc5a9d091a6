"""3D Shapes, the data set of the public SLATE code."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_modules.cached import CachedDataModule
from data_modules.hdf5 import bytes_dataset, open_hdf5
from data_modules.image_files import resize_image
from data_modules.sources import Decoded, Source

SHAPE = (480_000, 64, 64, 3)
SPLITS = {"train": range(400_000), "val": range(400_001, 430_000), "test": range(430_001, 460_000)}
"""As the public SLATE code has them."""


class Shapes3D(CachedDataModule):
    """Rooms with one object each, without masks: `images`, uint8 (480000, 64, 64, 3), of `3dshapes.h5`.

    Args:
        root: the folder that holds `3dshapes.h5`.
    """

    def sources(self) -> dict[str, Source]:
        path = self.root / "3dshapes.h5"
        with open_hdf5(path) as file:
            bytes_dataset(file, path, "images", SHAPE)
        return {split: Shapes3DSource(path, part, self.image_size) for split, part in SPLITS.items()}


@dataclass(frozen=True)
class Shapes3DSource:
    """A range of the images."""

    path: Path
    part: range
    size: int

    PIECE = 1000

    def __repr__(self) -> str:
        return f"Shapes3DSource({self.part}, {self.size})"

    def __len__(self) -> int:
        return len(self.part)

    def files(self) -> list[Path]:
        return [self.path]

    def pieces(self) -> Iterator[np.ndarray]:
        with open_hdf5(self.path) as file:
            images = file["images"]
            for start in range(self.part.start, self.part.stop, self.PIECE):
                yield images[start : min(start + self.PIECE, self.part.stop)]

    def decode(self, piece: np.ndarray) -> Decoded:
        if piece.shape[1] == self.size:
            return Decoded(piece)
        return Decoded(np.stack([resize_image(Image.fromarray(image), self.size) for image in piece]))
