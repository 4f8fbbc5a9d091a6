"""`implicit-slate generate`: image files, reconstructed through the slots and written as files."""

import signal

import numpy as np
import pytest
from PIL import Image

from data_modules import CLEVRMirror
from implicit_slate.cli import main
from implicit_slate.evaluation.module import draw_slots
from implicit_slate.models import SLATE
from implicit_slate.training.checkpoints import load_trained
from tests.evaluation import made


@pytest.fixture
def photos(tmp_path):
    """Three images whose sizes and types differ from the model's."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 64, 3)), ("b.jpg", (33, 20, 3)), ("c.png", (16, 16))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(folder / name)
    (folder / "._a.png").write_text("attributes")  # as macOS leaves
    return folder


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_reconstructions_masks_and_panels_which_are_not_overwritten(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["generate", str(checkpoint), str(photos), "--out", str(out), "--batch-size", "2"]
    assert main(command) == 0
    assert "reconstructions/ (3), masks/ (3 slots)" in capsys.readouterr().out
    for stem in "abc":
        assert pixels(out / "reconstructions" / f"{stem}.png").shape == (16, 16, 3)
        masks = [pixels(out / "masks" / f"{stem}_slot{k:02d}.png") for k in (1, 2, 3)]
        assert masks[0].shape == (16, 16) and abs(sum(mask.astype(int) for mask in masks) - 255).max() <= 2
    assert Image.open(out / "panels.png").height > 3 * 96

    before = (out / "reconstructions" / "a.png").read_bytes()
    assert main([*command, "--seed", "1"]) == 2
    assert "exists already; it is not overwritten" in capsys.readouterr().err
    assert (out / "reconstructions" / "a.png").read_bytes() == before


@pytest.mark.parametrize("kind", ["SLATEModule", "SpatialBroadcastModule"])
def test_an_image_of_the_data_set_becomes_what_the_model_makes_of_it(kind, root, tmp_path):
    checkpoint = made.run(tmp_path / "run", root, kind)
    files = sorted((root / "images").glob("*.png"))[-made.NUM_TEST :]
    assert main(["generate", str(checkpoint), *map(str, files), "--out", str(tmp_path / "out")]) == 0
    data, model = CLEVRMirror(root, 16), load_trained(checkpoint).model
    data.setup()
    numbers = range(made.NUM_TEST)
    views = model.views(data.splits.test[list(numbers)]["image"], draw_slots(model, 0, 0, numbers))
    for file, expected in zip(files, (views.reconstruction * 255).round().byte().permute(0, 2, 3, 1)):
        found = pixels(tmp_path / "out" / "reconstructions" / file.name)
        assert abs(found.astype(int) - expected.numpy().astype(int)).max() <= 1


def test_an_exported_model_makes_the_same_and_a_name_is_one_that_comes_with_the_project(
    checkpoint, photos, tmp_path, capsys
):
    exported = tmp_path / "model.safetensors"
    assert main(["export", str(checkpoint), str(exported)]) == 0
    for name, model in (("a", checkpoint), ("b", exported), ("c", "sprites-implicit")):
        assert main(["generate", str(model), str(photos / "a.png"), "--out", str(tmp_path / name)]) == 0
    first, again, shipped = (pixels(tmp_path / name / "reconstructions" / "a.png") for name in "abc")
    assert (first == again).all() and shipped.shape == (32, 32, 3)
    assert main(["generate", "sprites-dvae", str(photos / "a.png"), "--out", str(tmp_path / "d")]) == 2
    assert "sprites-dvae: a DiscreteVAE has no slots" in capsys.readouterr().err


def test_samples_are_a_function_of_the_seed(checkpoint, photos, tmp_path):
    def sample(name, *options):
        out = tmp_path / name
        assert main(["generate", str(checkpoint), str(photos / "a.png"), "--out", str(out), *options]) == 0
        return pixels(out / "reconstructions" / "a.png")

    hot = ["--temperature", "5", "--top-k", "10", "--top-p", "0.99"]
    first = sample("1", *hot)
    assert (sample("2", *hot) == first).all() and (sample("3", *hot, "--seed", "1") != first).any()
    assert (sample("4") != first).any()


def test_what_is_stopped_leaves_nothing(checkpoint, photos, tmp_path, monkeypatch, capsys):
    """It is stopped by SIGTERM, like a batch job."""

    def stopped(*_):
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)

    monkeypatch.setattr(SLATE, "ceiling", stopped)  # after the first files are written
    assert main(["generate", str(checkpoint), str(photos), "--out", str(tmp_path / "out")]) == 130
    assert "stopped: generate" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())
    for number, handler in zip((signal.SIGTERM, signal.SIGHUP), before):
        signal.signal(number, handler)
