"""The embedded data set matches its card, and loads as a data module."""

import io
import json
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules import MirrorScenes, mirror_scenes
from data_modules.rendering.scenes import check_can_be_rendered, min_pixels
from data_modules.rendering.tools import statistics
from implicit_slate.errors import UserError


@pytest.fixture(scope="module")
def archive():
    with zipfile.ZipFile(mirror_scenes.EMBEDDED) as opened:
        yield opened


@pytest.fixture(scope="module")
def scenes(archive):
    return {
        PurePosixPath(name).stem: json.loads(archive.read(name))
        for name in archive.namelist()
        if name.startswith("scenes/")
    }


@pytest.fixture(scope="module")
def data():
    module = MirrorScenes(image_size=32, batch_size=16)
    module.setup()
    return module


def test_size_on_disk():
    assert sum(path.stat().st_size for path in mirror_scenes.EMBEDDED.parent.iterdir()) <= 16_000_000


def test_at_least_2000_scenes_of_three_to_six_objects_before_a_mirror(scenes):
    assert len(scenes) >= 2000
    for name, scene in scenes.items():
        check_can_be_rendered(scene, name)
        assert scene["image_filename"] == f"{name}.png"
        assert 3 <= len(scene["objects"]) <= 6 and -7 <= scene["mirror_x"] <= 0
    assert {len(scene["objects"]) for scene in scenes.values()} == {3, 4, 5, 6}


def test_masks_show_every_object_of_the_scene(archive, scenes):
    for name, scene in scenes.items():
        mask = np.asarray(Image.open(io.BytesIO(archive.read(f"masks/{name}.png"))))
        pixels = np.bincount(mask.ravel())
        assert mask.shape == (64, 64) and len(pixels) == len(scene["objects"]) + 1
        assert pixels.min() >= min_pixels(64), name


def test_objects_are_where_the_scene_says(archive, scenes):
    """The centre of an object's mask is at the scene file's pixel coordinates, if nothing hides the object."""
    offsets = []
    for name in list(scenes)[:50]:
        mask = np.asarray(Image.open(io.BytesIO(archive.read(f"masks/{name}.png"))))
        for label, thing in enumerate(scenes[name]["objects"], start=1):
            y, x = np.argwhere(mask == label).mean(axis=0)
            offsets.append(np.hypot(x - thing["pixel_coords"][0], y - thing["pixel_coords"][1]))
    assert np.median(offsets) < 1.0


def test_the_card_states_what_is_there(scenes):
    assert statistics(list(scenes.values())) in (mirror_scenes.EMBEDDED.parent / "CARD.md").read_text()


def test_splits(data, scenes):
    n = len(scenes)
    assert [len(part) for part in data.splits] == [n * 70 // 100, n * 85 // 100 - n * 70 // 100, n - n * 85 // 100]


def test_batches(data):
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (16, 3, 32, 32) and batch["image"].dtype == torch.float32
    assert batch["mask"].shape == (16, 32, 32) and batch["mask"].dtype == torch.int64
    assert 0.1 < batch["image"].mean() < 0.6 and batch["image"].min() >= 0 and batch["image"].max() <= 1
    assert all(4 <= len(mask.unique()) <= 7 for mask in batch["mask"])


def test_shrinking_averages_areas(data):
    large = MirrorScenes(image_size=64)
    large.setup()
    pooled = torch.nn.functional.avg_pool2d(large.probe(8)["image"], 2)
    assert (data.probe(8)["image"] - pooled).abs().max() <= 0.5001 / 255 + 1e-6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda whole: None, "expected the embedded scenes there, found nothing"),
        (lambda whole: b"", "expected a zip file of scenes"),
        (lambda whole: whole[: len(whole) // 2], "expected a zip file of scenes"),
        (lambda whole: whole[:-100], "expected a zip file of scenes"),
        (lambda whole: whole[: len(whole) // 4] + bytes(100) + whole[len(whole) // 4 + 100 :], ""),
    ],
    ids=["missing", "empty", "half", "end", "middle"],
)
def test_a_file_with_a_fault(tmp_path, monkeypatch, spoil, message):
    file = tmp_path / "scenes.zip"
    if (content := spoil(mirror_scenes.EMBEDDED.read_bytes())) is not None:
        file.write_bytes(content)
    monkeypatch.setattr(mirror_scenes, "EMBEDDED", file)
    with pytest.raises(UserError, match=f"{file}.*{message}"):
        MirrorScenes().setup()
