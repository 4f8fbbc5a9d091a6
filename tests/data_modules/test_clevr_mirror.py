"""CLEVR-Mirror in its authors' layout, on tiny synthetic folders: order, resizing, and what a check reports."""

import json

import pytest
from PIL import Image

from data_modules import CLEVRMirror, ImageFolder
from implicit_slate.cli import main
from tests.data_modules import made
from tests.data_modules.made import clevr_mirror, scenes

STEM = "CLEVR_new_0000000015"


@pytest.fixture
def folder(tmp_path):
    """Every scene has one object, and so has its mask."""
    return scenes(clevr_mirror(tmp_path / "data"), [1] * 20)


def test_splits_by_sorted_name(folder):
    data = made.loaded(CLEVRMirror, folder, image_size=16)
    greys = {
        name: (part[list(range(len(part)))]["image"].mean((1, 2, 3)) * 25.5).round().int().tolist()
        for name, part in data.splits._asdict().items()
    }
    assert greys == {"train": [*range(14)], "val": [14, 15, 16], "test": [17, 18, 19]}
    mask = data.splits.val[[0, 1, 2]]["mask"]
    assert mask[:, :8, :8].eq(1).all() and mask.sum() == 3 * 64


def edit_scene(folder, **change):
    path = folder / "scenes" / f"{STEM}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


FAULTS = {
    "missing image": (
        lambda d: (d / "images" / f"{STEM}.png").unlink(),
        f"masks/{STEM}.png: expected an image of the same name",
    ),
    "missing scene": (
        lambda d: (d / "scenes" / f"{STEM}.json").unlink(),
        f"scenes/{STEM}.json: expected a scene in JSON with the key 'objects' (found nothing)",
    ),
    "a scene of another image": (
        lambda d: edit_scene(d, image_filename="other.png"),
        f"scenes/{STEM}.json: expected image_filename {STEM}.png, found other.png",
    ),
    "objects that the mask does not show": (
        lambda d: Image.new("L", (32, 32)).save(d / "masks" / f"{STEM}.png"),
        f"masks/{STEM}.png: expected the values 1 to 1, the objects of ",
    ),
    "an oblong image": (
        lambda d: Image.new("RGB", (48, 32)).save(d / "images" / f"{STEM}.png"),
        f"images/{STEM}.png: expected a square image, found 48 × 32",
    ),
    "another kind of file": (
        lambda d: (d / "images" / "notes.txt").write_text("words"),
        "images/notes.txt: expected only PNG files in ",
    ),
    "another name": (
        lambda d: [
            (d / kind / STEM).with_suffix(suffix).rename(d / kind / f"x{suffix}")
            for kind, suffix in (("images", ".png"), ("masks", ".png"), ("scenes", ".json"))
        ],
        "images/x.png: expected a name like CLEVR_new_0000000000.png",
    ),
    "too few for a split": (
        lambda d: [path.unlink() for path in d.glob("*/CLEVR*") if path.stem != STEM],
        "images: the training split is empty, with 1 images in all (70/15/15 by sorted name)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(folder, blames, fault):
    make, expected = FAULTS[fault]
    make(folder)
    assert blames("clevr-mirror", folder, f"{folder}/{expected}")[-1].startswith("wrong: ")


def test_the_list_of_the_good_ones_can_be_loaded(folder, tmp_path, check):
    (folder / "images" / "CLEVR_new_0000000007.png").write_text("words")
    (folder / "masks" / "CLEVR_new_0000000009.png").unlink()
    file = tmp_path / "good.txt"
    status, lines = check("clevr-mirror", folder, "--fix-list", str(file))
    assert status == 1 and lines[-1] == f"18 good names listed in {file}"
    assert file.read_text() == "".join(f"CLEVR_new_{i:010d}.png\n" for i in range(20) if i not in (7, 9))
    items = ImageFolder(folder / "images", masks=folder / "masks", lists=file).list_items()
    assert [len(part) for part in items.values()] == [12, 3, 3] and items["val"][0].mask.is_file()


def test_a_rendered_folder_is_clean(tmp_path, check):
    out = tmp_path / "out"
    main(["data", "render", "--scenes", "7", "--size", "16", "--samples", "6", "--workers", "1", "--out", str(out)])
    status, lines = check("clevr-mirror", out)
    assert status == 0 and lines[-1] == "nothing is wrong with 7 images"
