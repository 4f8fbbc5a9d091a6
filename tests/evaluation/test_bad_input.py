"""`implicit-slate evaluate` answers bad input with one line that names it, and leaves nothing behind."""

import shutil
from pathlib import Path

import pytest
import torch

from implicit_slate.cli import main
from tests.evaluation import made


def nothing_left(checkpoint: Path) -> bool:
    return not (checkpoint.parents[1] / "evaluation").exists()


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
    ],
)
def test_bad_usage_is_one_line_that_names_it(checkpoint, refuses, options, message):
    assert message in refuses("evaluate", checkpoint, *options)
    assert nothing_left(checkpoint)


@pytest.mark.parametrize(
    "state, settings, message",
    [
        ({}, None, "holds no hyper_parameters"),
        ({}, {"_class_path": "torch.nn.Linear"}, "torch.nn.Linear, which has no slots"),
        ({}, {"_class_path": "nowhere.Model"}, "nowhere.Model, which cannot be imported"),
        ({}, {"width": 3}, "not a checkpoint of SLATEModule"),
        ({"model.x": torch.zeros(1)}, made.SLATE_SIZES, "not a checkpoint of SLATEModule"),
        (None, {}, "holds no state_dict"),
    ],
)
def test_a_checkpoint_of_something_else(checkpoint, refuses, state, settings, message):
    content = {"state_dict": state, "hyper_parameters": settings}
    torch.save({name: value for name, value in content.items() if value is not None}, checkpoint)
    error = refuses("evaluate", checkpoint)
    assert str(checkpoint) in error and message in error and nothing_left(checkpoint)


def test_no_checkpoint_a_torn_one_and_an_empty_folder(checkpoint, tmp_path, refuses):
    assert "no such file or folder" in refuses("evaluate", tmp_path / "x.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    assert f"{checkpoint}: not a checkpoint, or a damaged one" in refuses("evaluate", checkpoint)
    assert "not the folder of a grid" in refuses("evaluate", tmp_path)


def test_a_checkpoint_that_lies_alone_needs_to_be_told_its_data(checkpoint, root, tmp_path, refuses):
    alone = tmp_path / "alone.ckpt"
    shutil.copy(checkpoint, alone)
    assert "give --data" in refuses("evaluate", alone)
    options = ["--data", "data_modules.CLEVRMirror", "--data.root", str(root), "--data.image_size", "16"]
    assert main(["evaluate", str(alone), *options]) == 0
    assert (tmp_path / "alone.evaluation" / "test.json").exists()


def test_masks_missing_where_ari_is_asked_for(tmp_path, refuses):
    root = made.images(tmp_path / "squares", masks=False)
    checkpoint = made.run(tmp_path / "run", root)
    error = refuses("evaluate", checkpoint, "--metrics", "segmentation")
    assert "segmentation" in error and str(root) in error and "no masks" in error and nothing_left(checkpoint)


def test_cross_entropy_of_a_model_without_tokens(tmp_path, root, refuses):
    checkpoint = made.run(tmp_path / "run", root, "SpatialBroadcastModule")
    assert "predicts no tokens" in refuses("evaluate", checkpoint, "--metrics", "cross_entropy")


def test_a_model_that_makes_no_images(tmp_path, root, refuses):
    checkpoint = made.run(tmp_path / "run", root, "PropertyModule")
    error = refuses("evaluate", checkpoint)
    assert str(checkpoint) in error and "makes no images" in error and nothing_left(checkpoint)


def test_an_empty_split(tmp_path, root, refuses):
    lists = tmp_path / "lists"
    lists.mkdir()
    names = [f"CLEVR_new_{i:010d}.png" for i in range(4)]
    for split, listed in (("train", names[:2]), ("val", names[2:]), ("test", [])):
        (lists / f"{split}.txt").write_text("\n".join(listed))
    checkpoint = made.run(tmp_path / "run", root)
    error = refuses("evaluate", checkpoint, "--data", "data_modules.ImageFolder", "--data.root", root / "images",
                    "--data.lists", lists)  # fmt: skip
    assert "the split is empty" in error and str(lists / "test.txt") in error and nothing_left(checkpoint)


def test_one_image_has_no_fid(checkpoint, weights, refuses, capsys):
    error = refuses("evaluate", checkpoint, *weights, "--images", "1", "--metrics", "fid")
    assert "needs at least 2 images, found 1" in error and nothing_left(checkpoint)
    assert main(["evaluate", str(checkpoint), *weights, "--images", "1"]) == 0
    assert "FID is left out: it needs at least 2 images" in capsys.readouterr().err


def test_weights_with_a_wrong_checksum(checkpoint, tmp_path, refuses):
    wrong = tmp_path / "weights.pth"
    torch.save({"conv.weight": torch.zeros(3)}, wrong)
    error = refuses("evaluate", checkpoint, "--fid-weights", wrong)
    assert str(wrong) in error and "checksum" in error and nothing_left(checkpoint)


def test_a_damaged_config_beside_the_checkpoint(checkpoint, refuses):
    config = checkpoint.parents[1] / "config.yaml"
    config.write_text("model: {}")
    assert f"{config}: expected a section 'data'" in refuses("evaluate", checkpoint)
