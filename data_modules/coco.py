"""COCO-2017 with instance masks, read through FiftyOne from a copy in its zoo's layout or from a plain COCO folder."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from data_modules.base import Batch, ImageDataModule, Splits
from data_modules.coco_database import Index, Split, import_splits, read_index
from implicit_slate.errors import UserError

SIZES = {"train": 118_287, "validation": 5_000, "test": 40_670}  # the images of COCO-2017
SHORT = {"train": "train", "validation": "val", "test": "test"}  # what COCO calls FiftyOne's splits


class _Squares:
    """Images, and masks, of any shape: the short side resized to `size` pixels, the middle cut out."""

    def __init__(self, images: Sequence[Path], masks: Sequence[Path] | None, size: int):
        self.images, self.masks, self.size = images, masks, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> Batch:
        pixels = [self._read(self.images[i], "RGB", Image.BICUBIC) for i in indices]
        batch = {"image": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous().float().div_(255)}
        if self.masks is not None:
            labels = [self._read(self.masks[i], "L", Image.NEAREST) for i in indices]
            batch["mask"] = torch.from_numpy(np.stack(labels)).long()
        return batch

    def _read(self, path: Path, mode: str, resample: Image.Resampling) -> np.ndarray:
        try:
            with Image.open(path) as image:
                return np.asarray(ImageOps.fit(image.convert(mode), (self.size, self.size), resample))
        except FileNotFoundError:
            raise UserError(f"{path}: expected an image file there, found nothing") from None
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: expected an image file that can be decoded ({error})") from None


class COCO(ImageDataModule):
    """Photographs with instance masks: the original training and validation split; the test split has images only.

    `root` is either a folder of FiftyOne's zoo (its FIFTYONE_DATASET_ZOO_DIR), with `coco-2017/raw/instances_*.json`
    and `coco-2017/<train|validation|test>/data/*.jpg`, or a plain COCO folder, with `annotations/instances_*.json`,
    `train2017/`, `val2017/` and `test2017/`. A folder of test images may be missing as long as nobody tests.

    A mask has a number for each instance of an image; where two overlap, the smaller one is on top. Crowds are left
    out, so their pixels are background; `num_crowds` counts them. FiftyOne reads the annotations once, with a database
    server that runs only then; what it read is kept in `root/.coco_masks`.

    Args:
        root: the folder of the copy.
        max_samples: use the first so many images of each split, by id. A partial copy in the zoo needs it.
        database_dir: where FiftyOne's database server has its files while it works; None: in `root/.coco_masks`.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int = 96,
        batch_size: int = 50,
        num_workers: int = 0,
        seed: int | None = None,
        max_samples: int | None = None,
        database_dir: str | Path | None = None,
    ):
        super().__init__(image_size, batch_size, num_workers, seed)
        if max_samples is not None and max_samples < 1:
            raise UserError(f"max_samples {max_samples}: must be at least 1, or null for all images")
        self.root, self.max_samples = Path(root).absolute(), max_samples
        self.database_dir = Path(database_dir).absolute() if database_dir else None
        self.num_crowds: dict[str, int] = {}

    def prepare_data(self) -> None:
        """Has FiftyOne read what is not read yet; Lightning calls this in one process only."""
        self._indices()

    def load(self) -> Splits:
        train, validation = self._indices()
        self.num_crowds = {"train": train[1].num_crowds, "validation": validation[1].num_crowds}
        test = self._images("test")
        files = _list_images(test)[: self.max_samples] if test.is_dir() else []
        return Splits(
            self._with_masks("train", *train), self._with_masks("validation", *validation),
            _Squares([test / name for name in files], None, self.image_size),
        )

    def test_dataloader(self) -> DataLoader:
        if not len(self.splits.test):
            raise UserError(f"{self._images('test')}: expected the test images of COCO-2017, found none")
        return super().test_dataloader()

    @property
    def _zoo(self) -> Path | None:
        return self.root if (self.root / "coco-2017").is_dir() else None

    def _images(self, split: str) -> Path:
        return self.root / "coco-2017" / split / "data" if self._zoo else self.root / f"{SHORT[split]}2017"

    def _with_masks(self, split: str, folder: Path, index: Index) -> _Squares:
        images = [self._images(split) / name for name in index.images]
        masks = [(folder / "masks" / name).with_suffix(".png") for name in index.images]
        return _Squares(images, masks, self.image_size)

    def _indices(self) -> list[tuple[Path, Index]]:
        """The folder and the index of the training and of the validation split, made now if they are not there."""
        if not self._zoo and not (self.root / "annotations").is_dir():
            raise UserError(
                f"{self.root}: expected COCO-2017, either coco-2017/ of FiftyOne's zoo or annotations/ beside "
                f"train2017/ and val2017/; found neither"
            )
        splits = [self._split(name) for name in ("train", "validation")]
        folders = [self.root / ".coco_masks" / f"{split.name}-{_fingerprint(split)}" for split in splits]
        if not all(folder.is_dir() for folder in folders):
            self._import(splits, folders)
        return [(folder, read_index(folder)) for folder in folders]

    def _split(self, name: str) -> Split:
        images = self._images(name)
        annotations = self.root / ("coco-2017/raw" if self._zoo else "annotations") / f"instances_{SHORT[name]}2017.json"
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

    def _import(self, splits: Sequence[Split], folders: Sequence[Path]) -> None:
        """Fills those of the folders that are not there; of several processes one works, and the others wait for it."""
        kept = folders[0].parent
        try:
            kept.mkdir(exist_ok=True)
            with FileLock(kept / "lock"):
                missing = {split: folder for split, folder in zip(splits, folders, strict=True) if not folder.is_dir()}
                if missing:
                    self._fill(missing, kept)
        except OSError as error:
            raise UserError(f"{error.filename or kept}: {error.strerror or error}") from error
        for split, folder in missing.items():
            index = read_index(folder)
            rank_zero_info(
                f"COCO {split.name}: {len(index.images)} images, {index.num_instances} instances; "
                f"{index.num_crowds} annotations of crowds left out"
            )

    def _fill(self, folders: dict[Split, Path], kept: Path) -> None:
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


def _list_images(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".jpg"))


def _fingerprint(split: Split) -> str:
    """Of all that the masks of a split depend on: another one when annotations or images change."""
    status = split.annotations.stat()
    parts = [status.st_size, status.st_mtime_ns, split.max_samples, *_list_images(split.images)]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
