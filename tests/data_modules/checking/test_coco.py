"""The check of COCO-2017, in both of its layouts."""

import json
import sys

import pytest
from PIL import Image

from tests.data_modules import test_coco
from tests.data_modules.checking.conftest import truncate

FIRST = f"{1:012d}.jpg"


@pytest.fixture
def plain(tmp_path):
    return test_coco.make_plain(tmp_path)


def edit(folder, change) -> None:
    """Lets `change` change the training split's annotations."""
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_clean_plain_copy(plain, check):
    status, lines = check("coco", plain)
    assert status == 0, lines
    assert lines == [
        "train: 6 of 118287 images, 6 instances, 2 crowds",
        "validation: 3 of 5000 images, 2 instances, 1 crowds",
        "test: no images",
        "9 of 64 × 48 pixels",
        "objects in a mask: 0 to 2, 0.89 in the mean",
        "nothing is wrong with 9 images",
    ]


def test_a_clean_and_partial_copy_in_the_zoo(tmp_path, check):
    root = test_coco.make_zoo(tmp_path)
    (root / "coco-2017" / "train" / "data" / FIRST).unlink()
    status, lines = check("coco", root)
    assert status == 0, lines
    assert "train: 5 of 118287 images, 4 instances, 1 crowds" in lines
    assert "test: 4 of 40670 images, 0 instances, 0 crowds" in lines and "4 stored as L, converted to RGB" in lines


def segmentation(value):
    return lambda content: content["annotations"][1].update(segmentation=value)


RLE = {"size": [test_coco.HEIGHT, test_coco.WIDTH], "counts": [5, 5]}
FAULTS = {
    "truncated image": (
        lambda d: truncate(d / "train2017" / FIRST),
        f"train2017/{FIRST}: expected an image file that can be decoded",
    ),
    "missing image": (lambda d: (d / "train2017" / FIRST).unlink(), f"train2017/{FIRST}: expected the image that "),
    "stray image": (
        lambda d: Image.new("RGB", (4, 4)).save(d / "train2017" / "mine.jpg"),
        "train2017/mine.jpg: expected only images that ",
    ),
    "another size": (
        lambda d: Image.new("RGB", (48, 64)).save(d / "train2017" / FIRST),
        f"train2017/{FIRST}: expected 64 × 48 pixels, as ",
    ),
    "annotation of no image": (
        lambda d: edit(d, lambda content: content["annotations"][0].update(image_id=77)),
        "annotations/instances_train2017.json: annotation 100: expected an image with the id 77, found none",
    ),
    "line for a polygon": (
        lambda d: edit(d, segmentation([[1, 1, 5, 5]])),
        f"annotations/instances_train2017.json: annotation 101 of {FIRST}: expected a mask",
    ),
    "code that is too short": (
        lambda d: edit(d, segmentation(RLE)),
        f"annotations/instances_train2017.json: annotation 101 of {FIRST}: ",
    ),
    "code of another size": (
        lambda d: edit(d, segmentation({"size": [9, 9], "counts": [81]})),
        f"annotations/instances_train2017.json: annotation 101 of {FIRST}: ",
    ),
    "no segmentation": (
        lambda d: edit(d, lambda content: content["annotations"][1].pop("segmentation")),
        f"annotations/instances_train2017.json: annotation 101 of {FIRST}: ",
    ),
    "truncated annotations": (
        lambda d: truncate(d / "annotations" / "instances_train2017.json"),
        "annotations/instances_train2017.json: expected COCO's annotations, JSON",
    ),
    "no annotations": (
        lambda d: (d / "annotations" / "instances_val2017.json").unlink(),
        "annotations/instances_val2017.json: expected COCO's annotations, found no file",
    ),
    "no images": (
        lambda d: (d / "val2017").rename(d / "elsewhere"),
        "val2017: expected the folder of the validation images",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(plain, check, fault):
    make, expected = FAULTS[fault]
    make(plain)
    status, lines = check("coco", plain)
    assert status == 1
    assert sum(line.startswith(f"{plain}/{expected}") for line in lines) == 1, lines


def test_the_list_of_the_good_ones(plain, tmp_path, check):
    truncate(plain / "val2017" / FIRST)
    check("coco", plain, "--fix-list", tmp_path / "good.txt")
    assert (tmp_path / "good.txt").read_text().split() == [
        *(f"train2017/{i:012d}.jpg" for i in range(1, 7)),
        *(f"val2017/{i:012d}.jpg" for i in (2, 3)),
    ]


def test_another_folder(tmp_path, check):
    status, (line,) = check("coco", tmp_path)
    assert status == 2 and f"{tmp_path}: expected COCO-2017" in line


def test_a_missing_extra_is_named(plain, check, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    status, (line,) = check("coco", plain)
    assert status == 2 and "make setup EXTRAS=coco" in line
