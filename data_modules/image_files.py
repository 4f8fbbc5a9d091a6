"""Images and masks in files: decoded, checked, cropped and resized; errors name the file and what was expected."""

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

warnings.filterwarnings("ignore", module="PIL")  # these warnings do not name the file
File = Path | zipfile.Path
Size = tuple[int, int]
"""Width and height in pixels, as in Pillow."""

DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # Pillow's modes with more than 8 bits, which conversion to RGB would clip


@dataclass(frozen=True)
class Crop:
    """The square part of an image that is used, and the allowed sizes of the image.

    Args:
        expected: (width, height), "square" or "any".
        box: left, top, right, bottom in pixels; None: the largest centred square.
        upright: first turn the image according to its EXIF data, as viewers of photographs do.
    """

    expected: Size | Literal["square", "any"] = "any"
    box: tuple[int, int, int, int] | None = None
    upright: bool = False

    def apply(self, image: Image.Image, file: File) -> Image.Image:
        """The cropped image. UserError naming `file` if the image does not have the expected size."""
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
    """The file of an image and, if there is one, of its mask."""

    image: File
    mask: File | None = None


class Example(NamedTuple):
    """An item, decoded and resized."""

    image: np.ndarray
    """uint8 (size, size, 3)"""
    mask: np.ndarray | None
    """uint8 (size, size)"""
    mode: str
    """Pillow's mode of the file; RGB if nothing had to be converted."""


def open_image(file: File, crop: Crop = SQUARE) -> tuple[Image.Image, Image.Image]:
    """The image in `file`: whole in its own mode, and cropped in RGB. UserError as in `read_item`."""
    whole = decode(file, crop.upright)
    if whole.mode in DEEP:
        raise UserError(f"{file}: expected 8 bits a channel, found more (mode {whole.mode})")
    return whole, crop.apply(whole.convert("RGB"), file)


def open_mask(file: File, image_size: Size | None) -> Image.Image:
    """The one-channel mask in `file`, which must have size `image_size` (None: any). UserError names the file."""
    mask = decode(file)
    if mask.mode not in ("L", "P"):
        raise UserError(f"{file}: expected a mask of one 8-bit channel, found mode {mask.mode}")
    return check_mask_size(mask, file, image_size)


def check_mask_size(mask: Image.Image, file: File, image_size: Size | None) -> Image.Image:
    """Returns the mask. UserError naming `file` if its size is not that of its image."""
    if image_size not in (None, mask.size):
        raise UserError(
            f"{file}: expected a mask as large as its image, {image_size[0]} × {image_size[1]} pixels, "
            f"found {mask.width} × {mask.height}"
        )
    return mask


def read_item(item: Item, size: int, crop: Crop = SQUARE, open_mask: Callable = open_mask) -> Example:
    """The image and the mask, cropped and resized to `size`.

    Args:
        open_mask: replaces this module's `open_mask` for masks of another format.

    Raises:
        UserError: a file is missing, damaged, or of an unexpected size; the message names it.
    """
    whole, cropped = open_image(item.image, crop)
    mask = None
    if item.mask is not None:
        mask = resize_mask(crop.apply(open_mask(item.mask, whole.size), item.mask), size)
    return Example(resize_image(cropped, size), mask, whole.mode)


def resize_image(image: Image.Image, size: int) -> np.ndarray:
    """uint8 (size, size, 3). Averages blocks of pixels if the width is a multiple of `size`, otherwise bicubic."""
    if image.width % size == 0:
        return np.asarray(image.reduce(image.width // size))
    return np.asarray(image.resize((size, size), Image.BICUBIC))


def resize_mask(mask: Image.Image, size: int) -> np.ndarray:
    """uint8 (size, size), by nearest neighbour."""
    return np.asarray(mask.resize((size, size), Image.NEAREST))


def decode(file: File, upright: bool = False) -> Image.Image:
    """The image in `file`, decoded by Pillow; `upright` turns it as its EXIF data say. UserError names the file."""
    if not file.is_file():  # reading a named pipe would block
        found = "something else" if file.exists() else "nothing"
        raise UserError(f"{file}: expected an image file there, found {found}")
    try:
        image = Image.open(io.BytesIO(file.read_bytes()))
        image.load()
        return ImageOps.exif_transpose(image) if upright else image
    except UnidentifiedImageError:
        reason = "it is of no known format"
    except Exception as error:  # Pillow's readers of formats and of EXIF data raise many types of errors
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    raise UserError(f"{file}: expected an image file that can be decoded ({reason})")
