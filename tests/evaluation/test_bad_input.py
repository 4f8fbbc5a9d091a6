"""`evaluate` and `generate` report bad input in one line that names it, and leave nothing behind."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from implicit_slate.cli import main
from tests.evaluation import made
from tests.tiny import Command


@pytest.fixture
def refuses(capsys, tmp_path):
    """Asserts the line with which a command refuses bad input; `{}` in it is the test's folder, `{}/run` the run's."""

    def call(command: str) -> str:
        assert main(command.format(*[tmp_path] * command.count("{}")).split()) == 2
        *progress, error = capsys.readouterr().err.splitlines()
        assert error.startswith("implicit-slate: ") and all(line.startswith("decode ") for line in progress)
        assert not [path for path in tmp_path.rglob("*") if path.name in ("out", "evaluation")]
        return error

    return call


CHECKPOINT = "{}/run/checkpoints/last.ckpt"
EVALUATE, GENERATE = f"evaluate {CHECKPOINT}", f"generate {CHECKPOINT} --out {{}}/out"


@pytest.mark.parametrize(
    "command, message",
    [
        ("evaluate {}/x.ckpt", "/x.ckpt: no such file or folder"),
        (
            "evaluate sprites-implicit",
            "no such file or folder; evaluate needs a checkpoint (.ckpt), or a grid's folder",
        ),
        ("evaluate {}/a.safetensors", "a.safetensors: an exported model; evaluate needs a checkpoint (.ckpt)"),
        ("evaluate {}", "not the folder of a grid"),
        ("evaluate {}/run", "/run: not the folder of a grid; name a checkpoint in it, such as "),
        ("view {}/lightning", "not the folder of a grid; name a checkpoint in it, such as "),
        (f"{EVALUATE} --split tset", "--split: invalid choice: 'tset'"),
        (f"{EVALUATE} --metrics fdi", "unknown metric 'fdi'; did you mean 'fid'?"),
        (f"{EVALUATE} --metrics=", "unknown metric ''; known: reconstruction"),
        (f"{EVALUATE} --draws 0", "--draws: expected a positive number"),
        (f"{EVALUATE} --bathc-size 3", "unknown option --bathc-size"),
        (f"{EVALUATE} --data.rot x", "rot"),
        (f"{EVALUATE} --data.root /nowhere", "/nowhere/images"),
        (f"{EVALUATE} --data /nowhere.yaml", "/nowhere.yaml: No such file"),
        (f"{EVALUATE} --data.image_size 32", "images of 16 pixels"),
        (f"{EVALUATE} --metrics fid", "data download fid-weights"),
        (f"{EVALUATE} --fid-weights /nowhere", "/nowhere: no such file or folder"),
        (f"{EVALUATE} --fid-weights {{}}/run/config.yaml", "/run/config.yaml: expected weights-inception"),
        (f"{GENERATE} /nowhere.png", "/nowhere.png: expected an image file there"),
        (f"{GENERATE} {{}} {{}}/a.png", "a.png: has the same name as"),
        (f"{GENERATE} {{}}/run", "expected images"),
        (f"{GENERATE} {{}}/run/config.yaml", "config.yaml: expected an image file that can be decoded"),
        (f"{GENERATE} {{}}/a.png --temperature -1", "temperature=-1.0"),
        (f"{GENERATE} {{}}/a.png --top-k 3", "need a temperature above 0"),
        (f"{GENERATE} {{}}/a.png --temperature 1 --top-k 13", "vocab_size=12"),
        (f"{GENERATE} {{}}/a.png --batch-size 0", "--batch-size: expected a positive number"),
        (f"{GENERATE} {{}}/a.png --seed -1", "--seed: expected a whole number from 0 to 4294967295, got '-1'"),
        (f"{EVALUATE} --seed 99999999999999999999", "from 0 to 4294967295, got '99999999999999999999'"),
        (f"{GENERATE} {{}}/pipe", "/pipe: expected an image file there, found something else"),
        (f"{EVALUATE} --seed -1", "--seed: expected a whole number from 0 to"),
        (f"{EVALUATE} --json {{}}/theirs/test.json", "test.json: exists already, and was not made by an evaluation"),
        (f"{EVALUATE} --json {{}}/a.png/test.json", "cannot be written"),
        (f"{EVALUATE} --json {{}}/pipe", "/pipe: not a file"),
        (f"{EVALUATE} {{}}/run/checkpoints/first.ckpt", "last.ckpt: another checkpoint has its results in"),
        (f"{EVALUATE} --metrics segmentation --devices 999", "--devices 999: this machine has"),
        (f"{EVALUATE} --out {{}}/theirs", "test.json: exists already, and was not made by an evaluation"),
        (f"{EVALUATE} --out {{}}/theirs --split val", "val.png: exists already, and was not made by an evaluation"),
    ],
)
def test_bad_options(checkpoint, tmp_path, refuses, command, message):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.safetensors").touch()
    checkpoint.with_name("first.ckpt").touch()
    epoch = tmp_path / "lightning" / "checkpoints" / "epoch=0.ckpt"  # the name that `fit` gives
    epoch.parent.mkdir(parents=True)
    epoch.touch()
    os.mkfifo(tmp_path / "pipe")
    theirs = [tmp_path / "theirs" / name for name in ("test.json", "val.png")]
    theirs[0].parent.mkdir()
    for file in theirs:
        file.write_text('{"a": 1}')
    assert message in refuses(command)
    assert [file.read_text() for file in theirs] == ['{"a": 1}'] * 2


@pytest.mark.parametrize(
    "command",
    [EVALUATE, f"{GENERATE} {{}}/a.png", f"fixed-points {CHECKPOINT}", f"export {CHECKPOINT} {{}}/out.safetensors"],
)
def test_a_checkpoint_that_would_run_code_is_refused(checkpoint, tmp_path, refuses, command):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    torch.save({"state_dict": {}, "callbacks": Command(tmp_path / "was_run")}, checkpoint)
    assert f"{checkpoint}: not loaded, because it holds posix.mkdir" in refuses(command)
    assert not (tmp_path / "was_run").exists()


def test_an_earlier_result_is_replaced(checkpoint, tmp_path):
    command = ["evaluate", str(checkpoint), "--draws", "1", "--metrics", "segmentation", "--out", str(tmp_path / "out")]
    for images in ("3", "2"):
        assert main([*command, "--images", images, "--json", str(tmp_path / "numbers.json")]) == 0
    for file in (tmp_path / "numbers.json", tmp_path / "out" / "test.json"):
        assert json.loads(file.read_text())["images"] == 2


@pytest.mark.parametrize("command", [EVALUATE, f"{GENERATE} {{}}/a.png"])
@pytest.mark.parametrize(
    "state, settings, message",
    [
        ({}, None, "holds no hyper_parameters"),
        ({}, {"_class_path": "torch.nn.Linear"}, "torch.nn.Linear, which has no slots"),
        ({}, {"_class_path": "nowhere.Model"}, "imported here; if it is your own, PYTHONPATH"),
        ({}, {"width": 3}, "not a checkpoint of SLATEModule"),
        ({"model.x": torch.zeros(1)}, made.SLATE_SIZES, "weights of another model"),
        ({"model.dictionary.weight": 3}, made.SLATE_SIZES, "weights of another model"),
        ({}, {"": 1, 2: 3}, "not a checkpoint of SLATEModule"),
        (None, {}, "holds no state_dict"),
    ],
)
def test_a_checkpoint_of_something_else(checkpoint, refuses, command, state, settings, message):
    content = {"state_dict": state, "hyper_parameters": settings}
    torch.save({name: value for name, value in content.items() if value is not None}, checkpoint)
    error = refuses(command)
    assert str(checkpoint) in error and message in error


@pytest.mark.parametrize("command", [EVALUATE, f"{GENERATE} {{}}/a.png"])
def test_weights_that_are_not_finite_or_have_changed_on_the_disk(checkpoint, refuses, command):
    content = torch.load(checkpoint, weights_only=True)
    weight = content["state_dict"]["model.dictionary.weight"]
    with checkpoint.open("r+b") as file:
        file.seek(checkpoint.read_bytes().index(weight.numpy().tobytes()))
        file.write(b"a few bytes")
    assert f"{checkpoint}: a damaged checkpoint (the checksum of" in refuses(command)
    weight[2, 3] = torch.nan
    torch.save(content, checkpoint)
    assert f"{checkpoint}: a diverged training: model.dictionary.weight is not finite" in refuses(command)


def test_a_torn_checkpoint_and_a_damaged_config_beside_it(checkpoint, refuses):
    for length in (5000, 500):
        checkpoint.write_bytes(checkpoint.read_bytes()[:length])
        assert f"{checkpoint}: not a checkpoint, or a damaged one" in refuses(EVALUATE)
    config = checkpoint.parents[1] / "config.yaml"
    config.write_text("model: {}")
    assert f"{config}: expected a section 'data'" in refuses(EVALUATE)


def test_a_checkpoint_that_lies_alone_needs_to_be_told_its_data(checkpoint, root, tmp_path, refuses):
    alone = tmp_path / "models" / "alone.ckpt"
    alone.parent.mkdir()
    shutil.copy(checkpoint, alone)
    (tmp_path / "config.yaml").write_text("of: something else")
    assert "give --data" in refuses("evaluate {}/models/alone.ckpt")
    options = ["--data", "data_modules.CLEVRMirror", "--data.root", str(root), "--data.image_size", "16"]
    assert main(["evaluate", str(alone), *options]) == 0
    assert (tmp_path / "models" / "alone.evaluation" / "test.json").exists()


@pytest.mark.parametrize(
    "kind, command, message",
    [
        ("SLATEModule", f"{EVALUATE} --metrics segmentation", "squares) has no masks"),
        ("SpatialBroadcastModule", f"{EVALUATE} --metrics cross_entropy", "the model predicts no tokens"),
        ("SpatialBroadcastModule", f"{EVALUATE} --masks bilinear", "SpatialBroadcast have the images' resolution"),
        ("PropertyModule", EVALUATE, "/run/checkpoints/last.ckpt: a PropertyPredictor makes no images"),
        ("PropertyModule", f"{GENERATE} {{}}/squares/images", "makes no images"),
        ("SpatialBroadcastModule", f"{GENERATE} {{}}/squares/images --temperature 1", "makes no tokens to sample"),
    ],
)
def test_what_a_model_or_its_data_cannot_give(tmp_path, refuses, kind, command, message):
    made.run(tmp_path / "run", made.images(tmp_path / "squares", masks=False), kind)
    assert message in refuses(command)


def test_an_empty_split(tmp_path, root, checkpoint, refuses):
    (tmp_path / "lists").mkdir()
    names = [f"CLEVR_new_{i:010d}.png" for i in range(4)]
    for split, listed in (("train", names[:2]), ("val", names[2:]), ("test", [])):
        (tmp_path / "lists" / f"{split}.txt").write_text("\n".join(listed))
    error = refuses(f"{EVALUATE} --data data_modules.ImageFolder --data.root {root}/images --data.lists {{}}/lists")
    assert "the split is empty" in error and "lists/test.txt" in error


def test_one_image_has_no_fid(checkpoint, weights, refuses, capsys):
    error = refuses(f"{EVALUATE} {' '.join(weights)} --images 1 --metrics fid")
    assert "needs at least 2 images, found 1" in error
    assert main(["evaluate", str(checkpoint), *weights, "--images", "1"]) == 0
    assert "FID is left out: it needs at least 2 images" in capsys.readouterr().err
