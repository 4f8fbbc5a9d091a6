"""Sprites: flat discs, squares and triangles on a dark background, drawn on the fly instead of read."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_modules.base import ArrayImages, ImageDataModule, Splits
from data_modules.scene_properties import property_rows
from implicit_slate.allowed import InnerShare, MultipleOf4, NonNegativeInt, PositiveInt
from implicit_slate.errors import UserError

SHAPES = ("disc", "square", "triangle")
COLOURS = {
    "red": (230, 60, 50),
    "green": (60, 190, 75),
    "blue": (65, 105, 225),
    "yellow": (250, 215, 55),
    "magenta": (215, 75, 205),
    "cyan": (70, 215, 220),
}
GROUND = (24, 24, 32)
COMBINATIONS = np.array([(shape, colour) for shape in range(len(SHAPES)) for colour in range(len(COLOURS))])
"""(18, 2): shape and colour."""
HELD_OUT = COMBINATIONS[:, 1] % len(SHAPES) == COMBINATIONS[:, 0]
"""(18,) bool: the combinations that can be held out from training, two colours of each shape."""
TRIES = 40
"""Number of places tried for an object that must not touch earlier ones."""
CHUNK = 200
"""Number of images drawn together; few enough for the CPU's cache."""


class Scenes(NamedTuple):
    """The objects of N images, at most M each; lengths are fractions of the image's side."""

    present: np.ndarray
    """(N, M) bool."""
    shape: np.ndarray
    """(N, M) index in `SHAPES`."""
    colour: np.ndarray
    """(N, M) index in `COLOURS`."""
    width: np.ndarray
    """(N, M)."""
    centre: np.ndarray
    """(N, M, 2): x to the right, y downwards."""
    texture: np.ndarray
    """(N, 3, 3): two frequencies and a phase of the background's stripes for each channel, all in [0, 1]."""


class Sprites(ImageDataModule):
    """Images of a few coloured shapes, with masks. Image i of a split depends only on the options and i.

    Args:
        num_objects: the smallest and the largest number of objects; all numbers are equally likely. Without `overlap`,
            an object for which no free place is found is left out, so there may be fewer, but never none.
        size: the smallest and the largest width of an object, as a fraction of the image's side.
        overlap: objects may hide each other; later ones are in front. A mask is the visible part of an object.
        ground: background: `plain`, or low-contrast `stripes` of random colour and direction.
        combinations: of shape and colour. `all`: every split has all 18. `seen`: six of them are held out from all
            splits. `unseen`: training and validation are as for `seen`, and the test split has only the held-out six.
        properties: add the objects' properties to each batch, in the columns of `data_modules.scene_properties`: x, y
            and the constant 0.5; shape; small or large; material, always the first; colour; 1 for a real object.
        num_images: numbers of training, validation and test images.
        data_seed: seed of the images.
    """

    def __init__(
        self,
        image_size: MultipleOf4 = 32,
        batch_size: PositiveInt = 16,
        num_workers: NonNegativeInt = 0,
        seed: NonNegativeInt | None = None,
        num_objects: tuple[PositiveInt, PositiveInt] = (2, 4),
        size: tuple[InnerShare, InnerShare] = (0.25, 0.4),
        overlap: bool = False,
        ground: Literal["plain", "stripes"] = "plain",
        combinations: Literal["all", "seen", "unseen"] = "all",
        properties: bool = False,
        num_images: tuple[PositiveInt, PositiveInt, PositiveInt] = (8000, 500, 1000),
        data_seed: NonNegativeInt = 0,
    ):
        super().__init__(image_size, batch_size, num_workers, seed)
        for name, (least, most) in {"num_objects": num_objects, "size": size}.items():
            if least > most:
                raise UserError(f"{name}=[{least}, {most}]: expected the smallest, then the largest")
        if num_objects[1] > (limit := np.iinfo(np.uint8).max):
            raise UserError(f"num_objects=[{num_objects[0]}, {num_objects[1]}]: a mask of bytes has at most {limit}")
        self.num_objects, self.size, self.overlap, self.ground = tuple(num_objects), tuple(size), overlap, ground
        self.combinations, self.properties = combinations, properties
        self.num_images, self.data_seed = tuple(num_images), data_seed

    def load(self) -> Splits:
        try:
            return Splits(*(self._draw(split, number) for split, number in enumerate(self.num_images)))
        except (MemoryError, ValueError) as error:  # the latter if the size exceeds the address space
            wanted = f"num_images={[*self.num_images]}, image_size={self.image_size}"
            raise UserError(f"{wanted}: so many pixels do not fit into memory ({error})") from None

    def _draw(self, split: int, number: int) -> ArrayImages:
        allowed = np.ones(len(COMBINATIONS), bool)
        if self.combinations != "all":
            allowed = HELD_OUT if self.combinations == "unseen" and split == 2 else ~HELD_OUT
        rng = np.random.default_rng([self.data_seed, split])
        scenes = place_objects(rng, number, COMBINATIONS[allowed], self.num_objects, self.size, self.overlap)
        images = np.empty((number, self.image_size, self.image_size, 3), np.uint8)
        masks = np.empty(images.shape[:3], np.uint8)
        for start in range(0, number, CHUNK):
            part = slice(start, start + CHUNK)
            chunk = Scenes(*(array[part] for array in scenes))
            images[part], masks[part] = paint(chunk, self.image_size, self.ground == "stripes")
        return ArrayImages(images, masks, properties_of(scenes, self.size) if self.properties else None)


def place_objects(
    rng: np.random.Generator,
    number: int,
    combinations: np.ndarray,
    num_objects: tuple[int, int],
    size: tuple[float, float],
    overlap: bool,
) -> Scenes:
    """`number` scenes with objects from `combinations` (C, 2). A larger `number` does not change the first scenes."""
    least, most = num_objects
    # One row of random numbers per image, so that an image depends only on its index.
    draws = rng.random((number, 1 + 9 + most * (2 + 2 * TRIES)), np.float32)
    count, texture, objects = np.split(draws, (1, 10), axis=1)
    objects = objects.reshape(number, most, -1)
    present = np.arange(most) < least + (count * (most + 1 - least)).astype(int)
    shape, colour = np.moveaxis(combinations[(objects[:, :, 0] * len(combinations)).astype(int)], -1, 0)
    width = size[0] + (size[1] - size[0]) * objects[:, :, 1]
    places = objects[:, :, 2:].reshape(number, most, TRIES, 2)
    places = width[..., None, None] / 2 + (1 - width[..., None, None]) * places  # entirely inside the image
    centre = places[:, :, 0].copy()
    for m in range(0 if overlap else most):
        offset = np.abs(places[:, m, :, None] - centre[:, None, :m]).max(-1)  # (N, tries, m)
        apart = (width[:, m, None] + width[:, :m]) / 2
        free = ((offset > apart[:, None]) | ~present[:, None, :m]).all(-1)
        first = free.argmax(1)
        centre[:, m] = places[np.arange(number), m, first]
        present[:, m] &= free.any(1)
    return Scenes(present, shape, colour, width, centre, texture.reshape(number, 3, 3))


def paint(scenes: Scenes, image_size: int, stripes: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (N, H, W, 3), antialiased, and masks, uint8 (N, H, W): 0 = background, m + 1 = object m."""
    pixel = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size
    x, y = pixel[None, None, :], pixel[None, :, None]
    images = np.broadcast_to(np.array(GROUND, np.float32), (len(scenes.width), image_size, image_size, 3)).copy()
    if stripes:
        across, down, phase = np.moveaxis(scenes.texture[:, None, None], -1, 0)  # (N, 1, 1, 3) each
        periods = 6 * (across - 0.5) * x[..., None] + 6 * (down - 0.5) * y[..., None] + phase
        images += 20 * (1 + np.sin(2 * np.pi * periods))
    masks = np.zeros(images.shape[:3], np.uint8)
    palette = np.array(list(COLOURS.values()), np.float32)
    for m in range(scenes.width.shape[1]):
        right = x - scenes.centre[:, m, 0, None, None]
        down = y - scenes.centre[:, m, 1, None, None]
        outside = _distance(scenes.shape[:, m, None, None], right, down, scenes.width[:, m, None, None] / 2)
        outside[~scenes.present[:, m]] = np.inf
        cover = np.clip(0.5 - outside * image_size, 0, 1)[..., None]  # share of a pixel, whose side is 1 / image_size
        images += cover * (palette[scenes.colour[:, m], None, None] - images)
        masks[outside < 0] = m + 1
    return np.rint(images).astype(np.uint8), masks


def _distance(shape: np.ndarray, right: np.ndarray, down: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Signed distance of a point from a shape of width 2·half whose bounding square is centred on the origin (negative
    inside; exact near straight edges)."""
    disc = np.sqrt(right**2 + down**2) - half
    square = np.maximum(np.abs(right), np.abs(down)) - half
    # The triangle's base is the square's lower side, its tip the middle of the upper side.
    triangle = np.maximum((2 * np.abs(right) - down - half) / np.sqrt(np.float32(5)), down - half)
    return np.choose(shape, (disc, square, triangle))


def properties_of(scenes: Scenes, size: Sequence[float]) -> Tensor:
    """Properties of the objects, float32 (N, M, P), with rows of zeros where there is no object."""
    large = (scenes.width > sum(size) / 2).astype(int)
    coordinates = np.concatenate([scenes.centre, np.full((*large.shape, 1), 0.5)], -1)
    values = {"shape": scenes.shape, "size": large, "material": np.zeros_like(large), "color": scenes.colour}
    return torch.from_numpy(property_rows(coordinates, values) * scenes.present[..., None])
