"""Base of all image data modules: splits by sorted name, reproducible loaders, probe images."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from data_modules.sampling import SequentialShard, StepBatchSampler
from implicit_slate.allowed import Checked, MultipleOf4, NonNegativeInt, PositiveInt
from implicit_slate.errors import UserError

Batch = dict[str, Tensor]
Item = TypeVar("Item")


class Images(Protocol):
    """Images that are read in batches."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: list[int]) -> Batch:
        """A batch with these keys:

        `image`: float32 (B, 3, H, W) in [0, 1]. `index`: int64 (B,), the images' positions in the split. `mask`, if the
        data has masks: int64 (B, H, W), 0 = background. `properties`, if requested: float32 (B, M, P), see
        `data_modules.scene_properties`.
        """


class ArrayImages:
    """Images held in memory.

    Args:
        images: uint8 (N, H, W, 3).
        masks: uint8 (N, H, W), or None.
        properties: float32 (N, M, P), or None.
    """

    def __init__(self, images: np.ndarray, masks: np.ndarray | None = None, properties: Tensor | None = None):
        self.arrays = {"image": torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))}
        if masks is not None:
            self.arrays["mask"] = torch.from_numpy(np.ascontiguousarray(masks))
        if properties is not None:
            self.arrays["properties"] = properties

    def __len__(self) -> int:
        return len(self.arrays["image"])

    def __getitem__(self, indices: list[int]) -> Batch:
        device = self.arrays["image"].device
        index = torch.tensor(indices, pin_memory=device.type == "cuda").to(device, non_blocking=True)
        batch = {name: array.index_select(0, index) for name, array in self.arrays.items()}
        batch["image"], batch["index"] = batch["image"].float().div_(255), index
        return batch if "mask" not in batch else batch | {"mask": batch["mask"].long()}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def move_to(self, device: torch.device) -> None:
        """Moves the arrays to `device`, where all later batches are made."""
        self.arrays = {name: array.to(device) for name, array in self.arrays.items()}


class Splits(NamedTuple):
    """The three splits of a data set."""

    train: Images
    val: Images
    test: Images


def split_70_15_15(items: Sequence[Item], place: object) -> tuple[Sequence[Item], Sequence[Item], Sequence[Item]]:
    """First 70%, next 15%, last 15% of `items` (sorted by name). UserError naming `place` if a split would be empty."""
    n = len(items)
    first, second = n * 70 // 100, n * 85 // 100
    parts = items[:first], items[first:second], items[second:]
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if len(part) == 0:
            raise UserError(f"{place}: the {name} split is empty, with {n} images in all (70/15/15 by sorted name)")
    return parts


class ImageDataModule(Checked, LightningDataModule, ABC):
    """Base of the data modules: a subclass defines its splits.

    Args:
        image_size: height and width in pixels; a multiple of 4, since a token represents 4 × 4 pixels.
        batch_size: images per batch and process.
        num_workers: number of loading processes; 0 for data in memory.
        seed: seed of the order of training examples; None: the run's seed (`seed_everything`).
    """

    on_device = False
    """Whether all images of a split are kept in the memory of the trainer's device. They must be `ArrayImages`."""

    def __init__(
        self,
        image_size: MultipleOf4,
        batch_size: PositiveInt,
        num_workers: NonNegativeInt = 0,
        seed: NonNegativeInt | None = None,
    ):
        super().__init__()
        self.image_size, self.batch_size, self.num_workers, self.seed = image_size, batch_size, num_workers, seed
        self.splits: Splits | None = None

    @abstractmethod
    def load(self) -> Splits:
        """Reads the data, or prepares reading it. UserError names what is missing or wrong."""

    def setup(self, stage: str | None = None) -> None:
        if self.splits is None:
            self.splits = self.load()

    def probe(self, num_images: int) -> Batch:
        """The first `num_images` validation images as one batch, the same in every run."""
        return self.splits.val[list(range(min(num_images, len(self.splits.val))))]

    def train_dataloader(self) -> DataLoader:
        """Endless batches, starting at the trainer's step. UserError for a trainer with `overfit_batches`."""
        if self.trainer and self.trainer.overfit_batches:  # Lightning would make its own batches of one image
            raise UserError(f"overfit_batches={self.trainer.overfit_batches}: batches would be of one image; "
                            "train on fewer images instead")  # fmt: skip
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed
        sampler = StepBatchSampler(len(self.splits.train), self.batch_size, seed, self._start, *self._place())
        return self._loader(self.splits.train, sampler)

    def val_dataloader(self) -> DataLoader:
        return self._sequential(self.splits.val)

    def test_dataloader(self) -> DataLoader:
        return self._sequential(self.splits.test)

    def _sequential(self, images: Images) -> DataLoader:
        return self._loader(images, SequentialShard(len(images), self.batch_size, *self._place()))

    def _start(self) -> int:
        return self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, images: Images, sampler: StepBatchSampler | SequentialShard) -> DataLoader:
        if self.on_device:
            self._move(images)
            return DataLoader(images, batch_size=None, sampler=sampler)
        # batch_size=None: the sampler yields whole batches of indices, and the images are read in batches.
        return DataLoader(
            images,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _move(self, images: ArrayImages) -> None:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        try:
            images.move_to(device)
        except torch.OutOfMemoryError:
            raise UserError(
                f"on_device: {len(images)} images, {images.nbytes / 1e9:.1f} GB, do not fit into the memory of {device}"
            ) from None
