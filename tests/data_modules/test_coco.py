"""COCO-2017 through the real FiftyOne and its database server, on small made copies in the original layouts."""

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from data_modules import COCO, coco
from data_modules.coco_annotations import Index, label_map, read_index
from implicit_slate.errors import UserError
from implicit_slate.files import write_atomically
from tests.data_modules import made
from tests.data_modules.made import HEIGHT, TRIANGLE, WIDTH

FIRST = f"{1:012d}.jpg"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Where FiftyOne keeps its database: not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIFTYONE_DATABASE_DIR", str(folder := tmp_path_factory.mktemp("database")))
        yield folder


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, database):
    """A copy in the zoo's layout that FiftyOne has read; and what was said then."""
    root = made.coco_zoo(tmp_path_factory.mktemp("zoo"))
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(handler)
    COCO(root, max_samples=100).prepare_data()
    logger.removeHandler(handler)
    return root, messages


@pytest.fixture(scope="module")
def plain(tmp_path_factory, database):
    """A plain COCO folder that FiftyOne has read."""
    root = made.coco_plain(tmp_path_factory.mktemp("plain"))
    COCO(root).prepare_data()
    return root, []


@pytest.fixture(params=["zoo", pytest.param("plain", marks=pytest.mark.slow)])  # FiftyOne takes long to start
def root(request):
    return request.getfixturevalue(request.param)[0]


def module(root: Path, **options) -> COCO:
    made = COCO(root, **{"image_size": 24, "batch_size": 2, "max_samples": 100} | options)
    made.setup()
    return made


def masks(root: Path, split: str = "train") -> dict[int, np.ndarray]:
    """The label maps that were made, by image."""
    (folder,) = (root / ".decoded" / "coco_masks").glob(f"{split}-*")
    return {
        int(Path(name).stem): np.asarray(Image.open((folder / "masks" / name).with_suffix(".png")))
        for name in read_index(folder).images
    }


def drawn(*boxes) -> np.ndarray:
    """Rectangles (label, left, top, right, bottom), each over those before it."""
    labels = np.zeros((HEIGHT, WIDTH), int)
    for label, left, top, right, bottom in boxes:
        labels[top:bottom, left:right] = label
    return labels


def test_masks_are_the_polygons_pixel_by_pixel(root):
    made = masks(root)
    assert sorted(made) == [1, 2, 3, 4, 5, 6]
    assert all(mask.dtype == np.uint8 and mask.shape == (HEIGHT, WIDTH) for mask in made.values())
    np.testing.assert_array_equal(made[1], drawn((2, 15, 5, 45, 40), (1, 20, 10, 30, 20)))
    np.testing.assert_array_equal(made[4], drawn((1, 50, 30, 64, 48)))
    np.testing.assert_array_equal(made[2][:15], drawn((1, 5, 5, 10, 10), (1, 30, 5, 40, 12))[:15])
    assert not made[5].any() and not made[6].any()  # 6 is nothing but a crowd


def test_a_box_between_pixels_stays_in_its_place(root):
    second = np.argwhere(masks(root)[2] == 2)
    assert np.abs(second.min(0) - (20.5, 10.5)).max() <= 0.5 and np.abs(second.max(0) + 1 - (40.5, 30.5)).max() <= 0.5
    assert 19 * 19 <= len(second) <= 20 * 20


def test_slanted_edges_are_right_to_the_pixel(root):
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    distances = []  # to each edge, positive inside
    for (x0, y0), (x1, y1) in zip(TRIANGLE, TRIANGLE[1:] + TRIANGLE[:1], strict=True):
        distances.append(((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / np.hypot(x1 - x0, y1 - y0))
    inside = np.min(distances, axis=0)
    mask = masks(root)[3]
    assert (mask[inside > 0.75] == 1).all() and (mask[inside < -0.75] == 0).all() and (inside > 0.75).sum() > 300


def test_crowds_are_counted_and_said_once(zoo, caplog):
    root, messages = zoo
    assert [message for message in messages if message.startswith("COCO")] == [
        "COCO train: 6 images, 6 instances; 2 annotations of crowds left out",
        "COCO val: 3 images, 2 instances; 1 annotations of crowds left out",
    ]
    with caplog.at_level("INFO"):
        assert module(root).num_crowds == {"train": 2, "val": 1}
    assert "crowds" not in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches(root, num_workers):
    data = module(root, num_workers=num_workers)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 24, 24) and batch["image"].dtype == torch.float32
    assert batch["mask"].shape == (2, 24, 24) and batch["mask"].dtype == torch.int64
    assert [len(split) for split in data.splits[:2]] == [6, 3]
    train = data.splits.train[list(range(6))]  # by id, with their masks
    assert (train["image"].mean((1, 2, 3)) * 255 / 30 - torch.arange(1, 7)).abs().max() < 0.1
    assert [len(mask.unique()) for mask in train["mask"]] == [3, 3, 2, 2, 1, 1]
    assert not [name for name in sys.modules if name.split(".")[0] == "fiftyone"]  # it stays out of this process


def test_the_short_side_is_resized_and_the_middle_cut_out(root):
    """Of 64 × 48 pixels columns 8 to 56 are left, at half the size."""
    mask = module(root).splits.train[[0]]["mask"][0]
    np.testing.assert_array_equal(mask, drawn((2, 15, 5, 45, 40), (1, 20, 10, 30, 20))[1::2, 9:57:2])


def test_the_test_split_has_images_only(zoo):
    batches = list(module(zoo[0]).test_dataloader())
    assert [set(batch) for batch in batches] == [{"image"}] * 2
    assert torch.cat([batch["image"] for batch in batches]).shape == (4, 3, 24, 24)


def test_nothing_is_left_behind(root, database):
    """The server ends soon after the process that used it."""
    kept = sorted(path.name.split("-")[0] for path in (root / ".decoded" / "coco_masks").iterdir())
    assert kept == ["lock", "train", "validation"]
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(place) in part for part in process.info["cmdline"] or [] for place in (root, database))
    ]
    assert psutil.wait_procs(left, timeout=60)[1] == []


def test_of_two_instances_of_one_area_the_later_is_on_top():
    square = np.ones((4, 4), bool)
    labels = label_map([square, square, square[:2]], [(0, 0), (2, 2), (5, 5)], 8, 8)
    assert labels[3, 3] == labels[2, 2] == 2 and labels[0, 0] == 1 and labels[5, 5] == 3 and labels[7, 7] == 0


@pytest.fixture
def drawn_splits(monkeypatch):
    """Instead of FiftyOne, for what happens around it: empty masks, after a while; and whose splits were asked for."""
    calls: list[list[str]] = []

    def draw_masks(splits, out):
        calls.append([split.name for split in splits])
        time.sleep(0.2)
        for split in splits:
            names = sorted(os.listdir(split.images))[: split.max_samples]
            for name in names:
                mask = np.zeros((HEIGHT, WIDTH), np.uint8)
                made.save((out / split.name / "masks" / name).with_suffix(".png"), mask)
            write_atomically(out / split.name / "index.json", json.dumps(Index(names, 0, 0)._asdict()))

    monkeypatch.setattr(coco, "draw_masks", draw_masks)
    return calls


def test_of_several_processes_one_reads_the_annotations(tmp_path, drawn_splits):
    made.coco_plain(tmp_path)
    threads = [threading.Thread(target=COCO(tmp_path).prepare_data) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn_splits == [["train", "val"]]


def test_what_has_changed_or_is_damaged_is_read_again(tmp_path, drawn_splits):
    made.coco_plain(tmp_path)
    module(tmp_path)
    file = tmp_path / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text() + " ")
    module(tmp_path)
    module(tmp_path)
    assert drawn_splits == [["train", "val"], ["val"]]
    (index,) = (tmp_path / ".decoded" / "coco_masks").glob("train-*/index.json")
    index.write_text("{")
    module(tmp_path)
    assert drawn_splits == [["train", "val"], ["val"], ["train"]]


def test_a_split_that_is_whole_is_kept_when_the_other_fails(tmp_path, drawn_splits, monkeypatch):
    made.coco_plain(tmp_path)
    (tmp_path / ".decoded" / "coco_masks" / ".new-abc" / "train").mkdir(parents=True)  # left by a killed process
    whole = coco.draw_masks

    def failing(splits, out):
        whole(splits[:1], out)
        raise UserError("the database: no space left")

    monkeypatch.setattr(coco, "draw_masks", failing)
    with pytest.raises(UserError, match="no space left"):
        module(tmp_path)
    monkeypatch.setattr(coco, "draw_masks", whole)
    module(tmp_path)
    assert drawn_splits == [["train"], ["val"]]
    assert not list((tmp_path / ".decoded" / "coco_masks").glob(".*"))


def test_max_samples(tmp_path, drawn_splits):
    made.coco_zoo(tmp_path)
    assert [len(split) for split in module(tmp_path, max_samples=2).splits] == [2, 2, 2]
    assert [len(split) for split in module(tmp_path, max_samples=5).splits] == [5, 3, 4]


def fails(root: Path, message: str, **options) -> None:
    """Setting up fails with one line that starts with `message`, and leaves nothing half made."""
    with pytest.raises(UserError) as error:
        module(root, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not list(root.glob(".decoded/coco_masks/*-*")) and not list(root.glob(".decoded/coco_masks/.*"))


def test_without_test_images_only_testing_fails(tmp_path, drawn_splits):
    data = module(made.coco_plain(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}/test2017: expected the test images"):
        data.test_dataloader()


def test_another_folder(tmp_path, check):
    fails(tmp_path, message := f"{tmp_path}: expected COCO-2017, either coco-2017/")
    status, (line,) = check("coco", tmp_path)
    assert status == 2 and message in line


def test_a_partial_copy_in_the_zoo_needs_max_samples(tmp_path):
    made.coco_zoo(tmp_path)
    fails(tmp_path, f"{tmp_path}/coco-2017/train/data: holds 6 of 118287 images; max_samples must", max_samples=None)
    fails(tmp_path, "max_samples 0: must be at least 1", max_samples=0)


def edit(folder, change) -> None:
    """Lets `change` change the training split's annotations."""
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def segmentation(value):
    return lambda content: content["annotations"][1].update(segmentation=value)


TRAIN = "annotations/instances_train2017.json"
FAULTS = {
    "a missing image": (lambda d: (d / "train2017" / FIRST).unlink(), f"train2017/{FIRST}: expected the image that "),
    "no JSON": (lambda d: (d / TRAIN).write_text("{"), f"{TRAIN}: expected COCO's annotations, JSON"),
    "a list": (lambda d: (d / TRAIN).write_text("[]"), f"{TRAIN}: expected COCO's annotations, JSON"),
    "no images in it": (lambda d: edit(d, lambda c: c.pop("images")), f"{TRAIN}: expected COCO's annotations, JSON"),
    "no annotations": (lambda d: (d / TRAIN).unlink(), f"{TRAIN}: expected COCO-2017's annotations of the train split"),
    "no folder": (
        lambda d: (d / "val2017").rename(d / "elsewhere"),
        "val2017: expected the folder of COCO-2017's val images",
    ),
    "no images": (
        lambda d: [path.unlink() for path in (d / "train2017").iterdir()],
        "train2017: the train split is empty; expected *.jpg",
    ),
}
SUSPICIONS = {
    "a truncated image": (
        lambda d: (d / "train2017" / FIRST).write_bytes((d / "train2017" / FIRST).read_bytes()[:300]),
        f"train2017/{FIRST}: expected an image file that can be decoded",
    ),
    "a stray image": (
        lambda d: Image.new("RGB", (4, 4)).save(d / "train2017" / "mine.jpg"),
        "train2017/mine.jpg: expected only images that ",
    ),
    "another size": (
        lambda d: Image.new("RGB", (48, 64)).save(d / "train2017" / FIRST),
        f"train2017/{FIRST}: expected 64 × 48 pixels by ",
    ),
    "an annotation of no image": (
        lambda d: edit(d, lambda content: content["annotations"][0].update(image_id=77)),
        f"{TRAIN}: annotation 100: expected an image with the id 77, found none",
    ),
    "a line for a polygon": (
        lambda d: edit(d, segmentation([[1, 1, 5, 5]])),
        f"{TRAIN}: annotation 101 of {FIRST}: expected a mask",
    ),
    "a code that is too short": (
        lambda d: edit(d, segmentation({"size": [HEIGHT, WIDTH], "counts": [5, 5]})),
        f"{TRAIN}: annotation 101 of {FIRST}: expected a mask",
    ),
    "a code of another size": (
        lambda d: edit(d, segmentation({"size": [9, 9], "counts": [81]})),
        f"{TRAIN}: annotation 101 of {FIRST}: expected a mask",
    ),
}


@pytest.mark.parametrize("fault", FAULTS | SUSPICIONS)
def test_a_fault_is_named_by_the_check_and_what_cannot_be_loaded_by_the_loader(tmp_path, check, fault):
    make, expected = (FAULTS | SUSPICIONS)[fault]
    make(made.coco_plain(tmp_path))
    if fault in FAULTS:
        fails(tmp_path, f"{tmp_path}/{expected}", max_samples=None)
    status, lines = check("coco", tmp_path)
    assert status == 1 and sum(line.startswith(f"{tmp_path}/{expected}") for line in lines) == 1, lines


def test_a_check_of_a_plain_copy(tmp_path, check):
    status, lines = check("coco", made.coco_plain(tmp_path), "--fix-list", tmp_path / "good.txt")
    assert status == 0 and lines[:-1] == [
        "train 6, val 3 images",
        "9 of 64 × 48 pixels",
        "objects in a mask: 0 to 2, 0.89 in the mean",
        "nothing is wrong with 9 images",
    ]
    expected = [f"{split}2017/{i:012d}.jpg" for split, count in (("train", 6), ("val", 3)) for i in range(1, count + 1)]
    assert (tmp_path / "good.txt").read_text().split() == expected
    assert not (tmp_path / ".decoded").exists()


def test_a_check_of_a_part_of_the_zoo(tmp_path, check):
    (made.coco_zoo(tmp_path) / "coco-2017" / "train" / "data" / FIRST).unlink()
    status, lines = check("coco", tmp_path)
    assert status == 0 and lines[0] == "train 5, val 3, test 4 images" and "4 stored as L, converted to RGB" in lines


@pytest.mark.parametrize("missing", ["fiftyone", "pycocotools"])
def test_a_missing_extra_is_named(tmp_path, check, monkeypatch, missing):
    made.coco_plain(tmp_path)
    (tmp_path / "path" / missing).mkdir(parents=True)
    (tmp_path / "path" / missing / "__init__.py").write_text("raise ImportError('there is none')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    fails(tmp_path, "COCO is read through FiftyOne, which needs the extra 'coco': make setup EXTRAS=coco")
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    status, (line,) = check("coco", tmp_path)
    assert status == 2 and "make setup EXTRAS=coco" in line


@pytest.mark.slow
def test_a_database_that_does_not_answer(tmp_path, monkeypatch):
    made.coco_plain(tmp_path)
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=300")
    fails(tmp_path, "FiftyOne's database does not start or answer (")
