"""Images and masks in files: decoded, checked and resized, with errors that say which file and what was expected."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from data_modules.base import Batch
from implicit_slate.errors import UserError


def open_image(file: Path | BinaryIO, name: object) -> Image.Image:
    """The square RGB image in `file`. UserError calls the file `name`."""
    image = _decode(file, name).convert("RGB")
    if image.width != image.height:
        raise UserError(f"{name}: expected a square image, found {image.width} × {image.height} pixels")
    return image


def open_mask(file: Path | BinaryIO, name: object, image_size: tuple[int, int]) -> Image.Image:
    """The one-channel mask in `file`, of an image of `image_size` (width, height). UserError calls the file `name`."""
    mask = _decode(file, name)
    if mask.mode not in ("L", "P"):
        raise UserError(f"{name}: expected a mask of one 8-bit channel, found mode {mask.mode}")
    if mask.size != image_size:
        raise UserError(
            f"{name}: expected a mask as large as its image, {image_size[0]} × {image_size[1]} pixels, "
            f"found {mask.width} × {mask.height}"
        )
    return mask


def resize_image(image: Image.Image, size: int) -> np.ndarray:
    """uint8 (size, size, 3). A whole factor averages areas, as larger pixels would; another is bicubic."""
    if image.width % size == 0:
        return np.asarray(image.reduce(image.width // size))
    return np.asarray(image.resize((size, size), Image.BICUBIC))


def resize_mask(mask: Image.Image, size: int) -> np.ndarray:
    """uint8 (size, size), by nearest neighbours."""
    return np.asarray(mask.resize((size, size), Image.NEAREST))


class FileImages:
    """Images, and masks, that are decoded each time they are asked for.

    Args:
        images: paths of square images.
        masks: paths of their masks, in the same order; or None.
        size: side in pixels of what is returned.
    """

    def __init__(self, images: Sequence[Path], masks: Sequence[Path] | None, size: int):
        self.images, self.masks, self.size = images, masks, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> Batch:
        images, masks = [], []
        for index in indices:
            image = open_image(self.images[index], self.images[index])
            images.append(resize_image(image, self.size))
            if self.masks is not None:
                mask = open_mask(self.masks[index], self.masks[index], image.size)
                masks.append(resize_mask(mask, self.size))
        batch = {"image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float().div_(255)}
        if self.masks is not None:
            batch["mask"] = torch.from_numpy(np.stack(masks)).long()
        return batch


def _decode(file: Path | BinaryIO, name: object) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"{name}: expected an image file there, found nothing") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on foreign, truncated and damaged files
        reason = str(error).replace(str(file), "it")
        raise UserError(f"{name}: expected an image file that can be decoded ({reason})") from None
