"""The data set that comes with the project: small mirror scenes with instance masks, made as in `embedded/CARD.md`."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_modules.base import ArrayImages, ImageDataModule, Splits, split_70_15_15
from data_modules.image_files import Item, read_item
from data_modules.rendering.scenes import read_scene
from data_modules.scene_properties import padded_properties
from implicit_slate.allowed import MultipleOf4, NonNegativeInt, PositiveInt
from implicit_slate.errors import UserError

EMBEDDED = Path(__file__).parent / "embedded" / "mirror_scenes.zip"


class MirrorScenes(ImageDataModule):
    """Rendered 64 × 64 scenes of 3 to 6 objects in front of a mirror, kept in memory at `image_size`.

    Sorted by name, the first 70% are for training, the next 15% for validation, the last 15% for testing. With
    `num_workers` 0 they are kept in the memory of the trainer's device: 34 MB at 64 × 64.

    Args:
        properties: add the objects' properties to each batch; see `data_modules.scene_properties`.
    """

    def __init__(
        self,
        image_size: MultipleOf4 = 64,
        batch_size: PositiveInt = 50,
        num_workers: NonNegativeInt = 0,
        seed: NonNegativeInt | None = None,
        properties: bool = False,
    ):
        super().__init__(image_size, batch_size, num_workers, seed)
        self.properties, self.on_device = properties, num_workers == 0

    def load(self) -> Splits:
        try:
            with zipfile.ZipFile(EMBEDDED) as archive:
                root = zipfile.Path(archive)
                names = sorted(image.name for image in (root / "images").iterdir())
                return Splits(*(self._read(root, part) for part in split_70_15_15(names, EMBEDDED)))
        except FileNotFoundError:
            raise UserError(f"{EMBEDDED}: expected the embedded scenes there, found nothing") from None
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{EMBEDDED}: expected a zip file of scenes, but it cannot be read ({error})") from None

    def _read(self, root: zipfile.Path, names: Sequence[str]) -> ArrayImages:
        items = [Item(root / "images" / name, root / "masks" / name) for name in names]
        examples = [read_item(item, self.image_size) for item in items]
        properties = None
        if self.properties:
            properties = padded_properties([read_scene(root / "scenes" / f"{Path(name).stem}.json") for name in names])
        return ArrayImages(
            np.stack([example.image for example in examples]),
            np.stack([example.mask for example in examples]),
            properties,
        )
