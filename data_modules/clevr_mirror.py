"""CLEVR-Mirror in the layout of SLATE's authors, which `implicit-slate data render` also writes."""

import re
from pathlib import Path

from data_modules.base import Splits
from data_modules.cached import CachedDataModule, Examined
from data_modules.image_files import Item
from data_modules.progress import track
from data_modules.rendering.scenes import read_scene
from data_modules.scene_properties import padded_properties
from data_modules.sources import FileSource
from implicit_slate.allowed import MultipleOf4, PositiveInt
from implicit_slate.errors import UserError

NAME = re.compile(r"CLEVR_new_\d{10}")
SUFFIXES = {"images": ".png", "masks": ".png", "scenes": ".json"}


class CLEVRMirror(CachedDataModule):
    """A folder with `images/*.png` and optionally `masks/<same name>.png` and `scenes/<same name>.json`.

    Sorted by name, the first 70% are for training, the next 15% for validation, the last 15% for testing.

    Args:
        root: the folder that contains `images`.
        properties: add the objects' properties, from `scenes`, to each batch; see `data_modules.scene_properties`.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: MultipleOf4 = 64,
        batch_size: PositiveInt = 50,
        properties: bool = False,
        **options,
    ):
        super().__init__(root, image_size, batch_size, **options)
        self.properties = properties

    def load(self) -> Splits:
        splits = super().load()
        if self.properties:
            items = [item for part in self.list_items().values() for item in part]
            scenes = [read_scene(self._scene(item)) for item in track(items, "read scenes", len(items), unit="files")]
            parts = padded_properties(scenes).split([len(part) for part in splits])
            for images, properties in zip(splits, parts):
                images.arrays["properties"] = properties
        return splits

    def list_items(self) -> dict[str, list[Item]]:
        folder, masks = self.root / "images", self.root / "masks"
        if not folder.is_dir():
            raise UserError(f"{folder}: expected the folder of CLEVR-Mirror's images (CLEVR_new_*.png), found none")
        images = sorted(folder.glob("[!.]*.png"))
        if not images:
            raise UserError(f"{folder}: expected images (CLEVR_new_*.png), found no PNG file")
        self._suspect_strays({path.stem for path in images})
        items = [Item(image, masks / image.name if masks.is_dir() else None) for image in images]
        return self.split_by_order(items, folder)

    def _suspect_strays(self, stems: set[str]) -> None:
        for kind, suffix in SUFFIXES.items() if self.problems is not None else ():
            folder = self.root / kind
            for path in sorted(folder.glob("[!.]*")):
                if path.suffix != suffix:
                    self.suspect(f"{path}: expected only {suffix[1:].upper()} files in {folder}")
                elif path.stem not in stems:
                    self.suspect(f"{path}: expected an image of the same name, images/{path.stem}.png, found none")
                elif kind == "images" and not NAME.fullmatch(path.stem):
                    self.suspect(f"{path}: expected a name like CLEVR_new_0000000000.png")

    def examine(self, source: FileSource, piece: Item) -> Examined:
        examined = super().examine(source, piece)
        if not (self.root / "scenes").is_dir():
            return examined
        path = self._scene(piece)
        try:
            scene = read_scene(path)
        except UserError as error:
            examined.problems.append(str(error))
            return examined
        if scene.get("image_filename") != piece.image.name:
            found = scene.get("image_filename")
            examined.problems.append(f"{path}: expected image_filename {piece.image.name}, found {found}")
        elif examined.labels not in (None, [*range(1, len(scene["objects"]) + 1)]):
            examined.problems.append(
                f"{piece.mask}: expected the values 1 to {len(scene['objects'])}, the objects of {path}, "
                f"found {examined.labels}"
            )
        return examined

    def _scene(self, item: Item) -> Path:
        return self.root / "scenes" / f"{item.image.stem}.json"
