"""What a scene file says of its objects, as rows of numbers: the targets of set prediction (Locatello et al. 2020)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data_modules.rendering.scenes import ATTRIBUTES, Scene

LIMIT = 3.0
"""Coordinates lie in [-LIMIT, LIMIT]; a row has them scaled to [0, 1]."""
WIDTH = 3 + sum(map(len, ATTRIBUTES.values())) + 1


def scene_properties(scene: Scene) -> np.ndarray:
    """The objects of a scene: float32 (m, P), one row per object in the file's order.

    A row is: the 3 coordinates, scaled to [0, 1]; one-hot vectors of `ATTRIBUTES`; and a 1, which says "real".
    """
    rows = []
    for thing in scene["objects"]:
        row = [(value + LIMIT) / (2 * LIMIT) for value in thing["3d_coords"]]
        for key, values in ATTRIBUTES.items():
            row += [float(value == thing[key]) for value in values]
        rows.append([*row, 1.0])
    return np.array(rows, np.float32)


def padded_properties(scenes: Sequence[Scene]) -> Tensor:
    """Of N scenes: float32 (N, M, P). M is the largest number of objects; rows of zeros stand behind the objects."""
    properties = [scene_properties(scene) for scene in scenes]
    padded = np.zeros((len(scenes), max(map(len, properties)), WIDTH), np.float32)
    for rows, real in zip(padded, properties):
        rows[: len(real)] = real
    return torch.from_numpy(padded)
