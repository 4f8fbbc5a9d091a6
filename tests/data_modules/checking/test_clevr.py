"""The check of CLEVR with masks, on files with fewer scenes than the original."""

import functools

import pytest

from data_modules import CLEVR
from data_modules.checking import clevr as checker
from tests.data_modules import made

COUNT = 12
MAKERS = {"tfrecords": made.clevr_tfrecords, "hdf5": made.clevr_hdf5}


@pytest.fixture(params=MAKERS)
def file(request, tmp_path, monkeypatch):
    """Scenes of 2 to 4 objects. The fixture lets the smallest pass."""
    monkeypatch.setattr(checker, "NUM_OBJECTS", range(2, 11))
    monkeypatch.setattr(checker, "CLEVR", functools.partial(CLEVR, num_train=8, num_eval=2))
    return MAKERS[request.param](tmp_path, COUNT)


def test_a_clean_file(file, check, monkeypatch):
    monkeypatch.setattr(checker, "CLEVR6", 3)
    status, lines = check("clevr", file.parent, "--workers", 2)
    assert status == 0, lines
    assert lines == [
        "12 scenes; training: the first 8 (CLEVR6: 6 of them)",
        "12 of 320 × 240 pixels",
        "objects in a mask: 2 to 4, 3.00 in the mean",
        "nothing is wrong with 12 scenes",
    ]


def test_too_few_scenes(file, check, monkeypatch):
    monkeypatch.setattr(checker, "CLEVR", functools.partial(CLEVR, num_train=10, num_eval=2))
    status, lines = check("clevr", file.parent)
    assert status == 1
    assert (
        f"{file}: expected at least 14 scenes, 2 for the test and 2 for validation after 10 of training, found 12"
    ) in lines


def test_too_few_objects(file, check, monkeypatch, tmp_path):
    monkeypatch.setattr(checker, "NUM_OBJECTS", range(3, 11))
    status, lines = check("clevr", file.parent, "--fix-list", tmp_path / "list" / "good.txt")
    assert status == 1
    assert [line for line in lines if "expected 3 to 10 objects, found 2" in line] == [
        f"{file}: scene {i}: expected 3 to 10 objects, found 2" for i in (0, 3, 6, 9)
    ]
    assert (tmp_path / "list" / "good.txt").read_text().split() == ["1", "2", "4", "5", "7", "8", "10", "11"]


def test_a_truncated_file(file, check):
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    status, lines = check("clevr", file.parent)
    assert status == 1 and any(line.startswith(f"{file}: ") and "expected" in line for line in lines), lines


def test_records_of_something_else(tmp_path, check):
    (tmp_path / "clevr_with_masks_train.tfrecords").write_bytes(made.framed(b"") + made.framed(b"words"))
    status, lines = check("clevr", tmp_path)
    assert status == 1 and any("record 0: expected" in line for line in lines), lines


def test_no_file(tmp_path, check):
    status, (line,) = check("clevr", tmp_path)
    assert status == 2 and f"{tmp_path}: expected one file" in line
