"""What the data modules of data sets on disk share: a cache of decoded images, and where it is kept."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from data_modules.base import ArrayImages, ImageDataModule, Splits
from data_modules.cache import open_cache
from data_modules.image_files import SQUARE, Crop, Item, open_mask
from data_modules.sampling import SequentialShard, StepBatchSampler
from data_modules.sources import FileSource, Source
from implicit_slate.errors import UserError

CACHE = ".decoded"
"""The folder of the cache in the folder of the data."""


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

    crop: Crop = SQUARE
    open_mask: Callable = staticmethod(open_mask)
    selection: object = None
    """Where an option says which part of the data is used, that option: the caches of different parts stay."""

    def __init__(
        self,
        root: str | Path,
        image_size: int = 64,
        batch_size: int = 50,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | Path | None = None,
        on_device: bool = False,
    ):
        super().__init__(image_size, batch_size, num_workers, seed)
        self.root, self.on_device = Path(root).absolute(), on_device
        self.cache_dir = Path(cache_dir).absolute() if cache_dir else self.root / CACHE

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

    def _open(self, source: Source, split: str) -> ArrayImages:
        if isinstance(source, FileSource) and not source.items:
            return ArrayImages(np.empty((0, self.image_size, self.image_size, 3), np.uint8))
        return open_cache(source, split, self.root, self.cache_dir, self.selection)

    def _loader(self, images: ArrayImages, sampler: StepBatchSampler | SequentialShard) -> DataLoader:
        if not self.on_device:
            return super()._loader(images, sampler)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        try:
            images.move_to(device)
        except torch.OutOfMemoryError:
            raise UserError(
                f"on_device: {len(images)} images, {images.nbytes / 1e9:.1f} GB, do not fit into the memory of {device}"
            ) from None
        return DataLoader(images, batch_size=None, sampler=sampler)
