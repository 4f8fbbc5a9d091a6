"""Behaviour of all data modules that read files: batches, errors, checks and training, tested on each."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules import CLEVR, KINDS, CLEVRMirror, ImageFolder, Shapes3D, ShapeStacks, shapes3d
from data_modules.cached import CachedDataModule
from implicit_slate.cli import main
from implicit_slate.training import SLATEModule
from tests.data_modules import made
from tests.tiny import SLATE_SIZES
from tests.training.setting import trainer as quiet_trainer

SCENARIO = f"recordings/{made.SCENARIOS['train'][0]}"


@dataclass
class Case:
    """A data set: how a small copy is made and loaded."""

    kind: str
    module: type[CachedDataModule]
    make: Callable[[Path], object]
    options: dict = field(default_factory=dict)
    image: str | None = None
    """One of its image files, whose mask is `mask`."""
    mask: str | None = None
    sizes: tuple[int, int, int] = (14, 3, 3)
    """Sizes of the splits."""


def make_folder(root: Path) -> None:
    """Images in portrait and landscape format."""
    for i in range(20):
        height, width = (32, 48) if i % 2 else (48, 32)
        made.save(root / f"{i:02d}.{'jpg' if i == 7 else 'png'}", made.grey(10 * i, height, width))
        made.save(root / "masks" / f"{i:02d}.png", np.full((height, width), i % 3, np.uint8))


def make_shapestacks(root: Path) -> None:
    """Every subset has all scenarios; otherwise, with so few, some splits would be empty."""
    made.shapestacks(root)
    for subset in ("blocks_all", "ccs_all"):
        shutil.copytree(root / "splits" / "default", root / "splits" / subset, dirs_exist_ok=True)


CASES = [
    Case("clevr-mirror", CLEVRMirror, made.clevr_mirror, {},
         "images/CLEVR_new_0000000015.png", "masks/CLEVR_new_0000000015.png"),
    Case("shapestacks", ShapeStacks, make_shapestacks, {},
         f"{SCENARIO}/rgb-w=1-f=0-l=2-c=original-cam_1-mono-0.png",
         f"{SCENARIO}/iseg-w=0-f=0-l=0-c=original-cam_1-mono-0.map", (4, 2, 2)),
    Case("shapes3d", Shapes3D, lambda root: made.shapes3d(root, np.arange(1, 25, dtype=np.uint8)), sizes=(16, 3, 4)),
    Case("clevr", CLEVR, made.clevr_hdf5, {"num_train": 6, "num_eval": 3}, sizes=(6, 3, 3)),
    Case("folder", ImageFolder, make_folder, {}, "07.jpg", "masks/07.png"),
]  # fmt: skip
BY_FILE = [case for case in CASES if case.image]


@pytest.fixture
def small_splits(monkeypatch):
    """Smaller splits of 3D Shapes, so that tests need not decode 480,000 images."""
    monkeypatch.setattr(shapes3d, "SPLITS", {"train": range(16), "val": range(17, 20), "test": range(20, 24)})


@pytest.fixture(params=CASES, ids=lambda case: case.kind)
def case(request, small_splits):
    return request.param


@pytest.fixture(params=BY_FILE, ids=lambda case: case.kind)
def file_case(request):
    return request.param


def module(case: Case, root: Path, **options) -> CachedDataModule:
    return case.module(root, 16, **{"batch_size": 4} | case.options | options)


def fails(case: Case, root: Path, message: str) -> None:
    made.fails(case.module, root, message, image_size=16, **case.options)


def test_every_kind_is_a_data_module():
    assert {case.kind for case in CASES} | {"coco"} == set(KINDS)


def test_batches(case, tmp_path):
    case.make(tmp_path)
    data = module(case, tmp_path)
    data.setup()
    assert tuple(map(len, data.splits)) == case.sizes
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16) and batch["image"].dtype == torch.float32
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1
    assert ("mask" in batch) == (case.kind != "shapes3d")
    if "mask" in batch:
        assert batch["mask"].shape == (4, 16, 16) and batch["mask"].dtype == torch.int64


@pytest.mark.parametrize("options", [{"num_workers": 1}, {"on_device": True}], ids=["worker", "on the device"])
def test_fit(case, tmp_path, options):
    case.make(tmp_path)
    trainer = quiet_trainer(max_steps=2, val_check_interval=2)
    trainer.fit(SLATEModule(**SLATE_SIZES), datamodule=module(case, tmp_path, **options))
    assert trainer.global_step == 2 and trainer.callback_metrics["val/loss"].isfinite()


def test_a_missing_folder(case, tmp_path, check):
    fails(case, tmp_path / "no", f"{tmp_path}/no")
    assert check(case.kind, tmp_path / "no") == (
        2, [f"implicit-slate: {tmp_path}/no: expected the folder of a data set, found none"]
    )  # fmt: skip


def test_an_empty_folder(case, tmp_path, check):
    fails(case, tmp_path, f"{tmp_path}")
    status, (line,) = check(case.kind, tmp_path)
    assert status == 2 and line.startswith(f"implicit-slate: {tmp_path}") and "expected" in line


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


FAULTS = {
    "a truncated image": (damaged, "image", "expected an image file that can be decoded"),
    "another kind of file": (lambda path: path.write_text("words"), "image", "expected an image file that can be"),
    "more than 8 bits": (
        lambda path: made.save(path, np.full((32, 32), 40_000, np.uint16)), "image", "expected 8 bits a channel",
    ),
    "a truncated mask": (damaged, "mask", "expected an image file that can be decoded"),
    "a small mask": (
        lambda path: made.save(path, np.zeros((8, 8), np.uint8)), "mask", "expected a mask as large as its image",
    ),
    "a mask of two colours": (lambda path: Image.new("1", (32, 32)).save(path, "PNG"), "mask", "expected a "),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_with_a_fault_is_named_by_loader_and_check(file_case, tmp_path, blames, fault):
    spoil, which, message = FAULTS[fault]
    file_case.make(tmp_path)
    path = tmp_path / getattr(file_case, which)
    path = path.with_suffix(".png") if fault == "more than 8 bits" and path.suffix == ".jpg" else path
    spoil(path)
    fails(file_case, tmp_path, f"{path}: {message}")
    blames(file_case.kind, tmp_path, f"{path}: {message}")


def test_a_missing_mask(file_case, tmp_path, blames):
    file_case.make(tmp_path)
    (tmp_path / file_case.mask).unlink()
    start = tmp_path / (file_case.image if file_case.kind == "shapestacks" else file_case.mask)
    fails(file_case, tmp_path, f"{start}: expected ")
    blames(file_case.kind, tmp_path, f"{start}: expected ", "--workers", 2)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_check_of_what_is_right(file_case, tmp_path, check, workers):
    file_case.make(tmp_path)
    good = tmp_path / "lists" / "good.txt"
    status, lines = check(file_case.kind, tmp_path, "--fix-list", good, "--workers", workers)
    train, val, test = file_case.sizes
    assert status == 0 and lines[0] == f"train {train}, val {val}, test {test} images"
    assert lines[-2] == f"nothing is wrong with {sum(file_case.sizes)} images"
    assert lines[-1] == f"{len(good.read_text().splitlines())} good names listed in {good}"


def test_hidden_files_are_left_out(case, tmp_path, check):
    """macOS leaves a file `._name` beside every file that it copies to another file system."""
    case.make(tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_text("attributes")
    data = module(case, tmp_path)
    data.setup()
    assert tuple(map(len, data.splits)) == case.sizes
    if case.kind in {case.kind for case in BY_FILE}:
        assert check(case.kind, tmp_path)[1][-1] == f"nothing is wrong with {sum(case.sizes)} images"


def test_a_list_is_not_written_over(tmp_path, check):
    made.clevr_mirror(tmp_path)
    (good := tmp_path / "good.txt").write_text("mine")
    status, (line,) = check("clevr-mirror", tmp_path, "--fix-list", good)
    assert status == 2 and f"--fix-list {good}: exists already" in line and good.read_text() == "mine"


def test_a_list_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, check, monkeypatch):
    made.clevr_mirror(tmp_path)
    monkeypatch.setattr(CLEVRMirror, "examine", lambda *_: 1 / 0)
    good = tmp_path / "images" / "CLEVR_new_0000000000.png" / "good.txt"  # a path below a file
    status, (line,) = check("clevr-mirror", tmp_path, "--fix-list", good)
    assert status == 2 and "cannot be written" in line


def test_colours_that_are_converted_are_counted_not_blamed(tmp_path, check):
    made.clevr_mirror(tmp_path)
    for i, mode in enumerate(("L", "RGBA", "L")):
        Image.new(mode, (32, 32)).save(tmp_path / "images" / f"CLEVR_new_{i:010d}.png")
    status, lines = check("clevr-mirror", tmp_path)
    assert status == 0
    assert "2 stored as L, converted to RGB" in lines and "1 stored as RGBA, converted to RGB" in lines


def test_an_image_and_its_mask_are_both_blamed(tmp_path, check):
    made.clevr_mirror(tmp_path)
    paths = [tmp_path / kind / "CLEVR_new_0000000007.png" for kind in ("images", "masks")]
    for path in paths:
        damaged(path)
    _, lines = check("clevr-mirror", tmp_path)
    assert [line.partition(":")[0] for line in lines if "decoded" in line] == [str(path) for path in paths]
    assert lines[-1] == "wrong: 2 (above); 1 of 20 images are bad"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clever-mirror", "."], "data check: unknown kind 'clever-mirror'; did you mean 'clevr-mirror'"),
        (["clevr-mirror", ".", "--workers", "0"], "--workers: expected a positive number"),
        (["clevr-mirror"], "the following arguments are required: DIR"),
    ],
)
def test_bad_usage_is_one_line(capsys, arguments, message):
    assert main(["data", "check", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
