"""CLEVR with masks (of DeepMind's multi-object data sets; used by Locatello et al. 2020), from TFRecords or HDF5."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from data_modules import tfrecords
from data_modules.base import Splits
from data_modules.cached import CachedDataModule, Examined
from data_modules.hdf5 import bytes_dataset, open_hdf5
from data_modules.image_files import Crop, resize_image, resize_mask
from data_modules.sources import Decoded, Source
from implicit_slate.allowed import MultipleOf4, PositiveInt
from implicit_slate.errors import UserError

SIZE = (320, 240)
CROP = Crop(SIZE, (64, 29, 256, 221))
"""Columns 64:256 and rows 29:221, as in Locatello et al. 2020."""
NUM_OBJECTS = range(3, 11)
MAX_MASKS = 256  # that a byte can number
Scene = tuple[np.ndarray, np.ndarray, np.ndarray | None]
SUFFIXES = (".tfrecords", ".tfrecord", ".h5", ".hdf5")


class CLEVR(CachedDataModule):
    """Scenes of 3 to 10 objects, with masks, cropped to rows 29:221 and columns 64:256.

    The file is either `clevr_with_masks_train.tfrecords` as distributed, whose Examples have the features `image`,
    `mask` and `visibility`, or an HDF5 file with datasets of these names: `image`, uint8 (N, 240, 320, 3); `mask`,
    uint8 (N, K, 240, 320, 1), one layer per entity, background first; and optionally `visibility`, (N, K), 1 for each
    entity in the scene, background included. The first `num_train` scenes are for training, the next `num_eval` for
    testing, the next `num_eval` for validation.

    Args:
        root: the file, or a folder with only this one data file.
        max_objects: leave out scenes with more objects; 6 gives CLEVR6. The test and validation splits still have
            `num_eval` scenes each.
        num_train: size of the training split, before scenes are left out.
        num_eval: size of the test split and of the validation split.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: MultipleOf4 = 128,
        max_objects: PositiveInt | None = None,
        num_train: PositiveInt = 70_000,
        num_eval: PositiveInt = 320,
        **options,
    ):
        super().__init__(root, image_size, **options)
        self.max_objects, self.num_train, self.num_eval = max_objects, num_train, num_eval
        if self.root.is_file() and options.get("cache_dir") is None:
            self.cache_dir = self.root.parent / self.cache_dir.name

    unit = "scenes"
    may_be_a_file = True

    def sources(self) -> dict[str, Source]:
        """One source: the scenes of all splits."""
        path = self._file()
        kind = TFRecordScenes if path.suffix.startswith(".tf") else HDF5Scenes
        return {"scenes": kind(path, self.image_size)}

    def load(self) -> Splits:
        [(name, source)] = self.sources().items()
        scenes = self._open(source, name)
        train, val, test = self._split(scenes.counts)
        return Splits(scenes.select(train), scenes.select(val), scenes.select(test))

    def sample_name(self, piece: tuple) -> str:
        return f"{piece[0]}"

    def examine(self, source: Source, piece: tuple) -> Examined:
        problems, [num_objects] = [], source.decode(piece).counts
        if num_objects not in NUM_OBJECTS:
            wanted = f"{NUM_OBJECTS[0]} to {NUM_OBJECTS[-1]}"
            problems.append(f"{source.path}: scene {piece[0]}: expected {wanted} objects, found {num_objects}")
        return Examined(problems, SIZE, labels=range(1, num_objects + 1))

    def conclude(self, examined: list[Examined]) -> None:
        self._split(np.array([len(each.labels or ()) for each in examined], int))

    def _split(self, num_objects: np.ndarray) -> Splits:
        """The indices of each split's scenes, given the number of objects in every scene, int (N,)."""
        fits, rows = num_objects <= (self.max_objects or np.inf), np.arange(len(num_objects))
        train, rest = rows[fits & (rows < self.num_train)], rows[fits & (rows >= self.num_train)]
        test, val = rest[: self.num_eval], rest[self.num_eval : 2 * self.num_eval]
        if not len(train) or len(val) < self.num_eval:
            few = f" of at most {self.max_objects} objects" if self.max_objects else ""
            self.wrong(
                f"{self._file()}: expected {self.num_train} scenes and {2 * self.num_eval}{few} after them, "
                f"found {len(rows)} scenes, {len(train)}{few} and {len(rest)} after them; num_train, num_eval set this"
            )
        return Splits(train, val, test)

    def _file(self) -> Path:
        kinds = ", ".join(SUFFIXES)
        if self.root.is_file() and self.root.suffix in SUFFIXES:
            return self.root
        if not self.root.is_dir():
            other = "another file" if self.root.exists() else "nothing"
            raise UserError(f"{self.root}: expected CLEVR with masks, a file ({kinds}) or its folder; found {other}")
        found = sorted(path for path in self.root.glob("[!.]*") if path.suffix in SUFFIXES)
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise UserError(f"{self.root}: expected one file ({kinds}), found {names}; root can name the file")
        return found[0]


@dataclass(frozen=True)
class Scenes(Source):
    """All scenes of a file; a subclass says how they are stored. A piece is (scene number, stored data)."""

    path: Path
    size: int

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path.name!r}, {self.size}, {CROP}, counts=objects)"

    def scene(self, number: int, stored: Any) -> Scene:
        """The image, uint8 (240, 320, 3); the mask layers, uint8 (K, 240, 320), background first, 0 where the entity is
        not visible; and the visibility, (K,), or None. UserError names the file and the scene's number."""
        raise NotImplementedError

    def decode(self, piece: tuple[int, Any]) -> Decoded:
        """The count is of objects in the whole scene; the crop may remove some."""
        pixels, layers, visibility = self.scene(*piece)
        self._check(piece[0], len(layers), visibility)
        image = CROP.apply(Image.fromarray(pixels), self.path)
        mask = CROP.apply(Image.fromarray(layers.argmax(0).astype(np.uint8)), self.path)
        there = layers.any((1, 2))[1:].sum() if visibility is None else visibility.sum() - 1
        images, masks = resize_image(image, self.size)[None], resize_mask(mask, self.size)[None]
        return Decoded(images, masks, [round(float(there))])

    def _check(self, number: int, num_masks: int, visibility: np.ndarray | None) -> None:
        scene = f"{self.path}: scene {number}"
        if not num_masks:
            raise UserError(f"{scene}: expected a mask of the background at least, found none")
        if num_masks > MAX_MASKS:
            raise UserError(f"{scene}: expected at most {MAX_MASKS} masks, found {num_masks}")
        if visibility is None:
            return
        if len(visibility) != num_masks or not ((visibility >= 0) & (visibility <= 1)).all():
            raise UserError(
                f"{scene}: expected `visibility` to be {num_masks} numbers from 0 to 1, found {visibility.tolist()}"
            )


class TFRecordScenes(Scenes):
    """The scenes of a TFRecord file, one per record."""

    def stored(self) -> Iterator[tuple[int, bytes]]:
        return enumerate(tfrecords.read_records(self.path))

    def scene(self, number: int, stored: bytes) -> Scene:
        width, height = SIZE
        try:
            features = tfrecords.features(stored)
            return (
                tfrecords.joined_bytes(features["image"]).reshape(height, width, 3),
                tfrecords.joined_bytes(features["mask"]).reshape(-1, height, width),
                tfrecords.floats(features["visibility"]),
            )
        except KeyError as error:
            raise UserError(f"{self.path}: record {number}: expected the feature {error}, found none") from None
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{self.path}: record {number}: expected image (240, 320, 3) and mask (K, 240, 320, 1) as bytes, "
                f"visibility (K) as floats ({error})"
            ) from None


class HDF5Scenes(Scenes):
    """The scenes of an HDF5 file, read by scene number."""

    def count(self) -> int:
        with self._opened() as (images, _, _):
            return len(images)

    def stored(self) -> Iterator[tuple[int, None]]:
        return ((number, None) for number in range(self.count()))

    def scene(self, number: int, stored: None) -> Scene:
        with self._opened() as (images, masks, visibility):
            return (images[number], masks[number, ..., 0], None if visibility is None else visibility[number])

    @contextmanager
    def _opened(self) -> Iterator[tuple]:
        with open_hdf5(self.path) as file:
            images = bytes_dataset(file, self.path, "image", (None, SIZE[1], SIZE[0], 3))
            masks = bytes_dataset(file, self.path, "mask", (len(images), None, SIZE[1], SIZE[0], 1))
            yield images, masks, self._visibility(file, masks.shape[:2])

    def _visibility(self, file: h5py.File, shape: tuple[int, int]) -> h5py.Dataset | None:
        found = file.get("visibility")
        if found is None or (getattr(found, "shape", None) == shape and found.dtype.kind in "biuf"):
            return found
        what = f"{found.dtype} {found.shape}" if isinstance(found, h5py.Dataset) else "a group"
        raise UserError(f"{self.path}: expected `visibility` to be numbers {shape}, found {what}")
