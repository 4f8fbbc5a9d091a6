"""3D Shapes, the data set of the public SLATE code."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_modules.cached import CachedDataModule, Examined
from data_modules.hdf5 import bytes_dataset, open_hdf5
from data_modules.image_files import resize_image
from data_modules.sources import Decoded, Source
from implicit_slate.errors import UserError

SHAPE = (480_000, 64, 64, 3)
SPLITS = {"train": range(400_000), "val": range(400_001, 430_000), "test": range(430_001, 460_000)}
"""As in the public SLATE code."""


class Shapes3D(CachedDataModule):
    """Rooms with one object each, without masks: the dataset `images`, uint8 (480000, 64, 64, 3), in `3dshapes.h5`.

    Args:
        root: the folder that contains `3dshapes.h5`.
    """

    unit = "ranges of images"

    def sources(self) -> dict[str, Source]:
        path = self.root / "3dshapes.h5"
        if not path.is_file():
            raise UserError(f"{path}: expected the HDF5 file of 3D Shapes there, found nothing")
        try:
            with open_hdf5(path) as file:
                bytes_dataset(file, path, "images", SHAPE)
                labels = getattr(file.get("labels"), "shape", "nothing")
        except UserError as error:
            self.wrong(str(error))
            return {}
        if labels != (SHAPE[0], 6):
            self.suspect(f"{path}: expected `labels`, {(SHAPE[0], 6)}, found {labels}")
        return {split: Shapes3DSource(path, part, self.image_size) for split, part in SPLITS.items()}

    def sample_name(self, piece: range) -> str:
        return f"{piece[0]}:{piece[-1] + 1}"

    def examine(self, source: Source, piece: range) -> Examined:
        where = f"{source.path}: images {piece[0]} to {piece[-1]}"
        try:
            images = source.read(piece)
        except UserError as error:
            return Examined([f"{where}: {str(error).removeprefix(f'{source.path}: ')}"])
        flat = images.reshape(len(images), -1)
        blank = (flat.min(axis=1) == flat.max(axis=1)).nonzero()[0]  # HDF5 reads missing data as zeros
        if not len(blank):
            return Examined([])
        first = f"image {piece[0] + blank[0]}: all {flat[blank[0], 0]}"
        return Examined([f"{where}: expected pictures, found {len(blank)} without one ({first})"])


@dataclass(frozen=True)
class Shapes3DSource(Source):
    """A range of the images."""

    path: Path
    part: range
    size: int

    PIECE = 1000

    def __repr__(self) -> str:
        return f"Shapes3DSource({self.part}, {self.size})"

    def count(self) -> int:
        return len(self.part)

    def stored(self) -> Iterator[range]:
        return (self.part[start : start + self.PIECE] for start in range(0, len(self.part), self.PIECE))

    def read(self, piece: range) -> np.ndarray:
        """The images of a piece, uint8 (B, 64, 64, 3). UserError if the file is damaged there."""
        with open_hdf5(self.path) as file:
            return file["images"][piece[0] : piece[-1] + 1]

    def decode(self, piece: range) -> Decoded:
        images = self.read(piece)
        if images.shape[1] == self.size:
            return Decoded(images)
        return Decoded(np.stack([resize_image(Image.fromarray(image), self.size) for image in images]))
