"""3D Shapes as distributed, in a synthetic file in which all but the first images are black."""

from functools import partial

import h5py
import numpy as np
import pytest

from data_modules import Shapes3D, shapes3d
from implicit_slate.errors import UserError
from tests.data_modules import made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Smaller splits with the same gaps, so that tests need not decode 480,000 images."""
    monkeypatch.setattr(shapes3d, "SPLITS", {"train": range(40), "val": range(41, 70), "test": range(70, 100)})
    monkeypatch.setattr(shapes3d.Shapes3DSource, "PIECE", 16)
    return made.shapes3d(tmp_path, np.arange(100, dtype=np.uint8))


module = partial(made.loaded, Shapes3D, image_size=64, batch_size=4)


def test_the_public_split():
    assert [len(part) for part in shapes3d.SPLITS.values()] == [400_000, 29_999, 29_999]


@pytest.mark.parametrize("image_size", [64, 32])
def test_splits_and_sizes(folder, image_size):
    data = module(folder, image_size=image_size)
    greys = []
    for part in data.splits:
        batch = part[list(range(len(part)))]
        assert set(batch) == {"image", "index"} and batch["image"].shape[1:] == (3, image_size, image_size)
        greys.append((batch["image"].mean((1, 2, 3)) * 255).round().int().tolist())
    assert greys == [[*range(40)], [*range(41, 70)], [*range(70, 100)]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labels", r"expected `images`, uint8 \(480000, 64, 64, 3\), in it; found labels"),
        ("images", r"expected `images` to be uint8 \(480000, .*, found uint8 \(5, 64, 64, 3\)"),
    ],
)
def test_of_another_layout(tmp_path, name, message):
    with h5py.File(tmp_path / "3dshapes.h5", "w") as file:
        file[name] = np.zeros((5, 64, 64, 3), np.uint8)
    with pytest.raises(UserError, match=f"3dshapes.h5: {message}"):
        module(tmp_path)


def damage_first_chunk(path) -> None:
    """Makes the first chunk unreadable for zlib."""
    with h5py.File(path) as file:
        block = file["images"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[block.byte_offset : block.byte_offset + block.size] = b"\xff" * block.size
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "bad"),
    [
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), ""),
        (damage_first_chunk, " images 0 to 15:"),
    ],
    ids=["empty", "truncated", "damaged"],
)
def test_damage_is_named_by_loader_and_check(folder, blames, spoil, bad):
    spoil(path := folder / "3dshapes.h5")
    made.fails(Shapes3D, folder, f"{path}: expected an HDF5 file that can be read")
    blames("shapes3d", folder, f"{path}:{bad} expected an HDF5 file")


def test_a_check_finds_images_that_were_never_written(folder, check, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes3d.Shapes3DSource, "PIECE", 20)
    file = folder / "3dshapes.h5"
    with h5py.File(file, "r+") as opened:
        opened["images"][:100] = np.arange(64, dtype=np.uint8)[:, None]
    assert check("shapes3d", folder)[0] == 0
    with h5py.File(file, "r+") as opened:
        opened["images"][30:35] = 0
        opened.move("labels", "factors")
    status, lines = check("shapes3d", folder, "--fix-list", tmp_path / "good.txt")
    assert status == 1 and lines[0] == "train 2, val 2, test 2 ranges of images"
    assert f"{file}: images 20 to 39: expected pictures, found 5 without one (image 30: all 0)" in lines
    assert f"{file}: expected `labels`, (480000, 6), found nothing" in lines
    assert (tmp_path / "good.txt").read_text().split() == ["0:20", "41:61", "61:70", "70:90", "90:100"]
