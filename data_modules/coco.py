"""COCO-2017 with instance masks, read through FiftyOne from a copy in its zoo's layout or from a plain COCO folder."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from data_modules.cached import CachedDataModule
from data_modules.coco_database import Index, Split, import_splits, read_index
from data_modules.image_files import CENTRE, Item
from implicit_slate.errors import UserError

VERSION = 1  # of the masks; another one makes them anew
SIZES = {"train": 118_287, "validation": 5_000}  # images of COCO-2017
SHORT = {"train": "train", "validation": "val", "test": "test"}  # what COCO calls FiftyOne's splits


class COCO(CachedDataModule):
    """Photographs with instance masks: the original training and validation split; the test split has images only.

    `root` is either a folder of FiftyOne's zoo (its FIFTYONE_DATASET_ZOO_DIR), with `coco-2017/raw/instances_*.json`
    and `coco-2017/<train|validation|test>/data/*.jpg`, or a plain COCO folder, with `annotations/instances_*.json`,
    `train2017/`, `val2017/` and `test2017/`. The test images may be missing as long as nobody tests.

    A mask has a number for each instance of an image; where two overlap, the smaller one is on top. Crowds are left
    out, so their pixels are background; `num_crowds` counts them, by split. FiftyOne reads the annotations once, with
    a database server that runs only then; what it read is kept in `coco_masks` of the cache.

    Args:
        root: the folder of the copy.
        max_samples: use the first so many images of each split, by id. A partial copy in the zoo needs it.
        database_dir: where FiftyOne's database server has its files while it works; None: in the cache.
    """

    crop = CENTRE

    def __init__(
        self,
        root: str | Path,
        image_size: int = 96,
        batch_size: int = 50,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | Path | None = None,
        on_device: bool = False,
        max_samples: int | None = None,
        database_dir: str | Path | None = None,
    ):
        super().__init__(root, image_size, batch_size, num_workers, seed, cache_dir, on_device)
        if max_samples is not None and max_samples < 1:
            raise UserError(f"max_samples {max_samples}: must be at least 1, or null for all images")
        self.max_samples = self.selection = max_samples
        self.database_dir = Path(database_dir).absolute() if database_dir else None
        self.num_crowds: dict[str, int] = {}

    def list_items(self) -> dict[str, list[Item]]:
        items = {}
        for key, (split, folder) in zip(("train", "val"), self._masks().items(), strict=True):
            index = read_index(folder)
            masks = folder / "masks"
            items[key] = [Item(split.images / name, (masks / name).with_suffix(".png")) for name in index.images]
            self.num_crowds[key] = index.num_crowds
        test = self._images("test")
        names = _list_images(test)[: self.max_samples] if test.is_dir() else []
        return items | {"test": [Item(test / name) for name in names]}

    def test_dataloader(self) -> DataLoader:
        if not len(self.splits.test):
            raise UserError(f"{self._images('test')}: expected the test images of COCO-2017, found none")
        return super().test_dataloader()

    @property
    def _zoo(self) -> Path | None:
        return self.root if (self.root / "coco-2017").is_dir() else None

    def _images(self, split: str) -> Path:
        return self.root / "coco-2017" / split / "data" if self._zoo else self.root / f"{SHORT[split]}2017"

    def _split(self, name: str) -> Split:
        images = self._images(name)
        folder = self.root / ("coco-2017/raw" if self._zoo else "annotations")
        annotations = folder / f"instances_{SHORT[name]}2017.json"
        if not images.is_dir():
            raise UserError(f"{images}: expected the folder of COCO-2017's {name} images, found none")
        if not annotations.is_file():
            raise UserError(f"{annotations}: expected COCO-2017's annotations of the {name} split, found no file")
        count = len(_list_images(images))
        if not count:
            raise UserError(f"{images}: the {name} split is empty; expected *.jpg")
        if self._zoo and self.max_samples is None and count < SIZES[name]:
            raise UserError(
                f"{images}: holds {count} of {SIZES[name]} images; max_samples must be given for a partial copy, "
                f"because FiftyOne would download the rest"
            )
        return Split(name, images, annotations, min(self.max_samples or count, count))

    def _masks(self) -> dict[Split, Path]:
        """The folder of the masks of the training and of the validation split, made now if it is not there."""
        if not self._zoo and not (self.root / "annotations").is_dir():
            raise UserError(
                f"{self.root}: expected COCO-2017, either coco-2017/ of FiftyOne's zoo or annotations/ beside "
                f"train2017/ and val2017/; found neither"
            )
        kept = self.cache_dir / "coco_masks"
        splits = [self._split(name) for name in ("train", "validation")]
        folders = {split: kept / f"{split.name}-{_fingerprint(split)}" for split in splits}
        if all(folder.is_dir() for folder in folders.values()):
            return folders
        try:
            kept.mkdir(parents=True, exist_ok=True)
            with FileLock(kept / "lock"):  # of several processes one works, and the others wait for it
                missing = {split: folder for split, folder in folders.items() if not folder.is_dir()}
                if missing:
                    self._import(missing, kept)
        except OSError as error:
            raise UserError(f"{error.filename or kept}: {error.strerror or error}") from error
        return folders

    def _import(self, folders: dict[Split, Path], kept: Path) -> None:
        for left in (*kept.glob(".new-*"), *kept.glob(".database-*")):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed: we have the lock, so it is gone
        with (
            tempfile.TemporaryDirectory(dir=kept, prefix=".new-") as new,
            tempfile.TemporaryDirectory(dir=self.database_dir or kept, prefix=".database-") as database,
        ):
            try:
                import_splits(list(folders), self._zoo, Path(new), Path(database))
            finally:
                for split, folder in folders.items():  # a split that is whole is kept, whatever became of the other
                    if (Path(new) / split.name / "index.json").exists():
                        os.replace(Path(new) / split.name, folder)
                        _say(split, read_index(folder))


def _say(split: Split, index: Index) -> None:
    rank_zero_info(
        f"COCO {split.name}: {len(index.images)} images, {index.num_instances} instances; "
        f"{index.num_crowds} annotations of crowds left out"
    )


def _list_images(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".jpg"))


def _fingerprint(split: Split) -> str:
    """Of all that the masks of a split depend on: another one when annotations or images change."""
    status = split.annotations.stat()
    parts = [VERSION, status.st_size, status.st_mtime_ns, split.max_samples, *_list_images(split.images)]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
