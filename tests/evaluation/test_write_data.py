"""`implicit-slate data write`: it writes a folder with the same images, masks and splits."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_modules import CLEVRMirror, ImageFolder, Sprites
from data_modules.base import ArrayImages, Splits
from implicit_slate.cli import main
from tests.data_modules import made


def write(experiment: Path, kind: str, *options: str, **settings) -> int:
    data = {"class_path": f"data_modules.{kind}", "init_args": settings}
    experiment.write_text(yaml.safe_dump({"data": data, "trainer": {"max_steps": 1}}))
    return main(["data", "write", str(experiment), "--out", str(experiment.with_name("out")), *options])


def assert_same(found, expected):
    found.setup()
    expected.setup()
    for ours, theirs in zip(found.splits, expected.splits, strict=True):
        assert len(ours) == len(theirs)
        batch, other = ours[list(range(len(ours)))], theirs[list(range(len(ours)))]
        assert batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in batch)


def test_sprites_are_read_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("implicit_slate.evaluation.write_data.AT_A_TIME", 4)
    settings = {"image_size": 16, "batch_size": 2, "num_images": [9, 2, 3]}
    out = tmp_path / "out"
    out.mkdir()  # the folder may exist if it is empty
    assert write(tmp_path / "x.yaml", "Sprites", "--data.data_seed", "3", **settings) == 0
    assert capsys.readouterr().out == f"{out}: train 9, val 2, test 3 images\n"
    assert len([*out.glob("*.png")]) == len([*(out / "masks").glob("*.png")]) == 14
    assert main(["data", "check", "folder", str(out)]) == 0
    assert "train 9, val 2, test 3 images" in capsys.readouterr().out
    assert_same(ImageFolder(out, 16, lists=out, batch_size=2), Sprites(**settings, data_seed=3))
    before = sorted(out.rglob("*"))
    assert write(tmp_path / "x.yaml", "Sprites", **settings) == 2
    assert capsys.readouterr().err.endswith(f"implicit-slate: {out}: exists already; it is not overwritten\n")
    assert sorted(out.rglob("*")) == before


def test_a_data_set_without_masks(tmp_path):
    root = made.clevr_mirror(tmp_path / "data", masks=False)
    settings = {"root": str(root), "image_size": 16, "batch_size": 2}
    assert write(tmp_path / "x.yaml", "CLEVRMirror", **settings) == 0
    assert_same(ImageFolder(tmp_path / "out", 16, lists=tmp_path / "out", batch_size=2), CLEVRMirror(**settings))


@pytest.mark.parametrize(
    "test, message",
    [
        (ArrayImages(np.zeros((2, 16, 16, 3), np.uint8)), "has no masks, but others do"),
        (ArrayImages(np.zeros((0, 16, 16, 3), np.uint8)), "is empty"),
    ],
)
def test_splits_that_make_no_folder_are_named_before_anything_is_written(tmp_path, monkeypatch, capsys, test, message):
    load = Sprites.load
    monkeypatch.setattr(Sprites, "load", lambda module: load(module)._replace(test=test))  # as in COCO
    assert write(tmp_path / "x.yaml", "Sprites", image_size=16, num_images=[5, 4, 3 + len(test)]) == 2
    error = capsys.readouterr().err
    assert f"the test split of data_modules.Sprites (embedded) {message}" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


@pytest.mark.parametrize("least, most", [(0, 256), (-1, 3)])
def test_labels_that_no_byte_can_have_are_refused(tmp_path, monkeypatch, capsys, least, most):
    masks = np.full((2, 16, 16), least)
    masks[1, 0, 0] = most
    images = ArrayImages(np.zeros((2, 16, 16, 3), np.uint8), masks)
    monkeypatch.setattr(Sprites, "load", lambda module: Splits(images, images, images))  # as in a module of one's own
    assert write(tmp_path / "x.yaml", "Sprites", image_size=16, data_seed=most) == 2  # loaded data are cached
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"the mask of train_00000\d.png: expected labels 0 to 255, found {least} to ", error)
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


@pytest.mark.parametrize("stop, status", [(KeyboardInterrupt, 130), (OSError(28, "No space left on device"), 2)])
def test_nothing_is_left_of_a_folder_that_is_not_whole(tmp_path, monkeypatch, stop, status):
    saved, save = [], Image.Image.save

    def stopped(image, file):
        saved.append(file)
        if len(saved) > 5:
            raise stop
        save(image, file)

    monkeypatch.setattr(Image.Image, "save", stopped)
    assert write(tmp_path / "x.yaml", "Sprites", image_size=16, num_images=[4, 4, 4]) == status
    assert saved and [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


def test_a_command_that_is_ended_leaves_nothing(tmp_path):
    """It is stopped by SIGTERM, like a batch job."""
    (tmp_path / "x.yaml").write_text("data: {class_path: data_modules.Sprites, init_args: {num_images: [4000, 4, 4]}}")
    command = f"-m implicit_slate.cli data write {tmp_path}/x.yaml --out {tmp_path}/out".split()
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE) as process:
        while not [*tmp_path.glob(".out.*/out/*.png")]:
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.communicate(timeout=60)[1] == b"stopped: data write\n"
    assert process.returncode == 130 and not [*tmp_path.glob("*out*")]


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    assert write(tmp_path / "x.yaml", "Sprites", image_size=16, num_images=[4, 4, 4]) == 0
    assert (tmp_path / "out").is_symlink() and (tmp_path / "elsewhere" / "train.txt").exists()


def test_a_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    """A mount point, as in a container, cannot be replaced by the finished folder."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    (tmp_path / "out").mkdir()
    assert write(tmp_path / "x.yaml", "Sprites", image_size=16, num_images=[4, 4, 4]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/out: a disk is mounted there" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "experiment, options, message",
    [
        ("x.yaml", ["--data.grond", "plain"], "did you mean 'data.ground'?"),
        ("x.yaml", ["--seed", "1"], "data write: unknown option --seed (see --help)"),
        ("nowhere.yaml", [], "nowhere.yaml: No such file"),
        ("x.txt", [], "x.txt: expected an experiment file (.yaml)"),
    ],
)
def test_bad_usage(tmp_path, capsys, experiment, options, message):
    (tmp_path / "x.yaml").write_text("data: {class_path: data_modules.Sprites}")
    assert main(["data", "write", str(tmp_path / experiment), "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
