"""The check of any folder of images."""

import re

import numpy as np
import pytest
from PIL import Image

from data_modules import ImageFolder
from tests.data_modules.checking.conftest import truncate
from tests.data_modules.made import grey, save

NAMES = [f"{'abcdefghij'[i % 10]}{i}.{('png', 'jpg')[i % 2]}" for i in range(20)]


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(NAMES):
        save(tmp_path / "in" / name, grey(10 * i, 24 + i, 32))
        save(tmp_path / "in" / "masks" / f"{name[:-4]}.png", np.full((24 + i, 32), i % 3, np.uint8))
    return tmp_path / "in"


def test_a_clean_folder(folder, check):
    status, lines = check("folder", folder)
    assert status == 0
    assert lines[:2] == ["20 images, with masks", "split by sorted name: train 14, val 3, test 3"]
    assert lines[-1] == "nothing is wrong with 20 images"


def test_what_is_wrong_is_named(folder, check):
    truncate(folder / NAMES[0])
    truncate(folder / NAMES[1])
    Image.new("L", (5, 5)).save(folder / "masks" / "c2.png")
    (folder / "masks" / "d3.png").unlink()
    save(folder / "e4.jpg", grey(0, 28, 32))
    save(folder / "masks" / "z.png", np.zeros((4, 4), np.uint8))
    status, lines = check("folder", folder, "--workers", 2)
    wrong = [line.removeprefix(f"{folder}/") for line in lines if line.startswith(f"{folder}/")]
    assert status == 1
    for expected in (
        "a0.png: expected an image file that can be decoded",
        "b1.jpg: expected an image file that can be decoded",
        "masks/c2.png: expected a mask as large as its image, 32 × 26 pixels, found 5 × 5",
        "masks/d3.png: expected an image file there, found nothing",
        "e4.png: expected a stem of its own",
        "e4.jpg: expected a stem of its own",
        "masks/z.png: expected an image of the same stem",
    ):
        assert any(line.startswith(expected) for line in wrong), expected
    assert len(wrong) == 7


def test_lists_are_verified(folder, check):
    (folder / "train.txt").write_text("".join(f"{name}\n" for name in NAMES[:15]))
    (folder / "val.txt").write_text(f"{NAMES[15]}\n{NAMES[15]}\nnone.png\n{NAMES[0]}\n")
    status, lines = check("folder", folder)
    assert status == 1
    assert "split by lists: train 15, val 4, test 0" in lines
    for expected in (
        f"{folder}/val.txt, line 2: expected every name once, found {NAMES[15]} again",
        f"{folder}/val.txt, line 3: expected the name of an image in {folder}, found nothing at none.png",
        f"{folder}/test.txt: expected the list of a split, found nothing",
        f"{folder}/val.txt: expected names that are not in {folder}/train.txt, found {NAMES[0]}",
    ):
        assert expected in lines


def test_the_list_of_the_good_ones_can_be_loaded(folder, tmp_path, check):
    truncate(folder / NAMES[0])
    status, _ = check("folder", folder, "--fix-list", tmp_path / "good.txt")
    assert status == 1
    items = ImageFolder(folder, lists=tmp_path / "good.txt").list_items()
    assert sorted(item.image.name for part in items.values() for item in part) == sorted(NAMES[1:])


def test_no_images(tmp_path, check):
    status, (line,) = check("folder", tmp_path)
    assert status == 2 and re.search(f"{tmp_path}: expected images .*, found none", line)
