"""The order of examples: a function of seed and step, evenly shared among ranks, the same after a restart."""

from itertools import islice

import pytest

from data_modules.sampling import SequentialShard, StepBatchSampler
from implicit_slate.errors import UserError


def first(count: int, *args, **kwargs) -> list[list[int]]:
    return list(islice(StepBatchSampler(*args, **kwargs), count))


@pytest.mark.parametrize("start", [1, 3, 7, 50])
def test_restart_at_any_step_goes_on_as_if_uninterrupted(start):
    whole = first(start + 10, 23, 4, seed=5)
    assert first(10, 23, 4, seed=5, start_step=lambda: start) == whole[start:]


def test_an_epoch_holds_every_example_once_and_epochs_differ():
    indices = [index for batch in first(46, 23, 4, seed=1) for index in batch]  # 184 = 8 epochs of 23
    epochs = [indices[i : i + 23] for i in range(0, len(indices), 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_seeds_differ_and_repeat():
    assert first(5, 100, 8, seed=0) == first(5, 100, 8, seed=0)
    assert first(5, 100, 8, seed=0) != first(5, 100, 8, seed=1)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_run_of_one_process_with_the_whole_batch(world_size):
    ranks = [first(20, 31, 4, seed=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    joined = [[index for rank in ranks for index in rank[step]] for step in range(20)]
    assert joined == first(20, 31, 4 * world_size, seed=2)


def test_a_batch_may_be_larger_than_the_data():
    (batch,) = first(1, 3, 8)
    assert len(batch) == 8 and sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]


def test_training_batches_have_no_length():
    with pytest.raises(TypeError):
        len(StepBatchSampler(10, 2))


@pytest.mark.parametrize("num_examples", [3, 16, 17, 33, 315])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shards_cover_everything_once(num_examples, world_size):
    shards = [list(SequentialShard(num_examples, 16, rank, world_size)) for rank in range(world_size)]
    assert sorted(index for shard in shards for batch in shard for index in batch) == list(range(num_examples))
    assert all(0 < len(batch) <= 16 for shard in shards for batch in shard)
    assert len({len(shard) for shard in shards}) == 1  # so that ranks waiting for each other do not hang
    assert len(SequentialShard(num_examples, 16, 0, world_size)) == len(shards[0])


@pytest.mark.parametrize(("num_examples", "batch_size"), [(1, 16), (3, 1)])
def test_ranks_that_would_wait_for_batches_that_never_come_are_refused(num_examples, batch_size):
    message = f"batch_size={batch_size}: {num_examples} image.* cannot be shared evenly by 2 processes"
    with pytest.raises(UserError, match=message):
        SequentialShard(num_examples, batch_size, rank=0, world_size=2)
    assert len(SequentialShard(num_examples, batch_size)) == num_examples and len(SequentialShard(0, 4)) == 0


def test_one_process_reads_in_order():
    assert [index for batch in SequentialShard(40, 16) for index in batch] == list(range(40))
