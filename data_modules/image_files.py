"""Images and masks in files: decoded, checked, cropped and resized; errors say which file and what was expected."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image

from implicit_slate.errors import UserError

DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # Pillow's modes of more than 8 bits, which it would clip


@dataclass(frozen=True)
class Crop:
    """The square part of an image that is used, and the sizes that the image may have.

    Args:
        expected: (width, height) in pixels; or "square", or "any".
        box: left, top, right, bottom in pixels; None: the largest square in the middle.
    """

    expected: tuple[int, int] | Literal["square", "any"] = "any"
    box: tuple[int, int, int, int] | None = None

    def apply(self, image: Image.Image, name: object) -> Image.Image:
        """UserError, which calls the image `name`, if its size is not the expected one."""
        width, height = image.size
        if self.expected == "square" and width != height:
            raise UserError(f"{name}: expected a square image, found {width} × {height} pixels")
        if isinstance(self.expected, tuple) and image.size != self.expected:
            wanted = f"{self.expected[0]} × {self.expected[1]}"
            raise UserError(f"{name}: expected an image of {wanted} pixels, found {width} × {height}")
        if self.box is None:
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
        else:
            box = self.box
        return image if box == (0, 0, width, height) else image.crop(box)


SQUARE, CENTRE = Crop("square"), Crop("any")


class Item(NamedTuple):
    """An image of a data set and, where there is one, its mask."""

    image: Path
    mask: Path | None = None


class Example(NamedTuple):
    """An item as it is used."""

    image: np.ndarray
    """uint8 (size, size, 3)"""
    mask: np.ndarray | None
    """uint8 (size, size)"""
    mode: str
    """Pillow's name of the file's colours, RGB if nothing had to be converted."""


def open_image(file: Path | BinaryIO, name: object) -> Image.Image:
    """The square image in `file` in RGB. UserError calls the file `name`."""
    return SQUARE.apply(_in_colour(decode(file, name), name), name)


def open_mask(file: Path | BinaryIO, name: object, image_size: tuple[int, int]) -> Image.Image:
    """The one-channel mask in `file`, of an image of `image_size` (width, height). UserError calls the file `name`."""
    mask = decode(file, name)
    if mask.mode not in ("L", "P"):
        raise UserError(f"{name}: expected a mask of one 8-bit channel, found mode {mask.mode}")
    check_mask_size(mask, name, image_size)
    return mask


def check_mask_size(mask: Image.Image, name: object, image_size: tuple[int, int]) -> None:
    if mask.size != image_size:
        raise UserError(
            f"{name}: expected a mask as large as its image, {image_size[0]} × {image_size[1]} pixels, "
            f"found {mask.width} × {mask.height}"
        )


def read_item(item: Item, size: int, crop: Crop = SQUARE, open_mask: Callable = open_mask) -> Example:
    """The image, and the mask, cropped and resized to `size`.

    Args:
        open_mask: as the function of this module, for masks of another format.

    Raises:
        UserError: names the file that is missing, damaged, or of another size than expected.
    """
    whole = decode(item.image, item.image)
    image = resize_image(crop.apply(_in_colour(whole, item.image), item.image), size)
    if item.mask is None:
        return Example(image, None, whole.mode)
    mask = open_mask(item.mask, item.mask, whole.size)
    return Example(image, resize_mask(crop.apply(mask, item.mask), size), whole.mode)


def resize_image(image: Image.Image, size: int) -> np.ndarray:
    """uint8 (size, size, 3). A whole factor averages areas, as larger pixels would; another is bicubic."""
    if image.width % size == 0:
        return np.asarray(image.reduce(image.width // size))
    return np.asarray(image.resize((size, size), Image.BICUBIC))


def resize_mask(mask: Image.Image, size: int) -> np.ndarray:
    """uint8 (size, size), by nearest neighbours."""
    return np.asarray(mask.resize((size, size), Image.NEAREST))


def decode(file: Path | BinaryIO, name: object) -> Image.Image:
    """What Pillow makes of `file`. UserError calls it `name`."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"{name}: expected an image file there, found nothing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # foreign, truncated or damaged
        reason = str(error).replace(str(file), "it")
        raise UserError(f"{name}: expected an image file that can be decoded ({reason})") from None


def _in_colour(image: Image.Image, name: object) -> Image.Image:
    if image.mode in DEEP:
        raise UserError(f"{name}: expected 8 bits a channel, found more (mode {image.mode})")
    return image.convert("RGB")
