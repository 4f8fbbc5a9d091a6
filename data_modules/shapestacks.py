"""ShapeStacks (Groth et al. 2018) in its authors' layout."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from data_modules.cached import CachedDataModule
from data_modules.image_files import Crop, Item, check_mask_size, decode
from implicit_slate.errors import UserError

LISTS = {"train": "train.txt", "val": "eval.txt", "test": "test.txt"}


def open_segmentation(file: Path, name: object, image_size: tuple[int, int]) -> Image.Image:
    """The labels in a `.map` file, a PNG whose first channel is 32 · label, as an image of one channel.

    UserError calls the file `name`; it must be of `image_size` (width, height).
    """
    picture = decode(file, name)
    if picture.mode not in ("RGBA", "RGB", "L"):
        raise UserError(f"{name}: expected a segmentation of RGBA pixels, found mode {picture.mode}")
    check_mask_size(picture, name, image_size)
    return Image.fromarray(np.asarray(picture.getchannel(0)) // 32)


class ShapeStacks(CachedDataModule):
    """Towers of up to 6 shapes: `recordings/<scenario>/rgb-*-cam_<i>-mono-0.png`, all cameras, cropped to the middle
    196 of 224 pixels. The lists `splits/<subset>/{train,eval,test}.txt` name the scenarios of a split.

    Where the authors' segmentations are unpacked as well, `iseg-*-cam_<i>-mono-0.map` beside the images, in `iseg/`
    beside them or in `iseg/<scenario>/` beside `recordings/`, there are masks.

    Args:
        root: the folder that holds `recordings` and `splits`.
        subset: default (blocks and cylinders, cuboids and spheres), blocks_all or ccs_all.
    """

    crop = Crop((224, 224), (14, 14, 210, 210))
    open_mask = staticmethod(open_segmentation)

    def __init__(self, root: str | Path, image_size: int = 64, subset: str = "default", **options):
        super().__init__(root, image_size, **options)
        self.subset = self.selection = subset

    def list_items(self) -> dict[str, list[Item]]:
        for folder in (self.root / "recordings", self.root / "splits" / self.subset):
            if not folder.is_dir():
                raise UserError(f"{folder}: expected this folder of ShapeStacks, found none")
        return {split: self._items(self.root / "splits" / self.subset / name) for split, name in LISTS.items()}

    def _items(self, scenarios: Path) -> list[Item]:
        try:
            lines = scenarios.read_text().splitlines()
        except FileNotFoundError:
            raise UserError(f"{scenarios}: expected ShapeStacks' list of scenarios, found nothing") from None
        except UnicodeDecodeError:
            raise UserError(f"{scenarios}: expected a list of scenarios, one a line; it is no text") from None
        items: list[Item] = []
        for number, line in enumerate(lines, 1):
            if scenario := line.strip():
                try:
                    items += self.scenario(scenario)
                except UserError as error:
                    raise UserError(f"{scenarios}, line {number}: {error}") from None
                if bool(items[-1].mask) != bool(items[0].mask):
                    with_masks, without = (items[0], items[-1]) if items[0].mask else (items[-1], items[0])
                    raise UserError(
                        f"{scenarios}, line {number}: {without.image.parent}: expected segmentations of all scenarios "
                        f"or of none; {with_masks.image.parent} has them"
                    )
        if not items:
            raise UserError(f"{scenarios}: expected scenarios, one a line; the split is empty")
        return items

    def scenario(self, scenario: str) -> list[Item]:
        """The images of a scenario, of all cameras, and their segmentations. UserError if some are missing."""
        folder = self.root / "recordings" / scenario
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{folder}: expected the recording of this scenario, found no folder") from None
        images = [folder / name for name in names if name.startswith("rgb-") and name.endswith(".png")]
        if not images:
            raise UserError(f"{folder}: expected images rgb-*.png, found none")
        maps = self._segmentations(scenario, names)
        for image in images:
            if maps and _camera(image.name) not in maps:
                raise UserError(f"{image}: expected a segmentation of {_camera(image.name)}, too, found none")
        return [Item(image, maps.get(_camera(image.name))) for image in images]

    def _segmentations(self, scenario: str, names: list[str]) -> dict[str, Path]:
        """By camera; none if they are not unpacked."""
        recording = self.root / "recordings" / scenario
        for folder in (recording, recording / "iseg", self.root / "iseg" / scenario):
            listed = names if folder == recording else os.listdir(folder) if folder.is_dir() else []
            if maps := {_camera(name): folder / name for name in listed if name.startswith("iseg-")}:
                return maps
        return {}


def _camera(name: str) -> str:
    """`cam_3` of `rgb-w=1-f=0-l=0-c=original-cam_3-mono-0.png`."""
    return next((part for part in name.split("-") if part.startswith("cam_")), name)
