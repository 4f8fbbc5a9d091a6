"""CLEVR-Mirror in the layout of SLATE's authors, also as `implicit-slate data render` writes it."""

import itertools
from pathlib import Path

from data_modules.base import Splits, split_70_15_15
from data_modules.cached import CachedDataModule
from data_modules.image_files import Item
from data_modules.scene_properties import read_properties, with_properties
from implicit_slate.errors import UserError


class CLEVRMirror(CachedDataModule):
    """A folder with `images/*.png` and, where there are some, `masks/<same name>.png` and `scenes/<same name>.json`.

    By sorted name the first 70% train, the next 15% validate, the last 15% test.

    Args:
        root: the folder that holds `images`.
        properties: add the properties of the objects, out of `scenes`, to a batch; see `data_modules.scene_properties`.
    """

    def __init__(
        self, root: str | Path, image_size: int = 64, batch_size: int = 50, properties: bool = False, **options
    ):
        super().__init__(root, image_size, batch_size, **options)
        self.properties = properties

    def load(self) -> Splits:
        splits = super().load()
        if not self.properties:
            return splits
        items = itertools.chain.from_iterable(self.list_items().values())
        scenes = [self.root / "scenes" / f"{item.image.stem}.json" for item in items]
        return with_properties(splits, read_properties(scenes))

    def list_items(self) -> dict[str, list[Item]]:
        folder = self.root / "images"
        if not folder.is_dir():
            raise UserError(f"{folder}: expected the folder of CLEVR-Mirror's images (CLEVR_new_*.png), found none")
        images = sorted(folder.glob("*.png"))
        if not images:
            raise UserError(f"{folder}: expected images (CLEVR_new_*.png), found no PNG file")
        masks = self.root / "masks"
        items = [Item(image, masks / image.name if masks.is_dir() else None) for image in images]
        return dict(zip(("train", "val", "test"), split_70_15_15(items, folder), strict=True))
