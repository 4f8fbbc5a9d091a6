"""Base of the data modules that read files: a cache of decoded images, and checks of the data."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data_modules.base import ArrayImages, ImageDataModule, Splits, split_70_15_15
from data_modules.cache import open_cache
from data_modules.image_files import SQUARE, Crop, Item, Size, open_image, open_mask
from data_modules.sources import FileSource, Source
from implicit_slate.allowed import MultipleOf4, NonNegativeInt, PositiveInt
from implicit_slate.errors import UserError

CACHE = ".decoded"
"""The name of the cache's folder inside the data folder."""

T = TypeVar("T")


def to_path(name: str, value: str | Path) -> Path:
    """The value of option `name` as an absolute path; `~` is the home folder. UserError if it cannot be a path."""
    if not str(value) or "\0" in str(value):
        raise UserError(f"{name}={str(value)!r}: expected a path")
    return Path(os.path.expanduser(value)).absolute()


class Examined(NamedTuple):
    """What a check finds in one piece of a source."""

    problems: list[str]
    """One line each: which file, what was expected, what was found."""
    size: Size | None = None
    """The size of the image in its file, if it can be read."""
    mode: str = "RGB"
    """The Pillow mode of the stored image."""
    labels: Sequence[int] | None = None
    """The labels of the objects in its mask, if there is a mask that can be read."""


class CachedDataModule(ImageDataModule):
    """Base of the data modules that read files: a subclass lists the files and says how images are cropped.

    Images are decoded and resized once and cached (see `data_modules.cache`), and again when their files change.

    Args:
        root: the folder of the data.
        num_workers: number of loading processes. 0 is fastest while the cache fits into memory, since batches need not
            be passed between processes; if the cache must be read from a disk, more processes read ahead.
        cache_dir: folder for decoded images; None: `root/.decoded`.
        on_device: keep all images of a split in the memory of the trainer's device. No processes load then:
            `num_workers` has no effect.
    """

    may_be_a_file = False
    """Whether `root` may also be a file."""
    crop: Crop = SQUARE
    open_mask: Callable = staticmethod(open_mask)
    selection: object = None
    """The options that determine which part of the data is used; each part has its own cache."""
    unit = "images"
    """What a check calls the pieces of a source."""
    problems: list[str] | None = None
    """During a check: the problems found so far in folders and lists."""

    def __init__(
        self,
        root: str | Path,
        image_size: MultipleOf4 = 64,
        batch_size: PositiveInt = 50,
        num_workers: NonNegativeInt = 0,
        seed: NonNegativeInt | None = None,
        cache_dir: str | Path | None = None,
        on_device: bool = False,
    ):
        super().__init__(image_size, batch_size, num_workers, seed)
        self.root, self.on_device = to_path("root", root), on_device
        self.cache_dir = self.root / CACHE if cache_dir is None else to_path("cache_dir", cache_dir)

    def list_items(self) -> dict[str, list[Item]]:
        """The files of `train`, `val` and `test`; they need not exist. In a split, all items have a mask or none has.

        Raises:
            UserError: a folder or list is missing, empty or wrong; the message names it.
        """
        raise NotImplementedError

    def sources(self) -> dict[str, Source]:
        """The sources from which the images of `train`, `val` and `test` are decoded. UserError as in `list_items`."""
        return {
            split: FileSource(items, self.image_size, self.crop, self.open_mask)
            for split, items in self.list_items().items()
        }

    def prepare_data(self) -> None:
        """Decodes what is not cached. Lightning calls this in one process while the others wait."""
        self.setup()

    def load(self) -> Splits:
        return Splits(**{split: self._open(source, split) for split, source in self.sources().items()})

    def wrong(self, problem: str) -> None:
        """Reports a problem in a folder or list that prevents loading. Raises UserError; but during a check the problem
        is recorded and this returns, so the caller must be able to continue."""
        if self.problems is None:
            raise UserError(problem)
        self.problems.append(problem)

    def suspect(self, problem: str) -> None:
        """Reports a problem in a folder or list that does not prevent loading. Only a check records it."""
        if self.problems is not None:
            self.problems.append(problem)

    def split_by_order(self, items: Sequence[T], place: object) -> dict[str, Sequence[T]]:
        """`split_70_15_15`, with an empty split reported by `wrong`."""
        try:
            parts = split_70_15_15(items, place)
        except UserError as error:
            self.wrong(str(error))
            parts = items, [], []
        return dict(zip(Splits._fields, parts, strict=True))

    def sources_to_check(self) -> dict[str, Source]:
        """What a check reads, by split. Differs from `sources` if making those takes more than reading."""
        return self.sources()

    def sample_name(self, piece: Any) -> str:
        """The name of a piece in the list of good samples (`--fix-list`)."""
        return piece.image.name

    def examine(self, source: Source, piece: Any) -> Examined:
        """What a check finds in one piece: problems with decoding it, and any other departures from the data set's
        format. May raise UserError instead, which then is the problem."""
        problems, size, mode, labels = [], None, "RGB", None
        try:
            whole, _ = open_image(piece.image, source.crop)
            size, mode = whole.size, whole.mode
        except UserError as error:
            problems.append(str(error))
        if piece.mask is not None:
            try:
                labels = [label for label in np.unique(source.open_mask(piece.mask, size)).tolist() if label]
            except UserError as error:
                problems.append(str(error))
        return Examined(problems, size, mode, labels)

    def conclude(self, examined: list[Examined]) -> None:
        """Called at the end of a check, to report by `wrong` any problems of the data as a whole."""

    def _open(self, source: Source, split: str) -> ArrayImages:
        if isinstance(source, FileSource) and not source.items:
            return ArrayImages(np.empty((0, self.image_size, self.image_size, 3), np.uint8))
        return open_cache(source, split, self.root, self.cache_dir, self.selection)
