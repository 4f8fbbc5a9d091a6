"""The check of CLEVR-Mirror folders, as its command shows it."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from data_modules import ImageFolder
from implicit_slate.cli import main
from tests.data_modules.checking.conftest import truncate

NUM_SCENES = 40  # more than a process takes at once


@pytest.fixture
def folder(tmp_path):
    """Scenes of one and of two objects, 16 × 16 pixels, with masks and scene files."""
    out = tmp_path / "data"
    for kind in ("images", "masks", "scenes"):
        (out / kind).mkdir(parents=True)
    for i in range(NUM_SCENES):
        stem, num_objects = f"CLEVR_new_{i:010d}", 1 + i % 2
        pixels = np.random.default_rng(i).integers(256, size=(16, 16, 3), dtype=np.uint8)
        mask = np.zeros((16, 16), np.uint8)
        for label in range(1, num_objects + 1):
            mask[4 * label : 4 * label + 3, :5] = label
        Image.fromarray(pixels).save(out / "images" / f"{stem}.png")
        Image.fromarray(mask).save(out / "masks" / f"{stem}.png")
        scene = {"image_filename": f"{stem}.png", "objects": [{}] * num_objects}
        (out / "scenes" / f"{stem}.json").write_text(json.dumps(scene))
    return out


def stem(index: int) -> str:
    return f"CLEVR_new_{index:010d}"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_clean_folder(folder, check, workers):
    status, lines = check("clevr-mirror", folder, "--workers", workers)
    assert status == 0
    assert lines == [
        "40 images, with masks, with scene files",
        "split by sorted name: train 28, validation 6, test 6",
        "40 of 16 × 16 pixels",
        "objects in a mask: 1 to 2, 1.50 in the mean",
        "nothing is wrong with 40 images",
    ]


def test_images_alone_are_enough(folder, check):
    for kind in ("masks", "scenes"):
        for path in (folder / kind).iterdir():
            path.unlink()
        (folder / kind).rmdir()
    status, lines = check("clevr-mirror", folder)
    assert status == 0 and lines[0] == "40 images, no masks, no scene files"


def edit_scene(path, **change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


FAULTS = {
    "truncated image": (
        lambda d: truncate(d / "images" / f"{stem(20)}.png"),
        f"images/{stem(20)}.png: expected an image file that can be decoded",
    ),
    "truncated mask": (
        lambda d: truncate(d / "masks" / f"{stem(20)}.png"),
        f"masks/{stem(20)}.png: expected an image file that can be decoded",
    ),
    "missing mask": (
        lambda d: (d / "masks" / f"{stem(20)}.png").unlink(),
        f"masks/{stem(20)}.png: expected an image file there, found nothing",
    ),
    "missing image": (
        lambda d: (d / "images" / f"{stem(20)}.png").unlink(),
        f"masks/{stem(20)}.png: expected an image of the same name",
    ),
    "missing scene": (
        lambda d: (d / "scenes" / f"{stem(20)}.json").unlink(),
        f"scenes/{stem(20)}.json: expected the scene file of {stem(20)}.png, found nothing",
    ),
    "half a scene": (
        lambda d: truncate(d / "scenes" / f"{stem(20)}.json"),
        f"scenes/{stem(20)}.json: expected a scene file, JSON",
    ),
    "a scene of another image": (
        lambda d: edit_scene(d / "scenes" / f"{stem(20)}.json", image_filename="other.png"),
        f"scenes/{stem(20)}.json: expected image_filename {stem(20)}.png, found other.png",
    ),
    "more objects than in the mask": (
        lambda d: edit_scene(d / "scenes" / f"{stem(20)}.json", objects=[{}] * 3),
        f"masks/{stem(20)}.png: expected the values 1 to 3, the objects of .*, found \\[1\\]",
    ),
    "small image": (
        lambda d: [
            Image.new(mode, (8, 8)).save(d / kind / f"{stem(20)}.png")
            for kind, mode in (("images", "RGB"), ("masks", "L"))
        ],
        f"images/{stem(20)}.png: expected 16 × 16 pixels like 39 others, found 8 × 8",
    ),
    "oblong image": (
        lambda d: Image.new("RGB", (16, 8)).save(d / "images" / f"{stem(20)}.png"),
        f"images/{stem(20)}.png: expected a square image, found 16 × 8",
    ),
    "image of 16 bits": (
        lambda d: Image.fromarray(np.zeros((16, 16), np.uint16)).save(d / "images" / f"{stem(20)}.png"),
        f"images/{stem(20)}.png: expected 8 bits a channel",
    ),
    "mask of another size": (
        lambda d: Image.new("L", (8, 8)).save(d / "masks" / f"{stem(20)}.png"),
        f"masks/{stem(20)}.png: expected a mask as large as its image, 16 × 16 pixels, found 8 × 8",
    ),
    "coloured mask": (
        lambda d: Image.new("RGB", (16, 16)).save(d / "masks" / f"{stem(20)}.png"),
        f"masks/{stem(20)}.png: expected a mask of one 8-bit channel",
    ),
    "another kind of file": (
        lambda d: (d / "images" / "notes.txt").write_text("words"),
        "images/notes.txt: expected only PNG files in .*/images",
    ),
    "another name": (
        lambda d: [(d / kind / f"{stem(20)}.png").rename(d / kind / "scene20.png") for kind in ("images", "masks")],
        "images/scene20.png: expected a name like CLEVR_new_0000000000.png",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(folder, check, fault):
    make, expected = FAULTS[fault]
    make(folder)
    status, lines = check("clevr-mirror", folder, "--workers", "2")
    assert status == 1
    assert any(re.match(f"{folder}/{expected}", line) for line in lines), lines
    assert lines[-1].startswith("wrong: ")


def test_colours_that_are_converted_are_counted_not_blamed(folder, check):
    Image.new("L", (16, 16)).save(folder / "images" / f"{stem(3)}.png")
    Image.new("RGBA", (16, 16)).save(folder / "images" / f"{stem(4)}.png")
    status, lines = check("clevr-mirror", folder)
    assert status == 0
    assert "1 stored as L, converted to RGB" in lines and "1 stored as RGBA, converted to RGB" in lines


def test_an_image_and_its_mask_are_both_blamed(folder, check):
    for kind in ("images", "masks"):
        truncate(folder / kind / f"{stem(7)}.png")
    _, lines = check("clevr-mirror", folder)
    assert [line.partition(":")[0] for line in lines if "decoded" in line] == [
        f"{folder}/images/{stem(7)}.png",
        f"{folder}/masks/{stem(7)}.png",
    ]
    assert lines[-1] == "wrong: 2 (above); 1 of 40 images are bad"


def test_too_few_for_a_split(folder, check):
    for kind, suffix in (("images", "png"), ("masks", "png"), ("scenes", "json")):
        for i in range(1, NUM_SCENES):
            (folder / kind / f"{stem(i)}.{suffix}").unlink()
    status, lines = check("clevr-mirror", folder)
    assert status == 1
    assert f"{folder}/images: the training split is empty, with 1 images in all (70/15/15 by sorted name)" in lines


def test_the_list_of_the_good_ones(folder, tmp_path, check):
    truncate(folder / "images" / f"{stem(7)}.png")
    (folder / "masks" / f"{stem(9)}.png").unlink()
    file = tmp_path / "lists" / "good.txt"
    status, lines = check("clevr-mirror", folder, "--fix-list", str(file))
    assert status == 1 and lines[-1] == f"38 good images listed in {file}"
    assert file.read_text() == "".join(f"{stem(i)}.png\n" for i in range(NUM_SCENES) if i not in (7, 9))
    items = ImageFolder(folder / "images", masks=folder / "masks", lists=file).list_items()
    assert [len(part) for part in items.values()] == [26, 6, 6] and items["val"][0].mask.is_file()
    file.write_text("mine")
    status, (line,) = check("clevr-mirror", folder, "--fix-list", file)
    assert status == 2 and f"--fix-list {file}: exists already" in line
    assert file.read_text() == "mine"


def test_a_rendered_folder_is_clean(tmp_path, check, capsys):
    out = tmp_path / "out"
    main(["data", "render", "--scenes", "7", "--size", "16", "--samples", "4", "--workers", "1", "--out", str(out)])
    capsys.readouterr()
    status, lines = check("clevr-mirror", out)
    assert status == 0 and lines[-1] == "nothing is wrong with 7 images"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clevr-mirror", "/nowhere"], "/nowhere: expected the folder of a data set, found none"),
        (["clever-mirror", "."], "data check: unknown kind 'clever-mirror'; did you mean 'clevr-mirror'"),
        (["clevr-mirror", "{here}"], "{here}/images: expected the folder of CLEVR-Mirror's images"),
        (["clevr-mirror", ".", "--workers", "0"], "--workers 0: must be at least 1"),
        (["clevr-mirror"], "the following arguments are required: DIR"),
    ],
)
def test_bad_usage_is_one_line(tmp_path, capsys, arguments, message):
    assert main(["data", "check", *(argument.format(here=tmp_path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message.format(here=tmp_path) in error and error.count("\n") == 1


def test_no_images(tmp_path, check):
    (tmp_path / "images").mkdir()
    status, (line,) = check("clevr-mirror", tmp_path)
    assert status == 2 and f"{tmp_path}/images: expected images" in line
