"""Sources of a split's images, which are decoded in pieces and then cached."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_modules.image_files import Crop, File, Item, open_mask, read_item


class Decoded(NamedTuple):
    """A decoded piece of a source: B images, usually one."""

    images: np.ndarray
    """uint8 (B, size, size, 3)"""
    masks: np.ndarray | None = None
    """uint8 (B, size, size), 0 = background"""
    counts: Sequence[int] | None = None
    """B numbers to be stored in the cache, if the source counts something in its images."""
    converted: Sequence[tuple[File, str]] = ()
    """The files that were not RGB, with their Pillow modes."""


class Source:
    """Images on disk. Its `repr` gives everything that the decoded images depend on, apart from the files."""

    size: int
    """Height and width of the decoded images in pixels."""
    PIECE = 1
    """Number of images in a piece; the last piece may have fewer."""

    def count(self) -> int | None:
        """Number of images; None if it is unknown before reading."""
        return None

    def files(self) -> Iterable[Path]:
        """The files that the images are read from; by default the single file `path`."""
        return [self.path]

    def stored(self) -> Iterable[Any]:
        """The pieces for `decode`, in order. UserError if the source is damaged."""
        raise NotImplementedError

    def decode(self, piece: Any) -> Decoded:
        """Decodes one piece; called in threads. UserError names the file that is missing or damaged."""
        raise NotImplementedError


@dataclass(frozen=True)
class FileSource(Source):
    """One file per image, and one per mask if there are masks."""

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
