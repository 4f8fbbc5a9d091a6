"""ShapeStacks in its authors' layout, on small made copies."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules import ShapeStacks
from implicit_slate.errors import UserError
from tests.data_modules.made import SCENARIOS, save, shapestacks

TRAIN = SCENARIOS["train"]


@pytest.fixture
def folder(tmp_path):
    return shapestacks(tmp_path)


def module(folder, **options) -> ShapeStacks:
    made = ShapeStacks(folder, **{"image_size": 28, "batch_size": 2} | options)
    made.setup()
    return made


def fails(folder, message: str, **options) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        module(folder, **options)
    assert "\n" not in str(error.value)


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
    assert all((part == part[:, :1, :1, :1]).all() for part in greys)  # nothing of the white border


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


def test_without_segmentations_there_are_no_masks(tmp_path):
    assert set(module(shapestacks(tmp_path, iseg=None)).splits.train[[0]]) == {"image"}


def test_another_subset(folder):
    items = ShapeStacks(folder, subset="ccs_all")._items(folder / "splits" / "ccs_all" / "train.txt")
    assert {item.image.parent.name for item in items} == {TRAIN[1]}
    fails(
        folder,
        f"{folder}/splits/blocks_all/eval.txt: expected scenarios, one a line; the split is empty",
        subset="blocks_all",
    )


def test_subsets_are_kept_beside_one_another(folder):
    for subset in ("blocks_all", "ccs_all"):
        (folder / "splits" / subset / "eval.txt").write_text(f"{SCENARIOS['eval'][0]}\n")
        (folder / "splits" / subset / "test.txt").write_text(f"{SCENARIOS['test'][0]}\n")
        module(folder, subset=subset)
    assert len(list((folder / ".decoded").glob("train-*"))) == 2


@pytest.mark.parametrize("missing", ["recordings", "splits/default"])
def test_missing_folder(folder, missing):
    shutil.rmtree(folder / missing)
    fails(folder, f"{folder}/{missing}: expected this folder of ShapeStacks, found none")


def test_missing_list(folder):
    (folder / "splits" / "default" / "eval.txt").unlink()
    fails(folder, f"{folder}/splits/default/eval.txt: expected ShapeStacks' list of scenarios, found nothing")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_list(folder, content):
    (folder / "splits" / "default" / "test.txt").write_text(content)
    fails(folder, f"{folder}/splits/default/test.txt: expected scenarios, one a line; the split is empty")


def test_a_line_without_its_recording(folder):
    shutil.rmtree(folder / "recordings" / TRAIN[1])
    fails(folder, f"{folder}/splits/default/train.txt, line 2: {folder}/recordings/{TRAIN[1]}: expected the recording")


def test_a_recording_without_images(folder):
    for path in (folder / "recordings" / TRAIN[0]).glob("rgb-*"):
        path.unlink()
    fails(folder, f"train.txt, line 1: {folder}/recordings/{TRAIN[0]}: expected images rgb-*.png, found none")


def test_an_image_of_another_size(folder):
    path = next((folder / "recordings" / TRAIN[0]).glob("rgb-*"))
    save(path, np.zeros((128, 128, 3), np.uint8))
    fails(folder, f"{path}: expected an image of 224 × 224 pixels, found 128 × 128")


def test_a_segmentation_of_another_size(folder):
    path = next((folder / "recordings" / TRAIN[0]).glob("iseg-*"))
    save(path, np.zeros((112, 112, 4), np.uint8))
    fails(folder, f"{path}: expected a mask as large as its image, 224 × 224 pixels, found 112 × 112")


def test_a_damaged_segmentation(folder):
    path = next((folder / "recordings" / TRAIN[0]).glob("iseg-*"))
    path.write_bytes(b"no image")
    fails(folder, f"{path}: expected an image file that can be decoded")


def test_a_segmentation_in_another_mode(folder):
    path = next((folder / "recordings" / TRAIN[0]).glob("iseg-*"))
    Image.new("1", (224, 224)).save(path, format="PNG")
    fails(folder, f"{path}: expected a segmentation of RGBA pixels, found mode 1")


def test_a_camera_without_a_segmentation(folder):
    path = next((folder / "recordings" / TRAIN[1]).glob("iseg-*cam_2*"))
    path.unlink()
    fails(folder, f"{folder}/splits/default/train.txt, line 2: {folder}/recordings/{TRAIN[1]}/rgb-w=2-f=0-l=2-")


def test_a_scenario_without_segmentations(folder):
    for path in (folder / "recordings" / TRAIN[1]).glob("iseg-*"):
        path.unlink()
    fails(folder, f"line 2: {folder}/recordings/{TRAIN[1]}: expected segmentations of all scenarios or of none")
