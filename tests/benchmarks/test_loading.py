"""That both ways of loading give the same images, and are timed."""

import pytest
import torch

from benchmarks import loading
from data_modules import CLEVRMirror


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    loading.write_images(folder, 20)
    return folder


@pytest.fixture(scope="module")
def both(folder):
    module = CLEVRMirror(folder, loading.SIZE)
    module.setup()
    return loading.DecodedEachTime(module.list_items()["train"], loading.SIZE), module.splits.train


def test_both_load_the_same(both):
    decoding, cached = both
    assert len(decoding) == len(cached) == 14
    first, second = (images[[3, 13, 0]] for images in both)
    assert torch.equal(first["image"], second["image"]) and torch.equal(first["mask"], second["mask"])
    assert first["image"].std() > 0.05 and first["mask"].max() >= 3


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_cache_is_faster(both, num_workers):
    result = loading.measure(*both, num_workers, seconds=0.2, rounds=1)
    assert result.cached > result.decoding > 0
