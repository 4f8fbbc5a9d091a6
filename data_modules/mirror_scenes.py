"""The embedded data set: small mirror scenes with instance masks. `embedded/CARD.md` says how they were made."""

import io
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from data_modules.base import ArrayImages, ImageDataModule, Splits, split_70_15_15
from data_modules.image_files import open_image, open_mask, resize_image, resize_mask
from data_modules.scene_properties import parse_properties, with_properties
from implicit_slate.errors import UserError

EMBEDDED = Path(__file__).parent / "embedded" / "mirror_scenes.zip"


class MirrorScenes(ImageDataModule):
    """Rendered scenes of 3 to 6 objects before a mirror, 64 × 64, held in memory at `image_size`.

    By sorted name the first 70% train, the next 15% validate, the last 15% test.

    Args:
        properties: add the properties of the objects to a batch; see `data_modules.scene_properties`.
    """

    def __init__(
        self,
        image_size: int = 64,
        batch_size: int = 50,
        num_workers: int = 0,
        seed: int | None = None,
        properties: bool = False,
    ):
        super().__init__(image_size, batch_size, num_workers, seed)
        self.properties = properties

    def load(self) -> Splits:
        images, masks = read_zip(EMBEDDED, self.image_size)
        parts = split_70_15_15(range(len(images)), EMBEDDED)
        splits = Splits(*(ArrayImages(images[part.start : part.stop], masks[part.start : part.stop]) for part in parts))
        return with_properties(splits, read_zipped_properties(EMBEDDED)) if self.properties else splits


def read_zip(file: Path, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All images and masks of a zip file in the authors' layout, sorted by name.

    Returns:
        uint8 (N, image_size, image_size, 3) and uint8 (N, image_size, image_size).
    """
    images, masks = [], []
    try:
        with zipfile.ZipFile(file) as archive:
            names = sorted(name for name in archive.namelist() if name.startswith("images/"))
            for name in names:
                mask_name = f"masks/{PurePosixPath(name).name}"
                image = open_image(io.BytesIO(archive.read(name)), f"{file}: {name}")
                mask = open_mask(io.BytesIO(archive.read(mask_name)), f"{file}: {mask_name}", image.size)
                images.append(resize_image(image, image_size))
                masks.append(resize_mask(mask, image_size))
    except FileNotFoundError:
        raise UserError(f"{file}: expected the embedded scenes there, found nothing") from None
    except (OSError, zipfile.BadZipFile, KeyError, EOFError) as error:
        raise UserError(f"{file}: expected a zip file of scenes, but it cannot be read ({error})") from None
    if not images:
        raise UserError(f"{file}: expected images/*.png in it, found none")
    return np.stack(images), np.stack(masks)


def read_zipped_properties(file: Path) -> list[np.ndarray]:
    """Of each image of a zip file in the authors' layout, sorted by name, the properties of its objects.

    UserError names the scene file that is missing, and what is wrong in one.
    """
    with zipfile.ZipFile(file) as archive:
        images = sorted(name for name in archive.namelist() if name.startswith("images/"))
        names = [f"scenes/{PurePosixPath(name).stem}.json" for name in images]
        if missing := sorted(set(names) - set(archive.namelist())):
            raise UserError(f"{file}: expected {missing[0]} in it, found none")
        return [parse_properties(archive.read(name), f"{file}: {name}") for name in names]
