"""ShapeStacks (Groth et al. 2018) in its authors' layout."""

import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from data_modules.cached import CachedDataModule, Examined
from data_modules.image_files import Crop, Item, Size, check_mask_size, decode
from data_modules.lists import compare_lists, read_list
from data_modules.sources import FileSource
from implicit_slate.allowed import MultipleOf4
from implicit_slate.errors import UserError

LISTS = {"train": "train.txt", "val": "eval.txt", "test": "test.txt"}
SUBSETS = ("default", "blocks_all", "ccs_all")
NAME = re.compile(r"env_(blocks|ccs)-(easy|hard)-h=\d+-vcom=\d+-vpsf=\d+-v=\d+")
EXAMPLE = "env_blocks-easy-h=2-vcom=0-vpsf=0-v=1"
MAX_OBJECTS = 6


def open_segmentation(file: Path, image_size: Size | None) -> Image.Image:
    """The labels in a `.map` file (a PNG whose first channel is 32 · label) as a one-channel image.

    UserError, naming the file, if it cannot be read or its size is not `image_size` (None: any).
    """
    picture = decode(file)
    if picture.mode not in ("RGBA", "RGB", "L"):
        raise UserError(f"{file}: expected a segmentation of RGBA pixels, found mode {picture.mode}")
    return Image.fromarray(np.asarray(check_mask_size(picture, file, image_size).getchannel(0)) // 32)


class ShapeStacks(CachedDataModule):
    """Towers of up to 6 shapes: `recordings/<scenario>/rgb-*-cam_<i>-mono-0.png`, all cameras, cropped to the central
    196 of 224 pixels. The lists `splits/<subset>/{train,eval,test}.txt` name the scenarios of each split.

    Masks come from the authors' segmentations `iseg-*-cam_<i>-mono-0.map`, if these are unpacked: beside the images,
    in a folder `iseg/` beside the images, or in `iseg/<scenario>/` beside `recordings/`.

    Args:
        root: the folder that contains `recordings` and `splits`.
        subset: blocks_all (blocks), ccs_all (cylinders, cuboids and spheres) or default (both).
    """

    crop = Crop((224, 224), (14, 14, 210, 210))
    open_mask = staticmethod(open_segmentation)

    def __init__(self, root: str | Path, image_size: MultipleOf4 = 64, subset: str = "default", **options):
        super().__init__(root, image_size, **options)
        self.subset = self.selection = subset

    def list_items(self) -> dict[str, list[Item]]:
        for folder in (self.root / "recordings", self.root / "splits" / self.subset):
            if not folder.is_dir():
                raise UserError(f"{folder}: expected this folder of ShapeStacks, found none")
        known = set(os.listdir(self.root / "recordings"))
        files = {split: self.root / "splits" / self.subset / name for split, name in LISTS.items()}
        names = {split: read_list(file, known, self.wrong, self.suspect) for split, file in files.items()}
        compare_lists({files[split]: listed for split, listed in names.items()}, self.suspect)
        return {split: self._items(listed) for split, listed in names.items()}

    def sources_to_check(self) -> dict[str, FileSource]:
        """The images of all subsets; an image in several subsets is read once."""
        items: dict[str, dict[Item, None]] = {split: {} for split in LISTS}
        folder, default = self.root / "splits", self.subset
        found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        for missing in sorted(set(SUBSETS) - set(found)) if default in found else ():
            self.wrong(f"{folder / missing}: expected this folder with the lists of a split, found none")
        checked = set()
        for self.subset in sorted(found, key=lambda name: name != default) or [default]:
            for split, listed in self.list_items().items():
                items[split] |= dict.fromkeys(item for item in listed if item not in checked)
            checked.update(*items.values())
        for name in sorted({item.image.parent.name for item in checked}):
            if not NAME.fullmatch(name):
                self.suspect(f"{self.root / 'recordings' / name}: expected a name like {EXAMPLE}")
        return {
            split: FileSource(list(listed), self.image_size, self.crop, self.open_mask)
            for split, listed in items.items()
        }

    def sample_name(self, piece: Item) -> str:
        return piece.image.parent.name

    def examine(self, source: FileSource, piece: Item) -> Examined:
        examined = super().examine(source, piece)
        if len(examined.labels or ()) > MAX_OBJECTS:
            found = len(examined.labels)
            examined.problems.append(f"{piece.mask}: expected at most {MAX_OBJECTS} shapes, found {found}")
        return examined

    def _items(self, scenarios: list[str]) -> list[Item]:
        """The images of all cameras of the scenarios, with their segmentations."""
        items: list[Item] = []
        for scenario in scenarios:
            found = self._scenario(scenario)
            if found and items and bool(found[0].mask) != bool(items[0].mask):
                with_masks, without = (items, found) if items[0].mask else (found, items)
                self.wrong(
                    f"{without[0].image.parent}: expected segmentations of all scenarios or of none; "
                    f"{with_masks[0].image.parent} has them"
                )
            items += found
        return items

    def _scenario(self, scenario: str) -> list[Item]:
        folder = self.root / "recordings" / scenario
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        images = [folder / name for name in names if name.startswith("rgb-") and name.endswith(".png")]
        if not images:
            self.wrong(f"{folder}: expected images rgb-*.png, found none")
        maps = self._segmentations(scenario, names)
        for image in images:
            if maps and _camera(image.name) not in maps:
                self.wrong(f"{image}: expected a segmentation of {_camera(image.name)}, too, found none")
        for camera in sorted(maps.keys() - {_camera(image.name) for image in images}):
            self.suspect(f"{maps[camera]}: expected an image of {camera}, too, found none")
        return [Item(image, maps.get(_camera(image.name))) for image in images]

    def _segmentations(self, scenario: str, names: list[str]) -> dict[str, Path]:
        """The segmentation of each camera; empty if they are not unpacked."""
        recording = self.root / "recordings" / scenario
        for folder in (recording, recording / "iseg", self.root / "iseg" / scenario):
            listed = names if folder == recording else os.listdir(folder) if folder.is_dir() else []
            if maps := {_camera(name): folder / name for name in listed if name.startswith("iseg-")}:
                return maps
        return {}


def _camera(name: str) -> str:
    """For example `cam_3` for `rgb-w=1-f=0-l=0-c=original-cam_3-mono-0.png`."""
    return next((part for part in name.split("-") if part.startswith("cam_")), name)
