"""Images and masks as the data modules open them, with what a check asks beyond that."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_modules.image_files import open_image, open_mask


def read_image(path: Path) -> tuple[tuple[int, int], str]:
    """(width, height) of the image, all of which is decoded, and the mode in which it is stored. UserError as
    `open_image`."""
    size = open_image(path, path).size
    with Image.open(path) as image:
        return size, image.mode


def read_mask(path: Path, image_size: tuple[int, int] | None) -> np.ndarray:
    """The mask, uint8 (H, W), of an image of (width, height) `image_size`; None: it cannot be read. UserError as
    `open_mask`."""
    if image_size is None:
        try:
            with Image.open(path) as mask:
                image_size = mask.size
        except (OSError, SyntaxError, ValueError):
            image_size = (0, 0)  # open_mask says what is wrong
    return np.asarray(open_mask(path, path, image_size))
