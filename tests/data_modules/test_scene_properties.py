"""Object properties from scene files, and their place in batches."""

import json
import re
from functools import partial

import numpy as np
import pytest
import torch

from data_modules import CLEVRMirror, MirrorScenes
from data_modules.rendering.scenes import ATTRIBUTES, MAX_OBJECTS, read_scene
from data_modules.scene_properties import WIDTH, scene_properties
from implicit_slate.errors import UserError
from implicit_slate.models.property_predictor import ATTRIBUTE_SIZES, NUM_PROPERTIES
from tests.data_modules.made import THING, clevr_mirror, loaded, scenes

ROW = [0, 0.5, 0.75, 0, 1, 0, 0, 1, 1, 0, *[0] * 7, 1, 1]


@pytest.fixture
def folder(tmp_path):
    return scenes(clevr_mirror(tmp_path), [2] * 10 + [1] * 10)


module = partial(loaded, CLEVRMirror, image_size=16, batch_size=4, properties=True)


def test_a_row_is_coordinates_attributes_and_a_one():
    rows = scene_properties({"objects": [THING, THING | {"shape": "cube", "color": "gray"}]})
    assert rows.dtype == np.float32 and rows[0].tolist() == ROW
    assert rows[1, 3:6].tolist() == [1, 0, 0] and rows[1, 10:18].argmax() == 0


def test_data_and_model_agree_on_the_row():
    assert tuple(map(len, ATTRIBUTES.values())) == ATTRIBUTE_SIZES and WIDTH == NUM_PROPERTIES == 19


def test_the_embedded_scenes_carry_their_properties():
    plain, data = MirrorScenes(image_size=16), MirrorScenes(image_size=16, properties=True)
    plain.setup(), data.setup()
    batch = data.probe(50)
    rows = batch["properties"]
    assert rows.shape == (50, MAX_OBJECTS, 19) and rows.dtype == torch.float32
    assert torch.equal(rows[..., -1].sum(1), batch["mask"].flatten(1).max(1).values.float())  # as many as in the mask
    real = rows[rows[..., -1] == 1]
    assert real[:, :3].min() >= 0 and real[:, :3].max() <= 1 and 0.4 < real[:, :2].mean() < 0.6
    assert all((part.sum(1) == 1).all() for part in real[:, 3:-1].split(ATTRIBUTE_SIZES, 1))
    assert (rows[rows[..., -1] == 0] == 0).all()
    assert set(plain.probe(1)) == {"image", "index", "mask"} and torch.equal(plain.probe(50)["image"], batch["image"])


def test_an_image_keeps_its_scene_in_every_split_and_order(folder):
    data = module(folder)
    first = [(batch["image"].mean((1, 2, 3)) * 25.5).round() for batch in data.val_dataloader()]
    assert torch.cat(first).tolist() == [14, 15, 16]
    for split, start in (("train", 0), ("val", 14), ("test", 17)):
        part = getattr(data.splits, split)
        indices = list(reversed(range(len(part))))
        rows = part[indices]["properties"]
        assert rows.shape == (len(part), 2, 19)
        numbers = torch.tensor([float(start + i) for i in indices])
        last = (rows[..., -1].sum(1) - 1).long()
        torch.testing.assert_close(rows[torch.arange(len(part)), last, 0], (numbers / 10 + 3) / 6)


@pytest.mark.parametrize("options", [{}, {"on_device": True}, {"num_workers": 1}])
def test_loaders_give_them(folder, options):
    batch = next(iter(module(folder, **options).train_dataloader()))
    assert batch["properties"].shape == (4, 2, 19) and batch["mask"].shape == (4, 16, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected a scene in JSON with the key 'objects' .found nothing"),
        *(
            (
                json.dumps({"objects": [THING, {name: THING[name] for name in THING if name != key}]}),
                re.escape(f"objects[1]: expected the key '{key}', found none"),
            )
            for key in (*ATTRIBUTES, "3d_coords")
        ),
        ("{", "expected a scene in JSON with the key 'objects'"),
        ("[]", "expected a scene in JSON with the key 'objects'"),
        ('{"objects": []}', "objects: expected a list of at least one object"),
        ('{"objects": [1]}', r"objects\[0\]: expected an object with its attributes, found 1"),
        (json.dumps({"objects": [THING | {"shape": "cone"}]}), "shape: expected one of cube, sphere, cylinder"),
        (json.dumps({"objects": [THING | {"color": ["red"]}]}), "color: expected one of gray, red"),
        (json.dumps({"objects": [THING | {"3d_coords": [0, 1]}]}), "3d_coords: expected three numbers"),
        (json.dumps({"objects": [THING | {"3d_coords": [0, 1, float("nan")]}]}), "3d_coords: expected a number"),
    ],
)
def test_a_bad_scene_is_one_line(tmp_path, text, message):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_scene(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
