"""ShapeStacks in its authors' layout, on small synthetic copies."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch

from data_modules import ShapeStacks
from tests.data_modules import made
from tests.data_modules.made import SCENARIOS, save, shapestacks

TRAIN = SCENARIOS["train"]


@pytest.fixture
def folder(tmp_path):
    return shapestacks(tmp_path)


module, fails = (partial(function, ShapeStacks, image_size=28, batch_size=2) for function in (made.loaded, made.fails))


def test_splits_hold_all_cameras_of_their_scenarios(folder):
    items = ShapeStacks(folder).list_items()
    assert {split: [item.image.parent.name for item in items[split]] for split in items} == {
        "train": [TRAIN[0]] * 2 + [TRAIN[1]] * 2,
        "val": SCENARIOS["eval"] * 2,
        "test": SCENARIOS["test"] * 2,
    }
    assert {item.mask.name.partition("-cam_")[2] for item in items["val"]} == {"1-mono-0.map", "2-mono-0.map"}


def test_the_middle_is_used_and_the_border_is_not(folder):
    data = module(folder)
    greys = [(part[list(range(len(part)))]["image"] * 255).round() for part in data.splits]
    assert [part[:, 0, 0, 0].tolist() for part in greys] == [[21, 22, 31, 32], [41, 42], [51, 52]]
    assert all((part == part[:, :1, :1, :1]).all() for part in greys)  # none of the white border


def test_labels(folder):
    data = module(folder)
    masks = data.splits.val[[0, 1]]["mask"]
    assert masks.shape == (2, 28, 28) and masks.dtype == torch.int64
    assert masks[:, :14].eq(0).all() and masks[:, 14:].unique().tolist() == [1, 2, 3, 4]
    assert masks[0, 14].tolist() == sorted(masks[0, 14].tolist())


@pytest.mark.parametrize("place", ["recordings/{}/iseg", "iseg/{}"])
def test_segmentations_unpacked_elsewhere(tmp_path, folder, place):
    elsewhere = shapestacks(tmp_path / "other", iseg=place)
    assert torch.equal(module(elsewhere).splits.val[[1]]["mask"], module(folder).splits.val[[1]]["mask"])


def test_another_subset(folder):
    (folder / "splits" / "ccs_all" / "test.txt").write_text(f"{SCENARIOS['test'][0]}\n")
    items = ShapeStacks(folder, subset="ccs_all").list_items()
    assert {item.image.parent.name for item in items["train"]} == {TRAIN[1]}
    message = f"{folder}/splits/blocks_all/eval.txt: expected names, one per line; the split is empty"
    fails(folder, message, subset="blocks_all")


def test_subsets_are_kept_beside_one_another(folder):
    for subset in ("blocks_all", "ccs_all"):
        (folder / "splits" / subset / "eval.txt").write_text(f"{SCENARIOS['eval'][0]}\n")
        (folder / "splits" / subset / "test.txt").write_text(f"{SCENARIOS['test'][0]}\n")
        module(folder, subset=subset)
    assert len(list((folder / ".decoded").glob("train-*"))) == 2


def remove(folder, pattern: str) -> None:
    for path in (folder / "recordings" / TRAIN[1]).glob(pattern):
        path.unlink()


RGB, ISEG = "rgb-w=2-f=0-l=2-c=original-cam_2-mono-0.png", "iseg-w=0-f=0-l=0-c=original-cam_2-mono-0.map"
FAULTS = {
    "a missing list": (
        lambda d: (d / "splits" / "default" / "eval.txt").unlink(),
        "splits/default/eval.txt: expected a list there, one name per line, found nothing",
    ),
    "a line without its recording": (
        lambda d: shutil.rmtree(d / "recordings" / TRAIN[1]),
        f"splits/default/train.txt, line 2: expected a name that is there, found nothing at {TRAIN[1]}",
    ),
    "a recording without images": (
        lambda d: remove(d, "rgb-*"),
        f"recordings/{TRAIN[1]}: expected images rgb-*.png, found none",
    ),
    "an image of another size": (
        lambda d: save(d / "recordings" / TRAIN[1] / RGB, np.zeros((128, 128, 3), np.uint8)),
        f"recordings/{TRAIN[1]}/{RGB}: expected an image of 224 × 224 pixels, found 128 × 128",
    ),
    "a camera without a segmentation": (
        lambda d: remove(d, "iseg-*cam_2*"),
        f"recordings/{TRAIN[1]}/{RGB}: expected a segmentation of cam_2, too, found none",
    ),
    "a scenario without segmentations": (
        lambda d: remove(d, "iseg-*"),
        f"recordings/{TRAIN[1]}: expected segmentations of all scenarios or of none; ",
    ),
}


SUSPICIONS = {
    "splits that share a scenario": (
        lambda d: (d / "splits" / "default" / "test.txt").write_text(f"{TRAIN[0]}\n"),
        "splits/default/test.txt: expected names that are not in ",
    ),
    "more shapes than there can be": (
        lambda d: save(
            d / "recordings" / TRAIN[1] / ISEG, np.repeat(np.arange(224, dtype=np.uint8)[:, None], 224, 1) + 32
        ),
        f"recordings/{TRAIN[1]}/{ISEG}: expected at most 6 shapes, found 7",
    ),
    "a segmentation without its image": (
        lambda d: remove(d, "rgb-*cam_2*"),
        f"recordings/{TRAIN[1]}/{ISEG}: expected an image of cam_2, too, found none",
    ),
    "another name": (
        lambda d: [
            (d / "recordings" / TRAIN[1]).rename(d / "recordings" / "mine"),
            (d / "splits" / "default" / "train.txt").write_text("mine\n"),
        ],
        "recordings/mine: expected a name like env_",
    ),
    "a missing subset": (
        lambda d: shutil.rmtree(d / "splits" / "ccs_all"),
        "splits/ccs_all: expected this folder with the lists of a split, found none",
    ),
}


@pytest.mark.parametrize("fault", FAULTS | SUSPICIONS)
def test_a_fault_is_named_by_the_check_and_what_cannot_be_loaded_by_the_loader(folder, blames, fault):
    make, expected = (FAULTS | SUSPICIONS)[fault]
    make(folder)
    if fault in FAULTS:
        fails(folder, f"{folder}/{expected}")
    else:
        module(folder)
    blames("shapestacks", folder, f"{folder}/{expected}")


def test_the_list_of_the_good_ones_is_a_split_list(folder, tmp_path, check):
    (folder / "recordings" / TRAIN[1] / RGB).write_text("words")
    check("shapestacks", folder, "--fix-list", tmp_path / "good.txt")
    assert (tmp_path / "good.txt").read_text().split() == [TRAIN[0], *SCENARIOS["eval"], *SCENARIOS["test"]]
