"""Samplers whose batches depend only on the seed and the step, so that a resumed run sees the same batches."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import DistributedSampler

from implicit_slate.errors import UserError


class StepBatchSampler(DistributedSampler):
    """Endless batches of indices for training.

    The permutations of epochs 0, 1, 2, …, each a function of (seed, epoch), are concatenated. Step s takes the s-th
    block of batch_size · world_size indices, and rank r the r-th part of this block. So batches may cross the end of an
    epoch, no example is left out there, and starting at step k yields what an uninterrupted run yields from step k on.

    This is a DistributedSampler only so that Lightning does not add one of its own.

    Args:
        batch_size: examples per batch and process.
        start_step: returns the first step of a new iterator. It is called for every iterator, because Lightning makes
            a new one after each of its epochs (`limit_train_batches`).
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        seed: int = 0,
        start_step: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        super().__init__(range(num_examples), num_replicas=world_size, rank=rank, seed=seed)
        self.num_examples, self.batch_size, self.start_step = num_examples, batch_size, start_step

    def __iter__(self) -> Iterator[list[int]]:
        run = self.batch_size * self.num_replicas
        position = self.start_step() * run + self.rank * self.batch_size
        epoch, permutation = -1, np.empty(0, int)
        while True:
            batch, filled = np.empty(self.batch_size, int), 0  # a size that no memory has fails here at once
            while filled < self.batch_size:
                wanted, offset = divmod(position + filled, self.num_examples)
                if wanted != epoch:
                    epoch = wanted
                    permutation = np.random.default_rng((self.seed, epoch)).permutation(self.num_examples)
                part = permutation[offset : offset + self.batch_size - filled]
                batch[filled : filled + len(part)] = part
                filled += len(part)
            yield batch.tolist()
            position += run

    __len__ = None  # endless


class SequentialShard(DistributedSampler):
    """Batches of one rank's share of a data set, each example once, for validation and testing.

    Rank r gets examples r, r + world_size, …: nothing is repeated or padded, and shares differ by at most one. All
    ranks have the same number of batches, because some steps wait for all ranks. Batches have nearly equal sizes, at
    most `batch_size`.

    Raises:
        UserError: there are too few examples for equal numbers of batches.
    """

    def __init__(self, num_examples: int, batch_size: int, rank: int = 0, world_size: int = 1):
        super().__init__(range(num_examples), num_replicas=world_size, rank=rank, shuffle=False)
        num_batches = math.ceil(math.ceil(num_examples / world_size) / batch_size)
        if num_examples // world_size < num_batches:
            images = f"{num_examples} images" if num_examples > 1 else "1 image"
            raise UserError(f"batch_size={batch_size}: {images} cannot be shared evenly by {world_size} processes")
        share = np.arange(rank, num_examples, world_size)
        self.batches = [batch.tolist() for batch in np.array_split(share, num_batches)] if num_batches else []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
