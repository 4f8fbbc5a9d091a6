"""Any folder of images, with masks or without."""

import os
from pathlib import Path

from data_modules.base import split_70_15_15
from data_modules.cached import CachedDataModule
from data_modules.image_files import CENTRE, Item
from implicit_slate.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")
SPLITS = ("train", "val", "test")


class ImageFolder(CachedDataModule):
    """PNG and JPEG files of any sizes, cropped to the largest square in the middle.

    By sorted name the first 70% train, the next 15% validate, the last 15% test; or lists say what does.

    Args:
        root: the folder of the images.
        masks: the folder of their masks, PNG files of the same stem; None: `root/masks`, if it is there.
        lists: a folder with `train.txt`, `val.txt` and `test.txt`, the names of images, one a line; or one such file,
            whose images are split by sorted name.
    """

    crop = CENTRE

    def __init__(
        self,
        root: str | Path,
        image_size: int = 64,
        masks: str | Path | None = None,
        lists: str | Path | None = None,
        **options,
    ):
        super().__init__(root, image_size, **options)
        self.masks = Path(masks).absolute() if masks else None
        self.lists = Path(lists).absolute() if lists else None
        self.selection = (self.masks, self.lists)

    def list_items(self) -> dict[str, list[Item]]:
        names = self._names()
        if self.lists is None:
            return self._split(sorted(names), self.root)
        if self.lists.is_dir():
            return {split: self._items(self._listed(self.lists / f"{split}.txt", names)) for split in SPLITS}
        return self._split(sorted(self._listed(self.lists, names)), self.lists)

    def _names(self) -> set[str]:
        if not self.root.is_dir():
            raise UserError(f"{self.root}: expected a folder of images, found none")
        names = {name for name in os.listdir(self.root) if name.lower().endswith(SUFFIXES)}
        if not names:
            raise UserError(f"{self.root}: expected images ({', '.join(SUFFIXES)}), found none")
        return names

    def _listed(self, file: Path, names: set[str]) -> list[str]:
        try:
            lines = [line.strip() for line in file.read_text().splitlines()]
        except FileNotFoundError:
            raise UserError(f"{file}: expected a list of images there, found nothing") from None
        except UnicodeDecodeError:
            raise UserError(f"{file}: expected a list of images, one name a line; it is no text") from None
        for number, line in enumerate(lines, 1):
            if line and line not in names:
                raise UserError(f"{file}, line {number}: {self.root / line}: expected this image, found nothing")
        if not any(lines):
            raise UserError(f"{file}: expected names of images, one a line; the split is empty")
        return list(filter(None, lines))

    def _split(self, names: list[str], place: Path) -> dict[str, list[Item]]:
        return dict(zip(SPLITS, map(self._items, split_70_15_15(names, place)), strict=True))

    def _items(self, names: list[str]) -> list[Item]:
        folder = self.masks or self.root / "masks"
        if not folder.is_dir():
            if self.masks:
                raise UserError(f"{folder}: expected the folder of masks, found none")
            return [Item(self.root / name) for name in names]
        return [Item(self.root / name, folder / f"{os.path.splitext(name)[0]}.png") for name in names]
