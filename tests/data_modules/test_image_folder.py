"""Any folder of images."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from data_modules import ImageFolder
from implicit_slate.errors import UserError
from tests.data_modules import made
from tests.data_modules.made import grey, save


@pytest.fixture
def folder(tmp_path):
    """20 images in portrait and landscape format. Image i has grey value 10 i in the centre square, and is white
    elsewhere. The mask has object 1 in the left half of the centre square."""
    for i in range(20):
        high = i % 2
        picture, mask = grey(255, 32, 48), np.full((32, 48), 9, np.uint8)
        picture[:, 8:40], mask[:, 8:24], mask[:, 24:40] = 10 * i, 1, 0
        if high:
            picture, mask = grey(255, 48, 32), np.full((48, 32), 9, np.uint8)
            picture[8:40], mask[8:40, :16], mask[8:40, 16:] = 10 * i, 1, 0
        save(tmp_path / "pictures" / f"{i:02d}.{'jpg' if i == 7 else 'png'}", picture)
        save(tmp_path / "pictures" / "masks" / f"{i:02d}.png", mask)
    return tmp_path / "pictures"


module, fails = (partial(function, ImageFolder, image_size=16, batch_size=4) for function in (made.loaded, made.fails))


def greys(data) -> list[list[int]]:
    return [(part[list(range(len(part)))]["image"][:, 1, 8, 8] * 25.5).round().int().tolist() for part in data.splits]


def test_sorted_names_and_the_middle_square(folder):
    data = module(folder)
    assert greys(data) == [[*range(14)], [14, 15, 16], [17, 18, 19]]
    batch = data.splits.val[[0, 1, 2]]
    assert (batch["image"] == batch["image"][:, :1, :1, :1]).all()
    assert batch["mask"][:, :, :8].eq(1).all() and batch["mask"][:, :, 8:].eq(0).all()


def test_a_photograph_is_turned_as_its_exif_data_say(folder):
    """The mask refers to the turned image."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° to the right
    lying = np.full((48, 32, 3), 255, np.uint8)
    lying[24:] = 0  # the lower part, which is on the left after turning
    Image.fromarray(lying).save(folder / "00.png", exif=exif)
    batch = module(folder).splits.train[[0]]
    assert batch["image"][:, :, :, :8].eq(0).all() and batch["image"][:, :, :, 8:].eq(1).all()
    assert batch["mask"][:, :, :8].eq(1).all()


def with_damaged_exif_data(path, place, value):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    content = bytearray(path.read_bytes())
    content[content.index(b"Exif") + place] = value
    path.write_bytes(content)
    return path


def test_an_image_with_damaged_exif_data_is_named(folder, blames):
    path = with_damaged_exif_data(folder / "00.jpg", 41, 16)  # the type of a tag
    (folder / "00.png").unlink()
    fails(folder, f"{path}: expected an image file that can be decoded (")
    blames("folder", folder, f"{path}: expected an image file that can be decoded (")


def test_pillow_does_not_warn_of_files_that_it_does_not_name(tmp_path):
    path = with_damaged_exif_data(tmp_path / "a.jpg", 20, 1)  # the length of a tag
    code = f"from data_modules.image_files import decode; from pathlib import Path; decode(Path({str(path)!r}), True)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""


def test_a_link_to_itself_is_named(folder):
    (path := folder / "00.png").unlink()
    path.symlink_to(path)
    fails(folder, f"{path}: expected a file that can be read (Too many ")


def test_masks_elsewhere(folder, tmp_path):
    (folder / "masks").rename(tmp_path / "labels")
    assert set(module(folder).splits.val[[0]]) == {"image", "index"}
    assert module(folder, masks=tmp_path / "labels").splits.val[[0]]["mask"].max() == 1
    fails(folder, f"{tmp_path}/no: expected the folder of masks, found none", masks=tmp_path / "no")


@pytest.mark.parametrize("name", ["root", "masks", "lists", "cache_dir"])
@pytest.mark.parametrize("value", ["", "a\0"])
def test_an_option_that_is_no_path_is_refused(folder, name, value):
    with pytest.raises(UserError) as error:
        ImageFolder(**{"root": folder} | {name: value})
    assert str(error.value) == f"{name}={value!r}: expected a path"


def test_a_tilde_is_the_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data = ImageFolder("~/pictures", masks="~/labels", lists="~/good.txt", cache_dir="~/cache")
    assert (data.root, data.masks) == (tmp_path / "pictures", tmp_path / "labels")
    assert (data.lists, data.cache_dir) == (tmp_path / "good.txt", tmp_path / "cache")


def test_lists_of_three_splits(folder, tmp_path):
    for name, text in {"train": "05.png\n03.png\n\n", "val": "07.jpg", "test": "00.png\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    assert greys(module(folder, lists=tmp_path)) == [[5, 3], [7], [0]]


def test_a_list_of_good_images(folder, tmp_path):
    good = tmp_path / "good.txt"
    good.write_text("".join(f"{i:02d}.png\n" for i in reversed(range(20)) if i != 7))
    assert greys(module(folder, lists=good)) == [[i for i in range(14) if i != 7], [14, 15, 16], [17, 18, 19]]


def test_names_that_are_not_utf8_or_begin_with_a_blank(folder, tmp_path, check):
    (folder / "00.png").rename(folder / " 00.png")
    (folder / "01.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    (folder / "02.png").rename(folder / os.fsdecode(b"\xe9.png"))
    (folder / os.fsdecode(b"\xe9.png")).write_text("words")
    (folder / "masks").rename(tmp_path / "masks")
    good = tmp_path / "good.txt"
    status, lines = check("folder", folder, "--fix-list", good)
    assert status == 1 and sum("\\udce9.png: expected an image file that can be decoded" in line for line in lines) == 1
    assert good.read_bytes().splitlines()[::18] == [b" 00.png", b"caf\xe9.png"]
    assert greys(module(folder, lists=good))[2] == [18, 19, 1]


def test_a_list_with_a_byte_order_mark_and_blanks_after_names(folder, tmp_path):
    (tmp_path / "good.txt").write_text("".join(f"{i:02d}.png \r\n" for i in range(7)), "utf-8-sig")
    assert greys(module(folder, lists=tmp_path / "good.txt")) == [[0, 1, 2, 3], [4], [5, 6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "good.txt: expected a list there, one name per line, found nothing"),
        ("00.png\n77.png\n", "good.txt, line 2: expected a name that is there, found nothing at 77.png"),
        ("\n", "good.txt: expected names, one per line; the split is empty"),
        ("00.png\n01.png\n", "good.txt: the validation split is empty"),
    ],
)
def test_a_list_with_a_fault(folder, tmp_path, content, message):
    if content is not None:
        (tmp_path / "good.txt").write_text(content)
    fails(folder, f"{tmp_path}/{message}", lists=tmp_path / "good.txt")


def test_a_check_of_masks(folder, check):
    save(folder / "04.jpg", grey(0, 32, 48))
    save(folder / "masks" / "z.png", np.zeros((4, 4), np.uint8))
    (folder / "masks" / "notes.txt").write_text("words")
    status, lines = check("folder", folder)
    assert status == 1
    for expected in (
        "04.png: expected a stem of its own",
        "04.jpg: expected a stem of its own",
        "masks/z.png: expected an image of the same stem",
        "masks/notes.txt: expected only PNG files",
    ):
        assert sum(line.startswith(f"{folder}/{expected}") for line in lines) == 1, expected
    assert lines[-1] == "wrong: 4 (above); 0 of 21 images are bad"


@pytest.fixture
def with_lists(folder):
    """Two faulty lists in the image folder, whose last image is damaged and not in any list."""
    (folder / "train.txt").write_text("".join(f"{i:02d}.png\n" for i in range(15) if i != 7))
    (folder / "val.txt").write_text("15.png\n15.png\nnone.png\n00.png\n")
    (folder / "19.png").write_text("words")
    return folder


def twice(folder) -> list[str]:
    return [
        f"{folder}/val.txt, line 2: expected every name once, found 15.png again",
        f"{folder}/val.txt: expected names that are not in {folder}/train.txt, found 00.png",
    ]


def test_a_check_of_lists_that_are_given(with_lists, check):
    status, lines = check("folder", with_lists, "--data.lists", with_lists)
    assert status == 1 and lines[-1] == "wrong: 4 (above); 0 of 17 images are bad"
    for expected in (
        *twice(with_lists),
        f"{with_lists}/val.txt, line 3: expected a name that is there, found nothing at none.png",
        f"{with_lists}/test.txt: expected a list there, one name per line, found nothing",
    ):
        assert expected in lines


def test_a_check_that_reads_no_image_counts_none(folder, tmp_path, check):
    (tmp_path / "good.txt").write_text("none.png\n")
    status, lines = check("folder", folder, "--data.lists", tmp_path / "good.txt")
    assert (
        status == 1
        and lines[0] == f"{tmp_path}/good.txt, line 1: expected a name that is there, found nothing at none.png"
    )


def test_a_check_reads_all_images_whatever_lists_are_there(with_lists, check, blames):
    lines = blames("folder", with_lists, f"{with_lists}/19.png: expected an image file that can be decoded")
    assert lines[0] == "train 14, val 3, test 3 images" and set(twice(with_lists)) <= set(lines)
    assert lines[-1] == "wrong: 3 (above); 1 of 20 images are bad"


def test_a_check_does_not_replace_a_list_that_is_given(with_lists, tmp_path, check):
    (tmp_path / "good.txt").write_text("".join(f"{i:02d}.png\n" for i in range(10, 19)))
    status, lines = check("folder", with_lists, "--data.lists", tmp_path / "good.txt")
    assert status == 0 and lines[-1] == "nothing is wrong with 9 images"
