"""COCO-2017 through the real FiftyOne and a real database server, on small made copies in the original layouts."""

import importlib.machinery
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import lightning as L
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from data_modules import COCO, coco
from data_modules.coco_database import Index, database_server, label_map, read_index, server_binary
from implicit_slate.errors import UserError

WIDTH, HEIGHT = 64, 48


def rectangle(left, top, right, bottom) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(image_id: int, segmentation, box, **more) -> dict:
    left, top, right, bottom = box
    return {
        "image_id": image_id,
        "category_id": 18,
        "iscrowd": 0,
        "area": (right - left) * (bottom - top),
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": segmentation,
    } | more


def crowd(image_id: int) -> dict:
    """The upper left 10 × 12 pixels, as an uncompressed run-length code down the columns."""
    counts = [0] + [12, HEIGHT - 12] * 10
    counts[-1] += HEIGHT * (WIDTH - 10)
    return annotation(image_id, {"size": [HEIGHT, WIDTH], "counts": counts}, (0, 0, 10, 12), iscrowd=1)


TRIANGLE = [(20.0, 4.0), (50.0, 10.0), (28.0, 40.0)]


def annotations() -> list[dict]:
    """Of the images 1 to 6, of which 5 has none."""
    made = [
        # 1: a small rectangle that a large one would hide, which comes later; and a crowd before them
        crowd(1),
        annotation(1, [rectangle(20, 10, 30, 20)], (20, 10, 30, 20)),
        annotation(1, [rectangle(15, 5, 45, 40)], (15, 5, 45, 40)),
        # 2: an instance of two parts; one whose corner lies between pixels
        annotation(2, [rectangle(5, 5, 10, 10), rectangle(30, 5, 40, 12)], (5, 5, 40, 12)),
        annotation(2, [rectangle(10.5, 20.5, 30.5, 40.5)], (10.5, 20.5, 30.5, 40.5)),
        # 3: a triangle
        annotation(3, [[c for point in TRIANGLE for c in point]], (20, 4, 50, 40)),
        # 4: an instance cut by the right and lower edge of the image
        annotation(4, [rectangle(50, 30, 64, 48)], (50, 30, 64, 48)),
        # 6: nothing but a crowd
        crowd(6),
    ]
    return [entry | {"id": 100 + i} for i, entry in enumerate(made)]


def write_split(images: Path, file: Path, count: int, annotated: list[dict]) -> None:
    """`count` images, image i of grey 30 i, listed in an order that is not theirs, and their annotations."""
    images.mkdir(parents=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    for i in range(1, count + 1):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 30 * i, np.uint8)).save(images / f"{i:012d}.jpg")
        entries.append(
            {
                "id": i,
                "file_name": f"{i:012d}.jpg",
                "width": WIDTH,
                "height": HEIGHT,
                "license": 1,
                "coco_url": f"http://localhost:9/{i:012d}.jpg",
            }
        )
    file.write_text(
        json.dumps(
            {
                "info": {"year": 2017},
                "licenses": [{"id": 1, "name": "none", "url": ""}],
                "images": entries[::-1],
                "annotations": annotated,
                "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
            }
        )
    )


def make_zoo(root: Path) -> Path:
    copy = root / "coco-2017"
    write_split(copy / "train" / "data", copy / "raw" / "instances_train2017.json", 6, annotations())
    write_split(copy / "validation" / "data", copy / "raw" / "instances_val2017.json", 3, annotations()[:3])
    (copy / "test" / "data").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(np.full((HEIGHT, WIDTH), 9 * i, np.uint8)).save(copy / "test" / "data" / f"{i:012d}.jpg")
    return root


def make_plain(root: Path) -> Path:
    write_split(root / "train2017", root / "annotations" / "instances_train2017.json", 6, annotations())
    write_split(root / "val2017", root / "annotations" / "instances_val2017.json", 3, annotations()[:3])
    return root


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A copy in the zoo's layout; and what was said as FiftyOne read it, with a server of our own."""
    root = make_zoo(tmp_path_factory.mktemp("zoo"))
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(handler)
    COCO(root, max_samples=100).prepare_data()
    logger.removeHandler(handler)
    return root, messages


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A plain COCO folder that FiftyOne has read with the user's own server; and the names of data sets left there."""
    import pymongo

    root = make_plain(tmp_path_factory.mktemp("plain"))
    with (
        pytest.MonkeyPatch.context() as patch,
        database_server(server_binary(), tmp_path_factory.mktemp("database")) as address,
    ):
        patch.setenv("FIFTYONE_DATABASE_URI", address)
        COCO(root).prepare_data()
        with pymongo.MongoClient(address) as client:
            left = [document["name"] for document in client["fiftyone"]["datasets"].find()]
            names = client.list_database_names()
    assert "fiftyone" in names  # it was this server that FiftyOne used
    return root, left


@pytest.fixture(params=["zoo", "plain"])
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
    assert not made[5].any()


def test_parts_of_an_instance_have_one_number(root):
    np.testing.assert_array_equal(masks(root)[2][:15], drawn((1, 5, 5, 10, 10), (1, 30, 5, 40, 12))[:15])


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


def test_crowds_are_background(root):
    assert not masks(root)[6].any() and not masks(root)[1][:5].any()


def test_crowds_are_counted(root):
    assert module(root).num_crowds == {"train": 2, "val": 1}


def test_crowds_are_said_once(zoo, caplog):
    root, messages = zoo
    assert [message for message in messages if message.startswith("COCO")] == [
        "COCO train: 6 images, 6 instances; 2 annotations of crowds left out",
        "COCO validation: 3 images, 2 instances; 1 annotations of crowds left out",
    ]
    with caplog.at_level("INFO"):
        module(root)
    assert "crowds" not in caplog.text


def test_batches(root):
    data = module(root)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 24, 24) and batch["image"].dtype == torch.float32
    assert batch["mask"].shape == (2, 24, 24) and batch["mask"].dtype == torch.int64
    assert [len(split) for split in data.splits[:2]] == [6, 3]


def test_images_by_id_with_their_masks(root):
    train = module(root).splits.train[list(range(6))]
    assert (train["image"].mean((1, 2, 3)) * 255 / 30 - torch.arange(1, 7)).abs().max() < 0.1
    assert [len(mask.unique()) for mask in train["mask"]] == [3, 3, 2, 2, 1, 1]


def test_the_short_side_is_resized_and_the_middle_cut_out(root):
    """Of 64 × 48 pixels columns 8 to 56 are left, at half the size."""
    mask = module(root).splits.train[[0]]["mask"][0]
    np.testing.assert_array_equal(mask, drawn((2, 15, 5, 45, 40), (1, 20, 10, 30, 20))[1::2, 9:57:2])


def test_the_test_split_has_images_only(zoo):
    batches = list(module(zoo[0]).test_dataloader())
    assert [set(batch) for batch in batches] == [{"image"}] * 2
    assert torch.cat([batch["image"] for batch in batches]).shape == (4, 3, 24, 24)


def test_without_test_images_only_testing_fails(plain):
    data = module(plain[0])
    with pytest.raises(UserError, match=f"{plain[0]}/test2017: expected the test images"):
        data.test_dataloader()


class TinyModel(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)

    def training_step(self, batch, index):
        return (self.layer(batch["image"]) - batch["image"]).square().mean() + 0 * batch["mask"].float().mean()

    def validation_step(self, batch, index):
        assert batch["mask"].shape == batch["image"][:, 0].shape

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_fit(root, tmp_path, num_workers):
    trainer = L.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        check_val_every_n_epoch=None,
        val_check_interval=2,
    )
    trainer.fit(TinyModel(), COCO(root, 24, 2, num_workers=num_workers, max_samples=100))
    assert trainer.global_step == 4


def test_nothing_is_left_behind(root):
    kept = sorted(path.name.split("-")[0] for path in (root / ".decoded" / "coco_masks").iterdir())
    assert kept == ["lock", "train", "validation"]
    assert not [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(root) in part for part in process.info["cmdline"] or [])
    ]


def test_the_users_own_server_keeps_no_data_set(plain):
    assert plain[1] == []


def test_fiftyone_stays_out_of_this_process(root):
    module(root)
    assert not [name for name in sys.modules if name.split(".")[0] == "fiftyone"]


def test_the_server_ends_with_the_process_that_started_it(tmp_path):
    """Even if that is killed."""
    command = (
        "import sys, time, pathlib; from data_modules.coco_database import database_server, server_binary\n"
        "with database_server(server_binary(), pathlib.Path(sys.argv[1])) as address:\n"
        "    print(address, flush=True)\n    time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", command, tmp_path], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline().startswith("mongodb://127.0.0.1:")
    (server,) = [child for child in psutil.Process(owner.pid).children(recursive=True) if child.name() == "mongod"]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert psutil.wait_procs([server], timeout=20)[1] == []


def test_a_server_that_does_not_start(tmp_path):
    (tmp_path / "journal").write_text("in the way")
    with (
        pytest.raises(UserError, match=f"{tmp_path}: FiftyOne's database server does not start there"),
        database_server(server_binary(), tmp_path),
    ):
        pass


def test_of_two_instances_of_one_area_the_later_is_on_top():
    square = np.ones((4, 4), bool)
    labels = label_map([square, square, square[:2]], [(0, 0), (2, 2), (5, 5)], 8, 8)
    assert labels[3, 3] == labels[2, 2] == 2 and labels[0, 0] == 1 and labels[5, 5] == 3 and labels[7, 7] == 0


@pytest.fixture
def fake_import(monkeypatch):
    """Instead of FiftyOne, for what happens around it: empty masks, after a while; and whose splits were asked for."""
    calls: list[list[str]] = []

    def import_splits(splits, zoo, out, database_dir):
        calls.append([split.name for split in splits])
        time.sleep(0.2)
        for split in splits:
            names = sorted(os.listdir(split.images))[: split.max_samples]
            (out / split.name / "masks").mkdir(parents=True)
            for name in names:
                mask = Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8))
                mask.save((out / split.name / "masks" / name).with_suffix(".png"))
            (out / split.name / "index.json").write_text(json.dumps(Index(names, 0, 0)._asdict()))

    monkeypatch.setattr(coco, "import_splits", import_splits)
    return calls


def test_of_several_processes_one_reads_the_annotations(tmp_path, fake_import):
    make_plain(tmp_path)
    threads = [threading.Thread(target=COCO(tmp_path).prepare_data) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake_import == [["train", "validation"]]


def test_what_has_changed_is_read_again(tmp_path, fake_import):
    make_plain(tmp_path)
    module(tmp_path)
    file = tmp_path / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text() + " ")
    module(tmp_path)
    module(tmp_path)
    assert fake_import == [["train", "validation"], ["validation"]]


def test_a_split_that_is_whole_is_kept_when_the_other_fails(tmp_path, fake_import, monkeypatch):
    make_plain(tmp_path)
    whole = coco.import_splits

    def failing(splits, *args):
        whole(splits[:1], *args)
        raise UserError("the database: no space left")

    monkeypatch.setattr(coco, "import_splits", failing)
    with pytest.raises(UserError, match="no space left"):
        module(tmp_path)
    monkeypatch.setattr(coco, "import_splits", whole)
    module(tmp_path)
    assert fake_import == [["train"], ["validation"]]
    assert not list((tmp_path / ".decoded" / "coco_masks").glob(".*"))


def test_what_a_killed_process_left_is_removed(tmp_path, fake_import):
    make_plain(tmp_path)
    (tmp_path / ".decoded" / "coco_masks" / ".new-abc" / "train").mkdir(parents=True)
    (tmp_path / ".decoded" / "coco_masks" / ".database-abc").mkdir()
    module(tmp_path)
    assert not list((tmp_path / ".decoded" / "coco_masks").glob(".*"))


def test_max_samples(tmp_path, fake_import):
    make_zoo(tmp_path)
    assert [len(split) for split in module(tmp_path, max_samples=2).splits] == [2, 2, 2]
    assert [len(split) for split in module(tmp_path, max_samples=5).splits] == [5, 3, 4]


def fails(root: Path, message: str, **options) -> None:
    """Setting up fails with one line that starts with `message`, and leaves nothing half made."""
    with pytest.raises(UserError) as error:
        module(root, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not list(root.glob(".decoded/coco_masks/*-*")) and not list(root.glob(".decoded/coco_masks/.*"))


def test_missing_folder(tmp_path):
    fails(tmp_path / "nowhere", f"{tmp_path}/nowhere: expected COCO-2017, either coco-2017/")


def test_missing_images(tmp_path):
    make_plain(tmp_path)
    os.rename(tmp_path / "val2017", tmp_path / "val")
    fails(tmp_path, f"{tmp_path}/val2017: expected the folder of COCO-2017's validation images")


def test_missing_annotations(tmp_path):
    make_zoo(tmp_path)
    file = tmp_path / "coco-2017" / "raw" / "instances_train2017.json"
    file.unlink()
    fails(tmp_path, f"{file}: expected COCO-2017's annotations of the train split")


def test_empty_split(tmp_path):
    make_zoo(tmp_path)
    folder = tmp_path / "coco-2017" / "validation" / "data"
    for path in folder.iterdir():
        path.unlink()
    fails(tmp_path, f"{folder}: the validation split is empty")


def test_a_partial_copy_in_the_zoo_needs_max_samples(tmp_path):
    make_zoo(tmp_path)
    fails(tmp_path, f"{tmp_path}/coco-2017/train/data: holds 6 of 118287 images; max_samples must", max_samples=None)


@pytest.mark.parametrize("max_samples", [0, -1])
def test_max_samples_must_be_positive(tmp_path, max_samples):
    fails(tmp_path, f"max_samples {max_samples}: must be at least 1", max_samples=max_samples)


def test_missing_image(tmp_path):
    make_plain(tmp_path)
    missing = tmp_path / "train2017" / "000000000004.jpg"
    missing.unlink()
    fails(tmp_path, f"{missing}: expected the image that {tmp_path}/annotations/instances_train2017.json lists")


def test_an_image_that_the_zoo_does_not_know(tmp_path):
    make_zoo(tmp_path)
    stray = tmp_path / "coco-2017" / "validation" / "data" / "holiday.jpg"
    Image.new("RGB", (8, 8)).save(stray)
    fails(tmp_path, f"{stray}: expected only images that")


def test_images_that_came_after_the_zoo_made_its_list(tmp_path):
    make_zoo(tmp_path)
    folder = tmp_path / "coco-2017" / "validation"
    known = json.loads((tmp_path / "coco-2017" / "raw" / "instances_val2017.json").read_text())
    (folder / "labels.json").write_text(json.dumps(known | {"images": known["images"][:2]}))
    fails(tmp_path, f"{folder}/labels.json: lists 2 of the 3 images there now; delete it")


@pytest.mark.parametrize("content", ["{", "[]", '{"annotations": []}', '{"images": [{"id": 1}]}'])
def test_annotations_that_are_none(tmp_path, content):
    make_plain(tmp_path)
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_text(content)
    fails(tmp_path, f"{file}: expected COCO's annotations, JSON with `images`")


def test_missing_database_dir(tmp_path):
    make_plain(tmp_path)
    fails(tmp_path, f"{tmp_path}/no/", database_dir=tmp_path / "no")


def test_without_fiftyone(tmp_path, monkeypatch):
    make_plain(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails(tmp_path, "COCO is read through FiftyOne, which is not installed; `make setup EXTRAS=coco`")


@pytest.fixture
def fiftyone_elsewhere(tmp_path, monkeypatch):
    """A FiftyOne whose database server the test may make as it likes."""
    (tmp_path / "fiftyone" / "db" / "bin").mkdir(parents=True)
    spec = importlib.machinery.ModuleSpec("fiftyone", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "fiftyone")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return tmp_path / "fiftyone" / "db" / "bin" / "mongod"


def test_without_a_database_server(tmp_path, fiftyone_elsewhere):
    make_plain(tmp_path)
    fails(tmp_path, f"{fiftyone_elsewhere}: FiftyOne has no database server there; `make setup EXTRAS=coco` sets it up")


def test_a_database_server_that_does_not_run_here(tmp_path, fiftyone_elsewhere):
    make_plain(tmp_path)
    fiftyone_elsewhere.write_text("#!/bin/sh\necho 'libcurl.so.4: cannot open shared object file' >&2\nexit 127\n")
    fiftyone_elsewhere.chmod(0o755)
    fails(tmp_path, f"{fiftyone_elsewhere}: FiftyOne's database server does not run here (libcurl.so.4: cannot open")
