"""CLEVR-Mirror in the layout of SLATE's authors, also as `implicit-slate data render` writes it."""

from data_modules.base import split_70_15_15
from data_modules.cached import CachedDataModule
from data_modules.image_files import Item
from implicit_slate.errors import UserError


class CLEVRMirror(CachedDataModule):
    """A folder with `images/*.png` and, where there are masks, `masks/<same name>.png`.

    By sorted name the first 70% train, the next 15% validate, the last 15% test.

    Args:
        root: the folder that holds `images`.
    """

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
