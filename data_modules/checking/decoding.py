"""Decodes an image and its mask as the data modules do, and goes on after a first error."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_modules.checking.survey import Checked
from data_modules.image_files import SQUARE, Crop, Item, open_mask, read_item
from implicit_slate.errors import UserError

SIZE = 8  # of the pixels that are made of an image and thrown away: making them decodes all of it


def check_item(item: Item, crop: Crop = SQUARE, open_mask: Callable = open_mask) -> Checked:
    """What decoding the item shows.

    Args:
        open_mask: as for `read_item`.
    """
    problems: list[str] = []
    size, mode, num_objects = None, "RGB", None
    try:
        mode = read_item(Item(item.image), SIZE, crop).mode
        size = _size(item.image)
    except UserError as error:
        problems.append(str(error))
    if item.mask is not None:
        try:
            num_objects = len(read_labels(item, size, open_mask))
        except UserError as error:
            problems.append(str(error))
    return Checked(str(item.image), problems, size, mode, num_objects)


def read_labels(item: Item, image_size: tuple[int, int] | None, open_mask: Callable = open_mask) -> list[int]:
    """The values in the item's mask but 0, sorted. UserError as by `open_mask`; if the image cannot be read, and
    `image_size` is None, the mask may be of any size."""
    return [int(label) for label in np.unique(open_mask(item.mask, item.mask, image_size or _size(item.mask))) if label]


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError):
        return (0, 0)  # decoding says what is wrong
