"""Any folder of images, with or without masks."""

import os
from collections import Counter
from pathlib import Path

from data_modules.base import Splits
from data_modules.cached import CachedDataModule, to_path
from data_modules.image_files import PHOTOGRAPH, Item
from data_modules.lists import compare_lists, read_list
from data_modules.sources import Source
from implicit_slate.allowed import MultipleOf4
from implicit_slate.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")


class ImageFolder(CachedDataModule):
    """PNG and JPEG files of any size, turned upright by their EXIF data and cropped to the centre square.

    Sorted by name, the first 70% are for training, the next 15% for validation, the last 15% for testing, unless
    `lists` gives the splits.

    Args:
        root: the folder of the images.
        masks: the folder of the masks, PNG files with the same stems; None: `root/masks`, if it exists.
        lists: a folder with `train.txt`, `val.txt` and `test.txt`, which name images, one per line; or a single such
            file, whose images are split by sorted name.
    """

    crop = PHOTOGRAPH

    def __init__(
        self,
        root: str | Path,
        image_size: MultipleOf4 = 64,
        masks: str | Path | None = None,
        lists: str | Path | None = None,
        **options,
    ):
        super().__init__(root, image_size, **options)
        self.masks = None if masks is None else to_path("masks", masks)
        self.lists = None if lists is None else to_path("lists", lists)
        self.selection = (self._below_root(self.masks), self._below_root(self.lists))

    def list_items(self) -> dict[str, list[Item]]:
        names = self._names()
        if self.lists is None:
            splits = self.split_by_order(sorted(names), self.root)
        elif self.lists.is_dir():
            files = {split: self.lists / f"{split}.txt" for split in Splits._fields}
            splits = {split: read_list(file, names, self.wrong, self.suspect) for split, file in files.items()}
            compare_lists({files[split]: listed for split, listed in splits.items()}, self.suspect)
        else:
            splits = self.split_by_order(sorted(read_list(self.lists, names, self.wrong, self.suspect)), self.lists)
        masks = self._masks(names)
        return {split: [self._item(name, masks) for name in listed] for split, listed in splits.items()}

    def sources_to_check(self) -> dict[str, Source]:
        """As for training. Lists in `root` that are not in use are only checked for names that are listed twice."""
        if self.lists is None:
            files = [file for split in Splits._fields if (file := self.root / f"{split}.txt").is_file()]
            compare_lists({file: read_list(file, None, lambda _: None, self.suspect) for file in files}, self.suspect)
        return self.sources()

    def _below_root(self, path: Path | None) -> Path | None:
        """`path` relative to `root` if it is inside, so that it can be moved with the images and their cache."""
        return path.relative_to(self.root) if path and path.is_relative_to(self.root) else path

    def _names(self) -> set[str]:
        if not self.root.is_dir():
            raise UserError(f"{self.root}: expected a folder of images, found none")
        names = {name for name in os.listdir(self.root) if name.lower().endswith(SUFFIXES) and name[0] != "."}
        if not names:
            raise UserError(f"{self.root}: expected images ({', '.join(SUFFIXES)}), found none")
        return names

    def _masks(self, names: set[str]) -> Path | None:
        """The folder of the masks; None if there is none."""
        folder = self.masks or self.root / "masks"
        if not folder.is_dir():
            if self.masks:
                raise UserError(f"{folder}: expected the folder of masks, found none")
            return None
        stems = Counter(os.path.splitext(name)[0] for name in names)
        for name in sorted(names):
            if stems[stem := os.path.splitext(name)[0]] > 1:
                self.suspect(
                    f"{self.root / name}: expected a stem of its own, as the mask {folder / stem}.png is shared"
                )
        for name in sorted(name for name in os.listdir(folder) if name[0] != "."):
            stem, suffix = os.path.splitext(name)
            if suffix != ".png":
                self.suspect(f"{folder / name}: expected only PNG files in {folder}")
            elif stem not in stems:
                self.suspect(f"{folder / name}: expected an image of the same stem in {self.root}, found none")
        return folder

    def _item(self, name: str, masks: Path | None) -> Item:
        return Item(self.root / name, masks and masks / f"{os.path.splitext(name)[0]}.png")
