"""The check of ShapeStacks."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data_modules import made
from tests.data_modules.checking.conftest import truncate

SCENARIO = made.SCENARIOS["train"][0]
RGB, ISEG = "rgb-w=1-f=0-l=2-c=original-cam_1-mono-0.png", "iseg-w=0-f=0-l=0-c=original-cam_1-mono-0.map"


@pytest.fixture
def folder(tmp_path):
    made.shapestacks(tmp_path / "in")
    for subset in ("blocks_all", "ccs_all"):  # so small as they are, some of their splits would be empty
        shutil.copytree(tmp_path / "in" / "splits" / "default", tmp_path / "in" / "splits" / subset, dirs_exist_ok=True)
    return tmp_path / "in"


def test_a_clean_folder(folder, check):
    status, lines = check("shapestacks", folder)
    assert status == 0, lines
    assert "4 scenarios, 8 images, 8 segmentations" in lines
    assert "scenarios of default: train 2, val 1, test 1" in lines
    assert lines[-1] == "nothing is wrong with 4 scenarios"


FAULTS = {
    "a line without its recording": (
        lambda d: (d / "splits" / "default" / "eval.txt").write_text("env_ccs-easy-h=9-vcom=0-vpsf=0-v=0\n"),
        "splits/default/eval.txt, line 1: expected the name of a scenario in ",
    ),
    "an empty split": (
        lambda d: (d / "splits" / "ccs_all" / "eval.txt").write_text("\n"),
        "splits/ccs_all/eval.txt: expected names, one a line; the split is empty",
    ),
    "no list": (
        lambda d: (d / "splits" / "blocks_all" / "test.txt").unlink(),
        "splits/blocks_all/test.txt: expected the list of a split, found nothing",
    ),
    "splits that share a scenario": (
        lambda d: (d / "splits" / "default" / "test.txt").write_text(f"{SCENARIO}\n"),
        "splits/default/test.txt: expected names that are not in ",
    ),
    "truncated image": (
        lambda d: truncate(d / "recordings" / SCENARIO / RGB),
        f"recordings/{SCENARIO}/{RGB}: expected an image file that can be decoded",
    ),
    "truncated segmentation": (
        lambda d: truncate(d / "recordings" / SCENARIO / ISEG),
        f"recordings/{SCENARIO}/{ISEG}: expected an image file that can be decoded",
    ),
    "image of another size": (
        lambda d: Image.new("RGB", (128, 128)).save(d / "recordings" / SCENARIO / RGB),
        f"recordings/{SCENARIO}/{RGB}: expected an image of 224 × 224 pixels, found 128 × 128",
    ),
    "a camera without segmentation": (
        lambda d: (d / "recordings" / SCENARIO / ISEG).unlink(),
        f"recordings/{SCENARIO}/{RGB}: expected a segmentation of cam_1",
    ),
    "no segmentations of a scenario": (
        lambda d: [path.unlink() for path in (d / "recordings" / SCENARIO).glob("iseg*")],
        f"recordings/{SCENARIO}: expected segmentations of all scenarios or of none, found none here",
    ),
    "no images": (
        lambda d: [path.unlink() for path in (d / "recordings" / SCENARIO).glob("rgb*")],
        f"recordings/{SCENARIO}: expected images rgb-*.png, found none",
    ),
    "more shapes than there can be": (
        lambda d: Image.fromarray(np.repeat(np.arange(224, dtype=np.uint8)[:, None], 224, 1) + 32).save(
            d / "recordings" / SCENARIO / ISEG, format="PNG"
        ),
        f"recordings/{SCENARIO}/{ISEG}: expected at most 6 shapes, found 7",
    ),
    "another folder": (
        lambda d: made.save(d / "recordings" / "mine" / RGB, made.grey(0, 224, 224)),
        "recordings/mine: expected a name like env_",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(folder, check, fault):
    make, expected = FAULTS[fault]
    make(folder)
    status, lines = check("shapestacks", folder)
    assert status == 1
    assert any(line.startswith(f"{folder}/{expected}") for line in lines), lines


def test_the_list_of_the_good_ones_is_a_split_list(folder, tmp_path, check):
    truncate(folder / "recordings" / SCENARIO / RGB)
    check("shapestacks", folder, "--fix-list", tmp_path / "good.txt")
    everything = sorted(name for names in made.SCENARIOS.values() for name in names)
    assert (tmp_path / "good.txt").read_text().splitlines() == [name for name in everything if name != SCENARIO]


@pytest.mark.parametrize("missing", ["recordings", "splits"])
def test_another_folder(folder, check, missing):
    (folder / missing).rename(folder / "elsewhere")
    status, (line,) = check("shapestacks", folder)
    assert status == 2 and f"{folder}/{missing}: expected this folder of ShapeStacks" in line
