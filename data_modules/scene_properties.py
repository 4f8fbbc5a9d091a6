"""The objects of a scene file as rows of numbers: the targets of set prediction (Locatello et al. 2020)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from data_modules.rendering.scenes import ATTRIBUTES, Scene

LIMIT = 3.0
"""Coordinates are in [-LIMIT, LIMIT]; rows contain them scaled to [0, 1]."""
WIDTH = 3 + sum(map(len, ATTRIBUTES.values())) + 1


def property_rows(coordinates: np.ndarray, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Objects as rows of numbers: float32 (…, P).

    A row is: the 3 coordinates, scaled to [0, 1]; a one-hot vector for each of `ATTRIBUTES`; and a 1, which marks a
    real object.

    Args:
        coordinates: (…, 3), scaled to [0, 1].
        values: for each attribute, int (…): the index of each object's value.
    """
    one_hot = [np.eye(len(known))[values[key]] for key, known in ATTRIBUTES.items()]
    return np.concatenate([coordinates, *one_hot, np.ones((*coordinates.shape[:-1], 1))], -1, dtype=np.float32)


def scene_properties(scene: Scene) -> np.ndarray:
    """The objects of a scene: float32 (m, P), one row per object in the file's order; see `property_rows`."""
    things = scene["objects"]
    coordinates = (np.array([thing["3d_coords"] for thing in things]) + LIMIT) / (2 * LIMIT)
    values = {key: np.array([known.index(thing[key]) for thing in things]) for key, known in ATTRIBUTES.items()}
    return property_rows(coordinates, values)


def padded_properties(scenes: Sequence[Scene]) -> Tensor:
    """The objects of N scenes: float32 (N, M, P). M is the largest number of objects; scenes are padded with zeros."""
    properties = [scene_properties(scene) for scene in scenes]
    padded = np.zeros((len(scenes), max(map(len, properties)), WIDTH), np.float32)
    for rows, real in zip(padded, properties):
        rows[: len(real)] = real
    return torch.from_numpy(padded)
