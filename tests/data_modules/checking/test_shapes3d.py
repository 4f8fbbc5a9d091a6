"""The check of 3D Shapes, on a file with fewer images."""

import h5py
import numpy as np
import pytest

from data_modules import shapes3d
from data_modules.checking import shapes3d as checker
from tests.data_modules import made

SHAPE = (250, 64, 64, 3)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes3d, "SHAPE", SHAPE)
    monkeypatch.setattr(checker, "PIECE", 100)
    path = made.shapes3d(tmp_path, np.zeros(0), SHAPE) / "3dshapes.h5"
    with h5py.File(path, "r+") as opened:
        opened["images"][:] = np.arange(64, dtype=np.uint8)[:, None]
    return path


def test_a_clean_file(file, check):
    status, lines = check("shapes3d", file.parent, "--workers", 2)
    assert status == 0, lines
    assert lines[0] == "250 images" and "train 400000" in lines[1] and lines[-1].endswith("3 ranges of images")


def test_images_that_were_never_written(file, check, tmp_path):
    with h5py.File(file, "r+") as opened:
        opened["images"][120:130] = 0
    status, lines = check("shapes3d", file.parent, "--fix-list", tmp_path / "good.txt")
    assert status == 1
    assert f"{file}: images 100 to 199: expected pictures, found 10 without one (image 120: all 0)" in lines
    assert (tmp_path / "good.txt").read_text() == "0:100\n200:250\n"


def test_a_damaged_chunk(file, check):
    with h5py.File(file) as opened:
        chunk = opened["images"].id.get_chunk_info(3)  # of the images 150 to 199
    with open(file, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(bytes(chunk.size))
    status, lines = check("shapes3d", file.parent)
    assert status == 1
    expected = f"{file}: images 100 to 199: expected an HDF5 file that can be read"
    assert any(line.startswith(expected) for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda opened: opened.move("images", "pictures"), "expected `images`"),
        (lambda opened: opened.move("labels", "factors"), "expected `labels`, (250, 6), found nothing"),
    ],
)
def test_other_contents(file, check, change, message):
    with h5py.File(file, "r+") as opened:
        change(opened)
    status, lines = check("shapes3d", file.parent)
    assert status == 1 and any(f"{file}: {message}" in line for line in lines), lines


def test_a_truncated_file(file, check):
    file.write_bytes(file.read_bytes()[:3000])
    status, lines = check("shapes3d", file.parent)
    assert status == 1 and f"{file}: expected an HDF5 file that can be read" in "\n".join(lines)


def test_no_file(tmp_path, check):
    status, (line,) = check("shapes3d", tmp_path)
    assert status == 2 and f"{tmp_path}/3dshapes.h5: expected the HDF5 file of 3D Shapes, found nothing" in line
