"""`evaluate` and `generate` answer bad input with one line that names it, and leave nothing behind."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from implicit_slate.cli import main
from tests.evaluation import made


@pytest.fixture
def refuses(capsys, tmp_path):
    """The line with which a call of a command is refused; `{}` in an argument stands for the test's folder."""

    def call(*argv: object) -> str:
        assert main([str(argument).replace("{}", str(tmp_path)) for argument in argv]) == 2
        *progress, error = capsys.readouterr().err.splitlines()
        assert error.startswith("implicit-slate: ") and all(line.startswith("decode ") for line in progress)
        assert not [path for path in tmp_path.rglob("*") if path.name in ("out", "evaluation")]
        return error

    return call


@pytest.mark.parametrize(
    "options, message",
    [
        (["--split", "tset"], "--split: invalid choice: 'tset'"),
        (["--metrics", "fdi"], "unknown metric 'fdi'; did you mean 'fid'?"),
        (["--metrics", ""], "unknown metric ''; known: reconstruction"),
        (["--draws", "0"], "--draws: expected a positive number"),
        (["--bathc-size", "3"], "unknown option --bathc-size"),
        (["--data.rot", "x"], "rot"),
        (["--data.root", "/nowhere"], "/nowhere/images"),
        (["--data", "/nowhere.yaml"], "/nowhere.yaml: No such file"),
        (["--data.image_size", "32"], "images of 16 pixels"),
        (["--metrics", "fid"], "data download fid-weights"),
        (["--fid-weights", "/nowhere"], "/nowhere: no such file or folder"),
        (["--fid-weights", "{}/run/config.yaml"], "/run/config.yaml: expected weights-inception"),
    ],
)
def test_bad_options_of_evaluate(checkpoint, refuses, options, message):
    assert message in refuses("evaluate", checkpoint, *options)


@pytest.mark.parametrize("command", [["evaluate"], ["generate", "{}/a.png", "--out", "{}/out"]])
@pytest.mark.parametrize(
    "state, settings, message",
    [
        ({}, None, "holds no hyper_parameters"),
        ({}, {"_class_path": "torch.nn.Linear"}, "torch.nn.Linear, which has no slots"),
        ({}, {"_class_path": "nowhere.Model"}, "nowhere.Model, which cannot be imported"),
        ({}, {"width": 3}, "not a checkpoint of SLATEModule"),
        ({"model.x": torch.zeros(1)}, made.SLATE_SIZES, "weights of another model"),
        (None, {}, "holds no state_dict"),
    ],
)
def test_a_checkpoint_of_something_else(checkpoint, refuses, command, state, settings, message):
    content = {"state_dict": state, "hyper_parameters": settings}
    torch.save({name: value for name, value in content.items() if value is not None}, checkpoint)
    error = refuses(command[0], checkpoint, *command[1:])
    assert str(checkpoint) in error and message in error


def test_no_checkpoint_a_torn_one_and_an_empty_folder(checkpoint, tmp_path, refuses):
    assert "no such file or folder" in refuses("evaluate", tmp_path / "x.ckpt")
    assert "not the folder of a grid" in refuses("evaluate", tmp_path)
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    assert f"{checkpoint}: not a checkpoint, or a damaged one" in refuses("evaluate", checkpoint)


def test_a_checkpoint_that_lies_alone_needs_to_be_told_its_data(checkpoint, root, tmp_path, refuses):
    alone = tmp_path / "alone.ckpt"
    shutil.copy(checkpoint, alone)
    assert "give --data" in refuses("evaluate", alone)
    options = ["--data", "data_modules.CLEVRMirror", "--data.root", str(root), "--data.image_size", "16"]
    assert main(["evaluate", str(alone), *options]) == 0
    assert (tmp_path / "alone.evaluation" / "test.json").exists()


@pytest.mark.parametrize(
    "kind, argv, message",
    [
        ("SLATEModule", ["evaluate", "--metrics", "segmentation"], "squares) has no masks"),
        ("SpatialBroadcastModule", ["evaluate", "--metrics", "cross_entropy"], "the model predicts no tokens"),
        ("PropertyModule", ["evaluate"], "/run/checkpoints/last.ckpt: a PropertyPredictor makes no images"),
        ("PropertyModule", ["generate", "{}/squares/images", "--out", "{}/out"], "makes no images"),
        ("SpatialBroadcastModule", ["generate", "{}/squares/images", "--out", "{}/out", "--temperature", "1"],
         "makes no tokens to sample"),
    ],
)  # fmt: skip
def test_what_a_model_or_its_data_cannot_give(tmp_path, refuses, kind, argv, message):
    checkpoint = made.run(tmp_path / "run", made.images(tmp_path / "squares", masks=False), kind)
    assert message in refuses(argv[0], checkpoint, *argv[1:])


def test_an_empty_split(tmp_path, root, refuses):
    (tmp_path / "lists").mkdir()
    names = [f"CLEVR_new_{i:010d}.png" for i in range(4)]
    for split, listed in (("train", names[:2]), ("val", names[2:]), ("test", [])):
        (tmp_path / "lists" / f"{split}.txt").write_text("\n".join(listed))
    checkpoint = made.run(tmp_path / "run", root)
    error = refuses("evaluate", checkpoint, "--data", "data_modules.ImageFolder", "--data.root", root / "images",
                    "--data.lists", "{}/lists")  # fmt: skip
    assert "the split is empty" in error and "lists/test.txt" in error


def test_one_image_has_no_fid(checkpoint, weights, refuses, capsys):
    error = refuses("evaluate", checkpoint, *weights, "--images", "1", "--metrics", "fid")
    assert "needs at least 2 images, found 1" in error
    assert main(["evaluate", str(checkpoint), *weights, "--images", "1"]) == 0
    assert "FID is left out: it needs at least 2 images" in capsys.readouterr().err


def test_a_damaged_config_beside_the_checkpoint(checkpoint, refuses):
    config = checkpoint.parents[1] / "config.yaml"
    config.write_text("model: {}")
    assert f"{config}: expected a section 'data'" in refuses("evaluate", checkpoint)


@pytest.mark.parametrize(
    "options, message",
    [
        (["/nowhere.png"], "/nowhere.png: expected an image file there"),
        (["{}", "{}/a.png"], "a.png: has the name of"),
        (["{}/run"], "expected images"),
        (["{}/run/config.yaml"], "config.yaml: expected an image file that can be decoded"),
        (["{}/a.png", "--temperature", "-1"], "temperature=-1.0"),
        (["{}/a.png", "--top-k", "3"], "need a temperature above 0"),
        (["{}/a.png", "--temperature", "1", "--top-k", "13"], "vocab_size=12"),
        (["{}/a.png", "--batch-size", "0"], "--batch-size: expected a positive number"),
    ],
)
def test_bad_options_of_generate(checkpoint, tmp_path, refuses, options, message):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    assert message in refuses("generate", checkpoint, *options, "--out", "{}/out")
