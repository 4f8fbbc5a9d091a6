"""Where the images of a split come from, before they are cached: decoded a piece at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_modules.image_files import Crop, File, Item, open_mask, read_item


class Decoded(NamedTuple):
    """A piece of a source: B images in their order, mostly one."""

    images: np.ndarray
    """uint8 (B, size, size, 3)"""
    masks: np.ndarray | None = None
    """uint8 (B, size, size), 0 = background"""
    counts: Sequence[int] | None = None
    """B numbers that the cache is to keep, where a source counts something of its images."""
    converted: Sequence[tuple[File, str]] = ()
    """The files whose colours were not RGB, and Pillow's name of what they were."""


class Source:
    """Images on disk. Its `repr` states all that the decoded images depend on, save for the files."""

    size: int
    """Side in pixels of the decoded images."""
    PIECE = 1
    """How many images a piece has; the last one may have less."""

    def count(self) -> int | None:
        """How many images; None where only reading tells."""
        return None

    def files(self) -> Iterable[Path]:
        """What the images are read from: one file, if a subclass does not say otherwise."""
        return [self.path]

    def stored(self) -> Iterable[Any]:
        """The pieces, in their order, of which `decode` makes images. UserError where the source ends in damage."""
        raise NotImplementedError

    def decode(self, piece: Any) -> Decoded:
        """Called in threads. UserError names the file that is missing or damaged."""
        raise NotImplementedError


@dataclass(frozen=True)
class FileSource(Source):
    """Images with one file each, and masks with one file each if there are any."""

    items: Sequence[Item]
    size: int
    crop: Crop
    open_mask: Callable = open_mask

    def __repr__(self) -> str:
        reader = f"{self.open_mask.__module__}.{self.open_mask.__qualname__}"
        with_masks = bool(self.items) and self.items[0].mask is not None
        return f"FileSource({self.size}, {self.crop}, {reader}, with_masks={with_masks})"

    def count(self) -> int:
        return len(self.items)

    def files(self) -> Iterator[File]:
        for item in self.items:
            yield from filter(None, item)

    def stored(self) -> Sequence[Item]:
        return self.items

    def decode(self, piece: Item) -> Decoded:
        example = read_item(piece, self.size, self.crop, self.open_mask)
        converted = [(piece.image, example.mode)] if example.mode != "RGB" else []
        return Decoded(example.image[None], None if example.mask is None else example.mask[None], converted=converted)
