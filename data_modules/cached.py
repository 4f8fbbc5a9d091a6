"""What the data modules of data sets on disk share: a cache of decoded images, and how a check reads what they read."""

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
"""The folder of the cache in the folder of the data."""

T = TypeVar("T")


def to_path(name: str, value: str | Path) -> Path:
    """The option `name` as an absolute path; `~` is the home folder. UserError if it can name no file."""
    if not str(value) or "\0" in str(value):
        raise UserError(f"{name}={str(value)!r}: expected a path")
    return Path(os.path.expanduser(value)).absolute()


class Examined(NamedTuple):
    """What a check finds out about a piece of a source."""

    problems: list[str]
    """Each one line: which file, what was expected, what was found."""
    size: Size | None = None
    """Of the image in its file, where that can be read."""
    mode: str = "RGB"
    """Pillow's mode in which the image is stored."""
    labels: Sequence[int] | None = None
    """The objects in its mask, where there is one that can be read."""


class CachedDataModule(ImageDataModule):
    """Base of the data modules that read files: a subclass lists them, and says how images are cropped.

    Images are decoded and resized once, and kept; see `data_modules.cache`. They are made anew when files change.

    Args:
        root: the folder of the data.
        num_workers: processes that load. 0 is fastest while the cache fits into the system's memory, since a batch need
            not travel; where it must be read from a disk, processes read ahead.
        cache_dir: where decoded images are kept; None: in `root/.decoded`.
        on_device: keep all images of a split in the memory of the trainer's device. Then nobody loads: `num_workers`
            has no effect.
    """

    may_be_a_file = False
    """Whether `root` may name a file, too."""
    crop: Crop = SQUARE
    open_mask: Callable = staticmethod(open_mask)
    selection: object = None
    """The options that say which part of the data is used; each part has a cache of its own."""
    unit = "images"
    """What a check calls the pieces of a source."""
    problems: list[str] | None = None
    """During a check: what it has found wrong in folders and lists."""

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
        """The files of `train`, `val` and `test`, which need not exist. All items of a split have a mask, or none has.

        Raises:
            UserError: names the folder or list that is missing, empty or wrong.
        """
        raise NotImplementedError

    def sources(self) -> dict[str, Source]:
        """What the images of `train`, `val` and `test` are decoded from. UserError as for `list_items`."""
        return {
            split: FileSource(items, self.image_size, self.crop, self.open_mask)
            for split, items in self.list_items().items()
        }

    def prepare_data(self) -> None:
        """Decodes what is not in the cache; Lightning calls this in one process, while the others wait."""
        self.setup()

    def load(self) -> Splits:
        return Splits(**{split: self._open(source, split) for split, source in self.sources().items()})

    def wrong(self, problem: str) -> None:
        """Something in a folder or list because of which the data cannot be loaded: a UserError, but a check notes it
        and goes on, so whoever calls this must be able to go on, too."""
        if self.problems is None:
            raise UserError(problem)
        self.problems.append(problem)

    def suspect(self, problem: str) -> None:
        """Something in a folder or list that does not prevent loading, and that a check reports."""
        if self.problems is not None:
            self.problems.append(problem)

    def split_by_order(self, items: Sequence[T], place: object) -> dict[str, Sequence[T]]:
        """`split_70_15_15`; an empty part is `wrong`."""
        try:
            parts = split_70_15_15(items, place)
        except UserError as error:
            self.wrong(str(error))
            parts = items, [], []
        return dict(zip(Splits._fields, parts, strict=True))

    def sources_to_check(self) -> dict[str, Source]:
        """What a check reads, by split; other than `sources` where making those takes more than reading."""
        return self.sources()

    def sample_name(self, piece: Any) -> str:
        """The name of a piece in the list of good ones (`--fix-list`)."""
        return piece.image.name

    def examine(self, source: Source, piece: Any) -> Examined:
        """A piece as a check reads it: what decoding complains of, and what else is not as the data set has it. May
        raise UserError instead, which is then the problem."""
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
        """Called at the end of a check, to report what is `wrong` with the data as a whole."""

    def _open(self, source: Source, split: str) -> ArrayImages:
        if isinstance(source, FileSource) and not source.items:
            return ArrayImages(np.empty((0, self.image_size, self.image_size, 3), np.uint8))
        return open_cache(source, split, self.root, self.cache_dir, self.selection)
