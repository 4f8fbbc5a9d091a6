"""The embedded data set: small mirror scenes with instance masks. `embedded/CARD.md` says how they were made."""

import zipfile
from pathlib import Path

from data_modules.base import ArrayImages, ImageDataModule, Splits, split_70_15_15
from data_modules.image_files import SQUARE, Item
from data_modules.rendering.scenes import read_scene
from data_modules.scene_properties import padded_properties
from data_modules.sources import FileSource
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
        properties = None
        try:
            with zipfile.ZipFile(EMBEDDED) as archive:
                root = zipfile.Path(archive)
                images = sorted((root / "images").iterdir(), key=lambda image: image.name)
                if not images:
                    raise UserError(f"{EMBEDDED}: expected images/*.png in it, found none")
                items = [Item(image, root / "masks" / image.name) for image in images]
                decoded = FileSource(items, self.image_size, SQUARE).decode(items)
                if self.properties:
                    scenes = [root / "scenes" / f"{Path(image.name).stem}.json" for image in images]
                    properties = padded_properties([read_scene(scene) for scene in scenes])
        except FileNotFoundError:
            raise UserError(f"{EMBEDDED}: expected the embedded scenes there, found nothing") from None
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{EMBEDDED}: expected a zip file of scenes, but it cannot be read ({error})") from None
        return Splits(
            *(
                ArrayImages(decoded.images[part], decoded.masks[part], None if properties is None else properties[part])
                for part in (slice(part.start, part.stop) for part in split_70_15_15(range(len(images)), EMBEDDED))
            )
        )
