"""Decodes an image and its mask as the data modules do, and goes on after a first error."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from data_modules.checking.survey import Checked
from data_modules.image_files import SQUARE, Crop, Item, open_mask, read_item
from implicit_slate.errors import UserError

SIZE = 8  # of the pixels that are made of an image and thrown away: making them decodes all of it


def check_item(item: Item, crop: Crop = SQUARE, open_mask: Callable = open_mask) -> tuple[Checked, np.ndarray | None]:
    """What decoding the item shows, and the sorted values of its mask where that is as it should be.

    Args:
        open_mask: as for `read_item`.
    """
    problems, size, mode, labels = [], None, "RGB", None
    try:
        mode = read_item(Item(item.image), SIZE, crop).mode
    except UserError as error:
        problems.append(str(error))
    with_size = item.image if not problems else item.mask  # a bad image's mask is decoded all the same
    try:
        with Image.open(with_size) as image:
            size = image.size
    except (OSError, SyntaxError, ValueError, AttributeError):
        size = (0, 0)
    if item.mask is not None:
        try:
            labels = np.unique(open_mask(item.mask, item.mask, size))
        except UserError as error:
            problems.append(str(error))
    return Checked(str(item.image), problems, None if with_size != item.image else size, mode), labels
