"""CLEVR-Mirror in its authors' layout, on tiny made folders."""

import numpy as np
import pytest
from PIL import Image

from data_modules import CLEVRMirror
from implicit_slate.errors import UserError
from tests.data_modules.made import clevr_mirror


@pytest.fixture
def folder(tmp_path):
    return clevr_mirror(tmp_path)


def module(folder, **options) -> CLEVRMirror:
    made = CLEVRMirror(folder, image_size=16, batch_size=4, **options)
    made.setup()
    return made


def everything(loader):
    return [batch for batch in loader]


def test_splits_by_sorted_name(folder):
    data = module(folder)
    greys = {
        name: (part[list(range(len(part)))]["image"].mean((1, 2, 3)) * 25.5).round().int().tolist()
        for name, part in data.splits._asdict().items()
    }
    assert greys == {"train": [*range(14)], "val": [14, 15, 16], "test": [17, 18, 19]}


def test_images_and_masks_are_resized(folder):
    batch = everything(module(folder).val_dataloader())[0]
    assert batch["image"].shape == (3, 3, 16, 16)
    assert batch["mask"].shape == (3, 16, 16) and batch["mask"][:, :8, :8].eq(1).all() and batch["mask"].sum() == 3 * 64


def test_shrinking_averages(folder):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[::2] = 200
    for path in (folder / "images").iterdir():
        Image.fromarray(pixels).save(path)
    assert (module(folder).probe(1)["image"] * 255).round().unique().tolist() == [100]


def test_masks_are_optional(folder):
    for path in (folder / "masks").iterdir():
        path.unlink()
    (folder / "masks").rmdir()
    assert set(everything(module(folder).val_dataloader())[0]) == {"image"}


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/nowhere/images: expected the folder"):
        module(tmp_path / "nowhere")


def test_no_images(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="images: expected images"):
        module(tmp_path)


def test_empty_split(folder):
    for path in sorted((folder / "images").iterdir())[1:]:
        path.unlink()
    with pytest.raises(UserError, match="images: the training split is empty"):
        module(folder)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_truncated_image(folder, num_workers):
    path = folder / "images" / "CLEVR_new_0000000015.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError) as error:
        everything(module(folder, num_workers=num_workers).val_dataloader())
    assert str(error.value).startswith(f"{path}: expected an image file that can be decoded")
    assert "\n" not in str(error.value)


def test_mask_of_another_size(folder):
    path = folder / "masks" / "CLEVR_new_0000000015.png"
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(path)
    with pytest.raises(UserError, match=f"{path}: expected a mask as large as its image, 32 × 32 pixels"):
        everything(module(folder).val_dataloader())


def test_missing_mask(folder):
    path = folder / "masks" / "CLEVR_new_0000000015.png"
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: expected a file there, found nothing"):
        everything(module(folder).val_dataloader())


def test_coloured_mask(folder):
    path = folder / "masks" / "CLEVR_new_0000000015.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match=f"{path}: expected a mask of one 8-bit channel"):
        everything(module(folder).val_dataloader())


def test_oblong_image(folder):
    path = folder / "images" / "CLEVR_new_0000000015.png"
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match=f"{path}: expected a square image, found 48 × 32"):
        everything(module(folder).val_dataloader())
