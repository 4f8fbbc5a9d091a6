"""Any folder of images."""

import re

import numpy as np
import pytest

from data_modules import ImageFolder
from implicit_slate.errors import UserError
from tests.data_modules.made import grey, save


@pytest.fixture
def folder(tmp_path):
    """20 images, higher than wide and wider than high; image i is of grey 10 i in the middle square and white around.
    The mask shows object 1 in the middle square's left half."""
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


def module(root, **options) -> ImageFolder:
    data = ImageFolder(root, **{"image_size": 16, "batch_size": 4} | options)
    data.setup()
    return data


def greys(data) -> list[list[int]]:
    return [(part[list(range(len(part)))]["image"][:, 1, 8, 8] * 25.5).round().int().tolist() for part in data.splits]


def fails(root, message: str, **options) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        module(root, **options)
    assert "\n" not in str(error.value)


def test_sorted_names_and_the_middle_square(folder):
    data = module(folder)
    assert greys(data) == [[*range(14)], [14, 15, 16], [17, 18, 19]]
    batch = data.splits.val[[0, 1, 2]]
    assert (batch["image"] == batch["image"][:, :1, :1, :1]).all()
    assert batch["mask"][:, :, :8].eq(1).all() and batch["mask"][:, :, 8:].eq(0).all()


def test_masks_elsewhere(folder, tmp_path):
    (folder / "masks").rename(tmp_path / "labels")
    assert set(module(folder).splits.val[[0]]) == {"image"}
    assert module(folder, masks=tmp_path / "labels").splits.val[[0]]["mask"].max() == 1


def test_lists_of_three_splits(folder, tmp_path):
    for name, text in {"train": "05.png\n03.png\n\n", "val": "07.jpg", "test": "00.png\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    assert greys(module(folder, lists=tmp_path)) == [[5, 3], [7], [0]]


def test_a_list_of_good_images(folder, tmp_path):
    good = tmp_path / "good.txt"
    good.write_text("".join(f"{i:02d}.png\n" for i in reversed(range(20)) if i != 7))
    assert greys(module(folder, lists=good)) == [[i for i in range(14) if i != 7], [14, 15, 16], [17, 18, 19]]


def test_missing_folder(tmp_path):
    fails(tmp_path / "no", f"{tmp_path}/no: expected a folder of images, found none")


def test_no_images(tmp_path):
    (tmp_path / "notes.txt").touch()
    fails(tmp_path, f"{tmp_path}: expected images (.png, .jpg, .jpeg), found none")


def test_missing_masks(folder, tmp_path):
    fails(folder, f"{tmp_path}/no: expected the folder of masks, found none", masks=tmp_path / "no")
    (folder / "masks" / "07.png").unlink()
    fails(folder, f"{folder}/masks/07.png: expected a file there, found nothing")


def test_missing_list(folder, tmp_path):
    fails(folder, f"{tmp_path}/no.txt: expected a list of images there, found nothing", lists=tmp_path / "no.txt")


def test_a_line_without_its_image(folder, tmp_path):
    (tmp_path / "good.txt").write_text("00.png\n77.png\n")
    fails(folder, f"{tmp_path}/good.txt, line 2: {folder}/77.png: expected this image", lists=tmp_path / "good.txt")


def test_empty_list(folder, tmp_path):
    (tmp_path / "good.txt").write_text("\n")
    fails(folder, f"{tmp_path}/good.txt: expected names of images, one a line", lists=tmp_path / "good.txt")


def test_empty_split(folder, tmp_path):
    (tmp_path / "good.txt").write_text("00.png\n01.png\n")
    fails(folder, f"{tmp_path}/good.txt: the validation split is empty", lists=tmp_path / "good.txt")
