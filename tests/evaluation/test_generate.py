"""`implicit-slate generate`: image files through the slots, as files."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules import CLEVRMirror
from implicit_slate.cli import main
from implicit_slate.evaluation.module import draw_slots
from implicit_slate.models import SLATE
from implicit_slate.training.trained import load_trained
from tests.evaluation import made


@pytest.fixture
def photos(tmp_path):
    """Three images of other sizes and kinds than the model's."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 64, 3)), ("b.jpg", (33, 20, 3)), ("c.png", (16, 16))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(folder / name)
    return folder


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_reconstructions_masks_and_panels(checkpoint, photos, tmp_path, capsys):
    assert main(["generate", str(checkpoint), str(photos), "--out", str(tmp_path / "out"), "--batch-size", "2"]) == 0
    assert "3 reconstructions, the masks of 3 slots" in capsys.readouterr().out
    for stem in "abc":
        assert pixels(tmp_path / "out" / "reconstructions" / f"{stem}.png").shape == (16, 16, 3)
        masks = [pixels(tmp_path / "out" / "masks" / f"{stem}_slot{k:02d}.png") for k in (1, 2, 3)]
        assert masks[0].shape == (16, 16) and abs(sum(mask.astype(int) for mask in masks) - 255).max() <= 2
    assert Image.open(tmp_path / "out" / "panels.png").height > 3 * 96


def test_an_image_of_the_data_set_becomes_what_the_model_makes_of_it(checkpoint, root, tmp_path):
    files = sorted((root / "images").glob("*.png"))[-made.NUM_TEST :]
    assert main(["generate", str(checkpoint), *map(str, files), "--out", str(tmp_path / "out")]) == 0
    data, model = CLEVRMirror(root, 16), load_trained(checkpoint).model
    data.setup()
    numbers = range(made.NUM_TEST)
    views = model.views(data.splits.test[list(numbers)]["image"], draw_slots(model, 0, 0, numbers))
    for file, expected in zip(files, (views.reconstruction * 255).round().byte().permute(0, 2, 3, 1)):
        found = pixels(tmp_path / "out" / "reconstructions" / file.name)
        assert abs(found.astype(int) - expected.numpy().astype(int)).max() <= 1


def test_samples_are_a_function_of_the_seed(checkpoint, photos, tmp_path):
    def sample(name, *options):
        out = tmp_path / name
        assert main(["generate", str(checkpoint), str(photos / "a.png"), "--out", str(out), *options]) == 0
        return pixels(out / "reconstructions" / "a.png")

    hot = ["--temperature", "5", "--top-k", "10", "--top-p", "0.99"]
    first = sample("1", *hot)
    assert (sample("2", *hot) == first).all() and (sample("3", *hot, "--seed", "1") != first).any()
    assert (sample("4") != first).any()


@pytest.mark.parametrize(
    "options, message",
    [
        (["/nowhere.png"], "/nowhere.png: expected an image file there"),
        (["{photos}", "{photos}/a.png"], "a.png: has the name of"),
        (["{empty}"], "expected images"),
        (["{photos}/text.png"], "text.png: expected an image file that can be decoded"),
        (["{photos}/a.png", "--temperature", "-1"], "temperature=-1.0"),
        (["{photos}/a.png", "--top-k", "3"], "need a temperature above 0"),
        (["{photos}/a.png", "--temperature", "1", "--top-k", "13"], "vocab_size=12"),
        (["{photos}/a.png", "--batch-size", "0"], "--batch-size: expected a positive number"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(checkpoint, photos, tmp_path, capsys, options, message):
    (tmp_path / "empty").mkdir()
    (photos / "text.png").write_text("no image") if "text" in options[0] else None
    given = [option.format(photos=photos, empty=tmp_path / "empty") for option in options]
    assert main(["generate", str(checkpoint), *given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_nothing_is_overwritten(checkpoint, photos, tmp_path, capsys):
    command = ["generate", str(checkpoint), str(photos), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    before = (tmp_path / "out" / "reconstructions" / "a.png").read_bytes()
    assert main([*command, "--seed", "1"]) == 2
    assert "exists already; it is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "out" / "reconstructions" / "a.png").read_bytes() == before


def test_what_is_stopped_leaves_nothing(checkpoint, photos, tmp_path, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(SLATE, "ceiling", stopped)  # after the first files are written
    assert main(["generate", str(checkpoint), str(photos), "--out", str(tmp_path / "out")]) == 130
    assert "stopped; nothing is written" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


def test_a_model_that_makes_no_images_is_named(tmp_path, root, photos, capsys):
    checkpoint = made.run(tmp_path / "run", root, "PropertyModule")
    assert main(["generate", str(checkpoint), str(photos), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(checkpoint) in error and "makes no images" in error and not (tmp_path / "out").exists()


def test_a_model_without_tokens_cannot_sample_but_generates(tmp_path, root, photos, capsys):
    checkpoint = made.run(tmp_path / "run", root, "SpatialBroadcastModule")
    command = ["generate", str(checkpoint), str(photos), "--out", str(tmp_path / "out")]
    assert main([*command, "--temperature", "1"]) == 2
    assert "makes no tokens to sample" in capsys.readouterr().err
    assert main(command) == 0


def test_a_checkpoint_of_something_else(checkpoint, photos, tmp_path, capsys):
    torch.save({"model": {}}, checkpoint)
    assert main(["generate", str(checkpoint), str(photos), "--out", str(tmp_path / "out")]) == 2
    assert f"{checkpoint}: not a checkpoint of ours" in capsys.readouterr().err and not (tmp_path / "out").exists()
