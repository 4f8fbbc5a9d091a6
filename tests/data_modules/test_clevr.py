"""CLEVR with masks, in TFRecords as distributed and in HDF5, on synthetic scenes."""

import functools
import gzip
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data_modules import CLEVR
from tests.data_modules import made


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """12 scenes with 2, 3, 4, 2, … objects."""
    root = tmp_path_factory.mktemp("clevr")
    return {"h5": made.clevr_hdf5(root / "h5"), "tfrecords": made.clevr_tfrecords(root / "tfrecords")}


@pytest.fixture(params=["h5", "tfrecords"])
def file(request, made_once, tmp_path):
    return Path(shutil.copy(made_once[request.param], tmp_path))


module, fails = (
    functools.partial(function, CLEVR, image_size=64, batch_size=2, num_train=6, num_eval=2)
    for function in (made.loaded, made.fails)
)


def numbers(data) -> list[list[int]]:
    return [(part[list(range(len(part)))]["image"][:, 2, 0, 0] * 255).round().int().tolist() for part in data.splits]


def test_splits(file):
    assert numbers(module(file)) == [[0, 1, 2, 3, 4, 5], [8, 9], [6, 7]]


def test_scenes_of_few_objects(file):
    assert numbers(module(file, max_objects=3)) == [[0, 1, 3, 4], [9, 10], [6, 7]]
    assert numbers(module(file, max_objects=2, num_eval=1)) == [[0, 3], [9], [6]]


def test_the_crop_of_images_and_masks(file):
    batch = module(file, image_size=192).splits.train[[2]]
    image, mask = (batch["image"][0] * 255).round().int(), batch["mask"]
    assert image[0, :, 0].tolist() == [*range(29, 221)] and image[1, 0].tolist() == [c % 256 for c in range(64, 256)]
    assert mask.shape == (1, 192, 192) and mask.dtype == torch.int64 and mask.unique().tolist() == [0, 1, 2, 3, 4]
    for label in range(1, 5):
        rows, columns = np.nonzero(mask[0].numpy() == label)
        assert (rows.min(), rows.max() + 1) == (90 - 29, 110 - 29)
        assert (columns.min(), columns.max() + 1) == (50 + 30 * label - 64, 70 + 30 * label - 64)


def test_a_folder_that_holds_the_file(file):
    data = module(file.parent)
    assert numbers(data)[0] == [0, 1, 2, 3, 4, 5] and (file.parent / ".decoded").is_dir()
    (entry,) = (file.parent / ".decoded").glob("scenes-*")
    made = entry.stat().st_ctime_ns
    moved = file.parent.rename(file.parent.with_name(f"{file.parent.name}-moved"))
    module(moved / file.name)  # the same cache
    assert (moved / ".decoded" / entry.name).stat().st_ctime_ns == made


def test_two_files_of_a_folder_share_no_entry(file):
    other = shutil.copy(file, file.with_stem("other"))
    for path in (file, other, file):
        assert numbers(module(path))[1] == [8, 9]
    assert len(list(file.parent.glob(".decoded/scenes-*"))) == 2


def test_both_formats_and_no_compression_give_the_same(made_once, tmp_path):
    plain = tmp_path / "plain.tfrecords"
    plain.write_bytes(gzip.decompress(made_once["tfrecords"].read_bytes()))
    first, *others = [
        module(path, cache_dir=tmp_path / str(i)).splits.train[[4, 1]]
        for i, path in enumerate([plain, *made_once.values()])
    ]
    for other in others:
        assert torch.equal(first["image"], other["image"]) and torch.equal(first["mask"], other["mask"])


def test_values_of_many_bytes(tmp_path):
    """An Example that stores all bytes of a feature as one value, as other writers do."""
    (tmp_path / "a.tfrecords").write_bytes(made.framed(made.example(made.clevr_scene(1), joined=True)) * 3)
    data = module(tmp_path, num_train=1, num_eval=1)
    assert numbers(data) == [[1], [1], [1]] and data.splits.val[[0]]["mask"].max() == 3


@pytest.mark.parametrize("counts", [None, np.zeros((12, 2), int), np.array(["four"] * 12)], ids=["none", "2-D", "text"])
def test_kept_counts_that_are_damaged_are_made_anew(made_once, tmp_path, counts):
    path = Path(shutil.copy(made_once["h5"], tmp_path))
    module(path)
    (kept,) = tmp_path.glob(".decoded/*/counts.npy")
    kept.unlink() if counts is None else np.save(kept, counts)
    assert numbers(module(path, max_objects=3)) == [[0, 1, 3, 4], [9, 10], [6, 7]]


def test_objects_are_counted_where_nothing_says_how_many(made_once, tmp_path):
    path = shutil.copy(made_once["h5"], tmp_path)
    with h5py.File(path, "a") as file:
        del file["visibility"]
    assert numbers(module(path, max_objects=3)) == [[0, 1, 3, 4], [9, 10], [6, 7]]


def test_too_few_scenes(file, blames):
    message = f"{file}: expected 70000 scenes and 640 after them, found 12 scenes, 12 and 0 after them"
    message += "; num_train, num_eval set this"
    fails(file, message, num_train=70_000, num_eval=320)
    blames("clevr", file.parent, message)


def test_a_check_of_a_part(file, check, tmp_path):
    part = ("--data.num_train", 8, "--data.num_eval", 2)
    status, lines = check("clevr", file.parent, *part, "--fix-list", tmp_path / "list" / "good.txt")
    assert status == 1 and lines == [
        "scenes 12 scenes",
        "12 of 320 × 240 pixels",
        "objects in a mask: 2 to 4, 3.00 in the mean",
        *(f"{file}: scene {i}: expected 3 to 10 objects, found 2" for i in (0, 3, 6, 9)),
        "wrong: 4 (above); 4 of 12 scenes are bad",
        f"8 good names listed in {tmp_path}/list/good.txt",
    ]
    assert (tmp_path / "list" / "good.txt").read_text().split() == ["1", "2", "4", "5", "7", "8", "10", "11"]


def test_a_folder_with_two_files(file):
    (file.parent / "b.hdf5").touch()
    fails(file.parent, f"{file.parent}: expected one file (")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("image", None, "expected `image`, uint8 (N, 240, 320, 3), in it; found mask, visibility"),
        ("mask", None, "expected `mask`, uint8 (12, N, 240, 320, 1), in it; found image, visibility"),
        ("image", (12, 128, 128, 3), "expected `image` to be uint8 (N, 240, 320, 3), found uint8 (12, 128, 128, 3)"),
        ("mask", (12, 5, 9, 9, 1), "expected `mask` to be uint8 (12, N, 240, 320, 1), found uint8 (12, 5, 9, 9, 1)"),
    ],
)
def test_hdf5_of_another_layout(made_once, tmp_path, name, shape, message):
    path = Path(shutil.copy(made_once["h5"], tmp_path))
    with h5py.File(path, "a") as file:
        del file[name]
        if shape:
            file[name] = np.zeros(shape, np.uint8)
    fails(path, f"{path}: {message}")


def test_more_masks_than_a_byte_can_number(tmp_path, blames):
    with h5py.File(path := tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", (12, 240, 320, 3), np.uint8, chunks=True)
        file.create_dataset("mask", (12, 257, 240, 320, 1), np.uint8, chunks=(1, 1, 240, 320, 1))
    fails(path, message := f"{path}: scene 0: expected at most 256 masks, found 257")
    blames("clevr", path, message)


def test_hdf5_whose_list_of_contents_is_damaged(made_once, tmp_path, blames):
    path = Path(shutil.copy(made_once["h5"], tmp_path))
    path.write_bytes(path.read_bytes().replace(b"SNOD", b"\0\0\0\0"))
    message = f"{path}: expected an HDF5 file that can be read ("
    fails(path, message)
    blames("clevr", path, message)


@pytest.mark.parametrize(
    ("visibility", "found"),
    [
        (np.ones((9, 5), np.float32), "float32 (9, 5)"),
        (np.ones((12, 8), np.float32), "float32 (12, 8)"),
        (np.float32(1), "float32 ()"),
        ("words", "object ()"),
        (None, "a group"),
    ],
    ids=["short", "of other masks", "scalar", "text", "group"],
)
def test_hdf5_with_another_visibility(made_once, tmp_path, blames, visibility, found):
    path = Path(shutil.copy(made_once["h5"], tmp_path))
    with h5py.File(path, "a") as file:
        del file["visibility"]
        file.create_group("visibility") if visibility is None else file.create_dataset("visibility", data=visibility)
    message = f"{path}: expected `visibility` to be numbers (12, 5), found {found}"
    fails(path, message)
    blames("clevr", path, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visibility": np.array([1, 1, np.nan, 0, 0])}, "expected `visibility` to be 5 numbers from 0 to 1, found"),
        ({"visibility": np.ones(8)}, "expected `visibility` to be 5 numbers from 0 to 1, found"),
        ({"mask": np.zeros((0, 240, 320, 1), np.uint8)}, "expected a mask of the background at least, found none"),
    ],
    ids=["not a number", "of other masks", "no masks"],
)  # fmt: skip
def test_a_scene_with_a_fault_is_named_and_the_check_goes_on(tmp_path, blames, change, message):
    scenes = [made.clevr_scene(1), made.clevr_scene(2) | change, made.clevr_scene(4)]
    (path := tmp_path / "a.tfrecords").write_bytes(b"".join(made.framed(made.example(scene)) for scene in scenes))
    fails(path, f"{path}: scene 1: {message}")
    assert blames("clevr", path, f"{path}: scene 1: {message}")[-1].endswith("1 of 3 scenes are bad")


@pytest.mark.parametrize("name", ["a.tfrecords", "a.h5"])
def test_a_file_without_scenes(tmp_path, name):
    (path := tmp_path / name).touch()
    if name == "a.h5":
        with h5py.File(path, "w") as file:
            file["image"] = np.zeros((0, 240, 320, 3), np.uint8)
            file["mask"] = np.zeros((0, 5, 240, 320, 1), np.uint8)
    fails(path, f"{path}: expected images, found none")
    assert not list(tmp_path.glob(".decoded/scenes-*"))


def test_a_file_of_another_kind(made_once, tmp_path):
    for name in ("a.tfrecords.gz", "a"):
        path = Path(shutil.copy(made_once["h5"], tmp_path / name))
        fails(path, f"{path}: expected CLEVR with masks, a file (.tfrecords, .tfrecord, .h5, .hdf5) or ")


SCENE = made.clevr_scene(0)
RECORD = made.framed(made.example(SCENE))
NOT_ONE = "expected a TFRecord file; record 0 does not begin like one"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RECORD[:5], "the file ends within record 0; expected a whole one"),
        (RECORD[:12], "the file ends within record 0; expected a whole one"),
        (RECORD[:2000], "the file ends within record 0; expected a whole one"),
        (gzip.compress(RECORD, 1)[:2000], "expected a file that can be read, record 0 is damaged"),
        (b"these are no records at all", NOT_ONE),
        (gzip.compress(b"these are no records at all"), NOT_ONE),
        (made.framed(b"\x0a\xff\xff"), "record 0: expected image (240, 320, 3)"),
        (made.framed(made.example({"image": SCENE["image"]})), "record 0: expected the feature 'mask', found none"),
        (made.framed(made.example(SCENE | {"image": np.zeros((64, 64, 3), np.uint8)})),
         "record 0: expected image (240, 320, 3)"),
    ],
    ids=["length", "header", "middle", "compressed", "words", "compressed words", "no example", "no mask", "size"],
)  # fmt: skip
def test_tfrecords_with_a_fault(tmp_path, blames, content, message):
    (path := tmp_path / "a.tfrecords").write_bytes(content)
    fails(path, f"{path}: {message}")
    blames("clevr", tmp_path, f"{path}: {message}")


def test_a_check_of_one_of_several_files(file, check):
    shutil.copy(file, other := file.with_stem("other"))
    assert check("clevr", file.parent)[1][0].endswith("; root can name the file")
    status, lines = check("clevr", other)
    assert status == 1 and lines[0] == "scenes 12 scenes"
    message = f"implicit-slate: {other}: expected the folder of a data set, found none"
    assert check("shapes3d", other) == (2, [message])
