"""Images and masks in files: decoded, checked, cropped and resized; errors say which file and what was expected."""

import io
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from implicit_slate.errors import UserError

warnings.filterwarnings("ignore", module="PIL")  # what they tell of a file does not name it
File = Path | zipfile.Path
Size = tuple[int, int]
"""Width and height in pixels, as Pillow has them."""

DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # Pillow's modes of more than 8 bits, which it would clip


@dataclass(frozen=True)
class Crop:
    """The square part of an image that is used, and the sizes that the image may have.

    Args:
        expected: width and height; or "square", or "any".
        box: left, top, right, bottom in pixels; None: the largest square in the middle.
        upright: turn the image first as its EXIF data say, which is how photographs are shown.
    """

    expected: Size | Literal["square", "any"] = "any"
    box: tuple[int, int, int, int] | None = None
    upright: bool = False

    def apply(self, image: Image.Image, file: File) -> Image.Image:
        """UserError naming `file` if the image is not of the expected size."""
        width, height = image.size
        if self.expected == "square" and width != height:
            raise UserError(f"{file}: expected a square image, found {width} × {height} pixels")
        if isinstance(self.expected, tuple) and image.size != self.expected:
            wanted = f"{self.expected[0]} × {self.expected[1]}"
            raise UserError(f"{file}: expected an image of {wanted} pixels, found {width} × {height}")
        if self.box is None:
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
        else:
            box = self.box
        return image if box == (0, 0, width, height) else image.crop(box)


SQUARE, CENTRE, PHOTOGRAPH = Crop("square"), Crop("any"), Crop("any", upright=True)


class Item(NamedTuple):
    """An image of a data set and, where there is one, its mask."""

    image: File
    mask: File | None = None


class Example(NamedTuple):
    """An item as it is used."""

    image: np.ndarray
    """uint8 (size, size, 3)"""
    mask: np.ndarray | None
    """uint8 (size, size)"""
    mode: str
    """Pillow's name of the file's colours, RGB if nothing had to be converted."""


def open_image(file: File, crop: Crop = SQUARE) -> tuple[Image.Image, Image.Image]:
    """The whole image in `file`, and cropped in RGB. UserError as for `read_item`."""
    whole = decode(file, crop.upright)
    if whole.mode in DEEP:
        raise UserError(f"{file}: expected 8 bits a channel, found more (mode {whole.mode})")
    return whole, crop.apply(whole.convert("RGB"), file)


def open_mask(file: File, image_size: Size | None) -> Image.Image:
    """The one-channel mask in `file`, of an image of `image_size`; None: of any size. UserError names the file."""
    mask = decode(file)
    if mask.mode not in ("L", "P"):
        raise UserError(f"{file}: expected a mask of one 8-bit channel, found mode {mask.mode}")
    return check_mask_size(mask, file, image_size)


def check_mask_size(mask: Image.Image, file: File, image_size: Size | None) -> Image.Image:
    """The mask. UserError naming `file` if it is not as large as its image."""
    if image_size not in (None, mask.size):
        raise UserError(
            f"{file}: expected a mask as large as its image, {image_size[0]} × {image_size[1]} pixels, "
            f"found {mask.width} × {mask.height}"
        )
    return mask


def read_item(item: Item, size: int, crop: Crop = SQUARE, open_mask: Callable = open_mask) -> Example:
    """The image, and the mask, cropped and resized to `size`.

    Args:
        open_mask: as the function of this module, for masks of another format.

    Raises:
        UserError: names the file that is missing, damaged, or of another size than expected.
    """
    whole, cropped = open_image(item.image, crop)
    mask = None
    if item.mask is not None:
        mask = resize_mask(crop.apply(open_mask(item.mask, whole.size), item.mask), size)
    return Example(resize_image(cropped, size), mask, whole.mode)


def resize_image(image: Image.Image, size: int) -> np.ndarray:
    """uint8 (size, size, 3). A whole factor averages areas, as larger pixels would; another is bicubic."""
    if image.width % size == 0:
        return np.asarray(image.reduce(image.width // size))
    return np.asarray(image.resize((size, size), Image.BICUBIC))


def resize_mask(mask: Image.Image, size: int) -> np.ndarray:
    """uint8 (size, size), by nearest neighbours."""
    return np.asarray(mask.resize((size, size), Image.NEAREST))


def decode(file: File, upright: bool = False) -> Image.Image:
    """The image in `file`, decoded by Pillow, and turned as its EXIF data say if asked. UserError names the file."""
    if not file.is_file():  # reading a named pipe would wait for its writer
        found = "something else" if file.exists() else "nothing"
        raise UserError(f"{file}: expected an image file there, found {found}")
    try:
        image = Image.open(io.BytesIO(file.read_bytes()))
        image.load()
        return ImageOps.exif_transpose(image) if upright else image
    except UnidentifiedImageError:
        reason = "it is of no known format"
    except Exception as error:  # Pillow's readers of formats and of EXIF data raise many kinds
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    raise UserError(f"{file}: expected an image file that can be decoded ({reason})")
