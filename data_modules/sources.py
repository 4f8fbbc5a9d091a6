"""Where the images of a split come from, before they are cached: decoded a piece at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_modules.image_files import Crop, File, Item, open_mask, read_item


class Decoded(NamedTuple):
    """A piece of a source: B images in their order."""

    images: np.ndarray
    """uint8 (B, size, size, 3)"""
    masks: np.ndarray | None = None
    """uint8 (B, size, size), 0 = background"""
    num_objects: np.ndarray | None = None
    """int (B,): of the whole scene; a crop may hide some"""
    converted: Sequence[tuple[File, str]] = ()
    """The files whose colours were not RGB, and Pillow's name of what they were."""


class Source:
    """Images on disk. Its `repr` states all that the decoded images depend on, save for the files."""

    size: int
    """Side in pixels of the decoded images."""
    PIECE: int
    """How many images are best decoded together."""

    def __len__(self) -> int:
        """How many images; NotImplementedError where only reading tells."""
        raise NotImplementedError("only reading tells")

    def files(self) -> Iterable[Path]:
        """What the images are read from: one file, if a subclass does not say otherwise."""
        return [self.path]

    def stored(self) -> Iterable[Any]:
        """What `decode` makes the images of, in their order. UserError where the source ends in damage."""
        raise NotImplementedError

    def pieces(self, length: int) -> Iterator[list[Any]]:
        """Parts of `length` images, in order, for `decode`."""
        stored = iter(self.stored())
        while piece := list(islice(stored, length)):
            yield piece

    def decode(self, piece: list[Any]) -> Decoded:
        """Called in threads. UserError names the file that is missing or damaged."""
        raise NotImplementedError


@dataclass(frozen=True)
class FileSource(Source):
    """Images with one file each, and masks with one file each if there are any."""

    items: Sequence[Item]
    size: int
    crop: Crop
    open_mask: Callable = open_mask

    PIECE = 32

    def __repr__(self) -> str:
        reader = f"{self.open_mask.__module__}.{self.open_mask.__qualname__}"
        return f"FileSource({self.size}, {self.crop}, {reader}, with_masks={self._with_masks})"

    def __len__(self) -> int:
        return len(self.items)

    def files(self) -> Iterator[File]:
        for item in self.items:
            yield from filter(None, item)

    def stored(self) -> Sequence[Item]:
        return self.items

    def decode(self, piece: Sequence[Item]) -> Decoded:
        examples = [read_item(item, self.size, self.crop, self.open_mask) for item in piece]
        return Decoded(
            np.stack([example.image for example in examples]),
            np.stack([example.mask for example in examples]) if self._with_masks else None,
            converted=[(item.image, example.mode) for item, example in zip(piece, examples) if example.mode != "RGB"],
        )

    @property
    def _with_masks(self) -> bool:
        return bool(self.items) and self.items[0].mask is not None
