"""COCO-2017 with instance masks, read through FiftyOne from a copy in its zoo's layout or from a plain COCO folder."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from data_modules.cache import lock
from data_modules.cached import CachedDataModule, Examined
from data_modules.coco_annotations import (
    MAX_INSTANCES,
    Split,
    check_mask,
    draw_masks,
    list_images,
    read_annotations,
    read_index,
)
from data_modules.image_files import CENTRE, Item
from data_modules.sources import FileSource
from implicit_slate.errors import UserError

VERSION = 1  # of the masks; another one makes them anew
ZOO_NAMES = {"train": "train", "val": "validation", "test": "test"}
"""What FiftyOne calls the splits."""
SIZES = {"train": 118_287, "val": 5_000}
"""Images of COCO-2017."""


class COCO(CachedDataModule):
    """Photographs with instance masks: the original training and validation split; the test split has images only.

    `root` is either a folder of FiftyOne's zoo (its FIFTYONE_DATASET_ZOO_DIR), with `coco-2017/raw/instances_*.json`
    and `coco-2017/<train|validation|test>/data/*.jpg`, or a plain COCO folder, with `annotations/instances_*.json`,
    `train2017/`, `val2017/` and `test2017/`. The test images may be missing as long as nobody tests.

    A mask has a number for each instance of an image; where two overlap, the smaller one is on top. Crowds are left
    out, so their pixels are background; `num_crowds` counts them, by split. FiftyOne reads the annotations once; what
    it read is kept in `coco_masks` of the cache.

    Args:
        root: the folder of the copy.
        max_samples: use the first so many images of each split, by id. A partial copy in the zoo needs it.
    """

    crop = CENTRE

    def __init__(
        self, root: str | Path, image_size: int = 96, batch_size: int = 50, max_samples: int | None = None, **options
    ):
        super().__init__(root, image_size, batch_size, **options)
        if max_samples is not None and max_samples < 1:
            raise UserError(f"max_samples {max_samples}: must be at least 1, or null for all images")
        self.max_samples = self.selection = max_samples
        self.num_crowds: dict[str, int] = {}
        self._annotated: dict[Path, tuple[Split, dict]] = {}

    def list_items(self) -> dict[str, list[Item]]:
        items = {}
        for key, folder in self._masks().items():
            index, images, masks = read_index(folder), self._split(key).images, folder / "masks"
            items[key] = [Item(images / name, (masks / name).with_suffix(".png")) for name in index.images]
            self.num_crowds[key] = index.num_crowds
        return items | {"test": self._test_items()}

    def test_dataloader(self) -> DataLoader:
        if not len(self.splits.test):
            raise UserError(f"{self._split('test').images}: expected the test images of COCO-2017, found none")
        return super().test_dataloader()

    def sources_to_check(self) -> dict[str, FileSource]:
        """The images, and in `examine` their annotations: FiftyOne has no part in a check."""
        try:
            import pycocotools.mask  # noqa: F401
        except ImportError as error:
            raise UserError(f"checking COCO needs the extra 'coco': make setup EXTRAS=coco ({error})") from None
        items: dict[str, list[Item]] = {}
        for key in ZOO_NAMES:
            split = self._split(key)
            if key == "test":
                items[key] = self._test_items()
            elif self._is_there(split):
                images = read_annotations(split, self.wrong, self.suspect)
                self._annotated |= {split.images / image["file_name"]: (split, image) for image in images}
                items[key] = [Item(split.images / image["file_name"]) for image in images]
        return {key: FileSource(listed, self.image_size, self.crop) for key, listed in items.items()}

    def sample_name(self, piece: list[Item]) -> str:
        return piece[0].image.relative_to(self.root).as_posix()

    def examine(self, source: FileSource, piece: list[Item]) -> Examined:
        examined, [item] = super().examine(source, piece), piece
        if item.image not in self._annotated:
            return examined
        split, image = self._annotated[item.image]
        size, problems = (image["width"], image["height"]), examined.problems
        if examined.size not in (None, size):
            found = "{} × {}".format(*examined.size)
            problems.append(
                f"{item.image}: expected {size[0]} × {size[1]} pixels by {split.annotations}, found {found}"
            )
        for thing in image["things"]:
            try:
                check_mask(thing["segmentation"], *size)
            except ValueError as error:
                problems.append(
                    f"{split.annotations}: annotation {thing.get('id')} of {item.image.name}: expected a mask of "
                    f"{size[0]} × {size[1]} pixels ({error})"
                )
        num_instances = sum(not thing.get("iscrowd") for thing in image["things"])
        if num_instances > MAX_INSTANCES:
            problems.append(f"{item.image}: expected at most {MAX_INSTANCES} instances, found {num_instances}")
        return examined._replace(labels=range(1, num_instances + 1))

    def _test_items(self) -> list[Item]:
        folder = self._split("test").images
        names = list_images(folder)[: self.max_samples] if folder.is_dir() else []
        return [Item(folder / name) for name in names]

    def _split(self, key: str) -> Split:
        """Where the split of that name must be. UserError if `root` is nothing like COCO-2017."""
        zoo, plain, file = self.root / "coco-2017", self.root / "annotations", f"instances_{key}2017.json"
        if zoo.is_dir():
            return Split(key, zoo / ZOO_NAMES[key] / "data", zoo / "raw" / file, True, self.max_samples)
        if plain.is_dir():
            return Split(key, self.root / f"{key}2017", plain / file, False, self.max_samples)
        raise UserError(
            f"{self.root}: expected COCO-2017, either coco-2017/ of FiftyOne's zoo or annotations/ beside "
            f"train2017/ and val2017/; found neither"
        )

    def _is_there(self, split: Split) -> bool:
        if not split.images.is_dir():
            self.wrong(f"{split.images}: expected the folder of COCO-2017's {split.name} images, found none")
        elif not split.annotations.is_file():
            self.wrong(
                f"{split.annotations}: expected COCO-2017's annotations of the {split.name} split, found no file"
            )
        elif not list_images(split.images):
            self.wrong(f"{split.images}: the {split.name} split is empty; expected *.jpg")
        else:
            return True
        return False

    def _masks(self) -> dict[str, Path]:
        """The folders of the masks of the training and of the validation split, made now if they are not there."""
        kept = self.cache_dir / "coco_masks"
        splits = {key: self._split(key) for key in SIZES}
        for key, split in splits.items():
            self._is_there(split)
            count = len(list_images(split.images))
            if split.partial and self.max_samples is None and count < SIZES[key]:
                needed = "max_samples must be given for a partial copy"
                raise UserError(f"{split.images}: holds {count} of {SIZES[key]} images; {needed}")
        folders = {key: kept / f"{ZOO_NAMES[key]}-{_fingerprint(split)}" for key, split in splits.items()}
        try:
            if not all(map(_is_whole, folders.values())):
                kept.mkdir(parents=True, exist_ok=True)
                with lock(kept / "lock", f"{kept}: another process reads the annotations; waiting for it"):
                    missing = {key: folder for key, folder in folders.items() if not _is_whole(folder)}
                    if missing:
                        _draw([splits[key] for key in missing], missing, kept)
        except OSError as error:
            raise UserError(f"{error.filename or kept}: {error.strerror or error}") from error
        return folders


def _draw(splits: list[Split], folders: dict[str, Path], kept: Path) -> None:
    for left in kept.glob(".new-*"):  # by a process that was killed: we have the lock
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=kept, prefix=".new-") as new:
        try:
            draw_masks(splits, Path(new))
        finally:
            for key, folder in folders.items():  # a split that is whole is kept, whatever became of the other
                if _is_whole(made := Path(new, key)):
                    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
                    os.replace(made, folder)
                    index = read_index(folder)
                    rank_zero_info(
                        f"COCO {key}: {len(index.images)} images, {index.num_instances} instances; "
                        f"{index.num_crowds} annotations of crowds left out"
                    )


def _is_whole(folder: Path) -> bool:
    try:
        read_index(folder)
    except (FileNotFoundError, ValueError, TypeError):
        return False
    return True


def _fingerprint(split: Split) -> str:
    """Of all that the masks of a split depend on: another one when annotations or images change."""
    status, names = split.annotations.stat(), list_images(split.images)
    count = min(split.max_samples or len(names), len(names))
    parts = [VERSION, status.st_size, status.st_mtime_ns, count, *names]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
