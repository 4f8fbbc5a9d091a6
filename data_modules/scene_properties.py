"""What a scene file says of its objects, as rows of numbers: the targets of set prediction (Locatello et al. 2020)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_modules.base import ArrayImages, Batch, Splits
from data_modules.progress import track
from data_modules.rendering.scenes import COLORS, MATERIALS, RADII, SHAPES
from implicit_slate.errors import UserError

ATTRIBUTES = {"shape": SHAPES, "size": tuple(RADII), "material": MATERIALS, "color": tuple(COLORS)}
"""The values of each attribute, in the order of a row's one-hot vectors."""
LIMIT = 3.0
"""Coordinates lie in [-LIMIT, LIMIT]; a row has them scaled to [0, 1]."""
WIDTH = 3 + sum(map(len, ATTRIBUTES.values())) + 1


class WithProperties:
    """Images whose batches carry the properties of their objects.

    Args:
        images: N images.
        properties: float32 (N, M, P) as `pad` makes them.
    """

    def __init__(self, images: ArrayImages, properties: Tensor):
        self.images, self.properties = images, properties

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices, dtype=torch.long, device=self.properties.device)
        return self.images[indices] | {"properties": self.properties.index_select(0, index)}

    @property
    def nbytes(self) -> int:
        return self.images.nbytes + self.properties.nbytes

    def move_to(self, device: torch.device) -> None:
        self.images.move_to(device)
        self.properties = self.properties.to(device)


def with_properties(splits: Splits, objects: Sequence[np.ndarray]) -> Splits:
    """The splits with the properties of their images: `objects` has an array for each, first those of `train`."""
    parts = pad(objects).split([len(part) for part in splits])
    return Splits(*map(WithProperties, splits, parts))


def pad(objects: Sequence[np.ndarray]) -> Tensor:
    """Arrays (m, P) as one tensor (N, M, P): M is the largest m, and rows of zeros stand behind the objects."""
    padded = np.zeros((len(objects), max(map(len, objects)), WIDTH), np.float32)
    for rows, real in zip(padded, objects):
        rows[: len(real)] = real
    return torch.from_numpy(padded)


def read_properties(paths: Sequence[Path]) -> list[np.ndarray]:
    """Of each scene file what `parse_properties` makes of it, with a progress bar."""
    return [parse_properties(_read(path), path) for path in track(paths, "read scenes", len(paths), unit="scene files")]


def parse_properties(text: bytes, name: object) -> np.ndarray:
    """The objects of a scene file: float32 (m, P), a row an object in the file's order.

    A row is: the 3 coordinates, scaled to [0, 1]; one-hot vectors of `ATTRIBUTES`; and a 1, which says "real".

    Raises:
        UserError: names the file, which is called `name`, and the key that is missing or has no known value.
    """
    try:
        objects = json.loads(text)["objects"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{name}: expected a scene in JSON with the key 'objects'") from None
    if not isinstance(objects, list) or not objects:
        raise UserError(f"{name}: objects: expected a list of at least one object")
    return np.stack([_row(thing, f"{name}: objects[{i}]") for i, thing in enumerate(objects)])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: expected a scene file there, it cannot be read ({error.strerror})") from None


def _row(thing: dict, name: str) -> np.ndarray:
    if not isinstance(thing, dict):
        raise UserError(f"{name}: expected an object with its attributes, found {thing!r}")
    for key in ("3d_coords", *ATTRIBUTES):
        if key not in thing:
            raise UserError(f"{name}: expected the key {key!r}, found none")
    point = thing["3d_coords"]
    if not (isinstance(point, list) and len(point) == 3 and all(map(_is_number, point))):
        raise UserError(f"{name}: 3d_coords: expected three numbers, found {point!r}")
    row = [(value + LIMIT) / (2 * LIMIT) for value in point]
    for key, values in ATTRIBUTES.items():
        if thing[key] not in values:
            raise UserError(f"{name}: {key}: expected one of {', '.join(values)}; found {thing[key]!r}")
        row += [float(value == thing[key]) for value in values]
    return np.array([*row, 1.0], np.float32)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
