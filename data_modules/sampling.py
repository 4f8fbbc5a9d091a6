"""Which examples a batch holds: a function of seed and step alone, so that a resumed run sees what it would have."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import DistributedSampler

from implicit_slate.errors import UserError


class StepBatchSampler(DistributedSampler):
    """Endless batches of indices for training.

    The permutations of epoch 0, 1, 2, …, each a function of (seed, epoch), are laid end to end; global step s takes
    the s-th run of batch_size · world_size indices, and rank r the r-th part of it. So no example is left out at an
    epoch's end, a batch may cross it, and starting at step k yields what an uninterrupted run yields from step k on.
    The step is asked for at every start, for Lightning starts again where it ends an epoch (`limit_train_batches`).

    A DistributedSampler only so that Lightning sees that the ranks are served, and puts no sampler of its own in.

    Args:
        batch_size: of each process.
        start_step: gives the step from which on an iterator yields.
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
            batch: list[int] = []
            while len(batch) < self.batch_size:
                wanted, offset = divmod(position + len(batch), self.num_examples)
                if wanted != epoch:
                    epoch = wanted
                    permutation = np.random.default_rng((self.seed, epoch)).permutation(self.num_examples)
                batch += permutation[offset : offset + self.batch_size - len(batch)].tolist()
            yield batch
            position += run

    __len__ = None  # endless


class SequentialShard(DistributedSampler):
    """Batches of one rank's share of a data set, each example once, for validation and tests.

    Rank r has the examples r, r + world_size, …: nothing is repeated or padded, shares differ by one at most. All
    ranks have the same number of batches, of nearly equal sizes up to `batch_size`, because some steps wait for all.

    Raises:
        UserError: so few examples that a rank would have fewer batches than another.
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
