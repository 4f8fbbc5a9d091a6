"""Sampled scenes obey the generator's rules."""

import itertools
import json
import math

import numpy as np
import pytest

from data_modules.rendering import scenes
from data_modules.rendering.generate import read_scenes
from implicit_slate.errors import UserError


@pytest.fixture(scope="module")
def sampled():
    rng = np.random.default_rng(0)
    return [scenes.sample_scene(rng, 3 + i % 4, mirror=True) for i in range(200)]


def test_ranges(sampled):
    assert [len(scene["objects"]) for scene in sampled] == [3 + i % 4 for i in range(200)]
    for scene in sampled:
        assert np.abs(np.subtract(scene["camera"]["location"], scenes.CAMERA)).max() <= 0.5 + 1e-6
        for name, lamp in scenes.LAMPS.items():
            assert np.abs(np.subtract(scene["lamps"][name], lamp.location)).max() <= 1.0 + 1e-6
        assert -7 <= scene["mirror_x"] <= 0
        for thing in scene["objects"]:
            x, y, z = thing["3d_coords"]
            assert abs(x) <= 3 and abs(y) <= 3 and z == {"large": 0.7, "small": 0.55}[thing["size"]]
            assert 0 <= thing["rotation"] <= 360


def test_objects_keep_their_distances(sampled):
    for scene in sampled:
        for a, b in itertools.combinations(scene["objects"], 2):
            offset = np.subtract(b["3d_coords"], a["3d_coords"])[:2]
            assert np.hypot(*offset) - scenes.RADII[a["size"]] - scenes.RADII[b["size"]] >= 0.25 - 1e-5
            for direction in ("left", "right", "front", "behind"):
                assert not 1e-5 < offset @ scene["directions"][direction][:2] < 0.25 - 1e-5


def test_everything_is_drawn(sampled):
    things = [thing for scene in sampled for thing in scene["objects"]]
    for key, known in scenes.ATTRIBUTES.items():
        counts = {name: sum(thing[key] == name for thing in things) for name in known}
        expected = len(things) / len(known)
        assert sum(counts.values()) == len(things)
        # sizes may be uneven, because small objects are easier to place
        assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counts.values()), counts


def test_directions_and_euler_angles_are_blenders():
    """Compared with a scene file written by Blender for this camera."""
    camera = np.array([7.61882, -6.46702, 5.63903])
    directions = scenes.ground_directions(camera)
    assert directions["behind"] == pytest.approx([-0.7623825669, 0.6471264958, 0.0], abs=1e-6)
    assert directions["left"] == pytest.approx([-0.6471266150, -0.7623825073, 0.0], abs=1e-6)
    assert scenes._camera_euler(camera) == pytest.approx([1.05706, 0.0, 0.866987], abs=1e-5)


@pytest.mark.parametrize(
    ("point", "seen"),
    [
        ([2.856748, 0.227399, 0.55], [94, 72, 9.435717]),
        ([-1.322195, -1.250317, 0.55], [42, 57, 11.377581]),
    ],
)
def test_projection_is_blenders(point, seen):
    scene = {"camera": {"location": [7.61882, -6.46702, 5.63903]}}
    assert scenes.project(scene, point, 128) == pytest.approx(seen, abs=1e-5)


def test_visible_pixels_scale_with_the_area():
    assert [scenes.min_pixels(size) for size in (128, 64, 32, 16)] == [100, 25, 7, 2]


@pytest.mark.parametrize(
    ("where", "key", "value", "message"),
    [
        ("objects", "rotation", "left", r"objects\[0\]: rotation: expected a number up to 1,000,000, found 'left'"),
        ("camera", "location", None, "camera: location: expected three numbers, found None"),
        ("lamps", "Lamp_Key", [1, 2], r"lamps: Lamp_Key: expected three numbers, found \[1, 2\]"),
        (None, "mirror_x", "left", "mirror_x: expected a number up to 1,000,000, found 'left'"),
        (None, "mirror_x", 1e200, r"mirror_x: expected a number up to 1,000,000, found 1e\+200"),
        (None, "image_index", "7", "image_index: expected a whole number, found '7'"),
        ("camera", "location", [0, 0, 5], r"camera: location: expected a place beside the z axis, .*found \[0, 0, 5\]"),
        ("camera", "location", [0, 0, 0], r"camera: location: expected a place beside the z axis, .*found \[0, 0, 0\]"),
        ("lamps", "Lamp_Key", [0, 0, 5], r"lamps: Lamp_Key: expected a place beside the z axis, .*found \[0, 0, 5\]"),
        ("objects", "3d_coords", [7, -7, 5], r"objects\[0\]: 3d_coords: expected a place before or behind the camera"),
        ("directions", "behind", [0, 0, 0], "directions: behind: expected a horizontal vector of length 1; found"),
        ("directions", "behind", [5, -5, 0], "directions: behind: expected a horizontal vector of length 1; found"),
        (None, "camera", {}, "camera: expected the key 'location', found none"),
    ],
)
def test_what_cannot_be_rendered_is_named(tmp_path, where, key, value, message):
    """Everything but the objects' attributes; for those see `tests.data_modules.test_scene_properties`."""
    scene = scenes.sample_scene(np.random.default_rng(0), 3, mirror=True)
    scene["camera"]["location"] = [7, -7, 5]
    place = scene if where is None else scene["objects"][0] if where == "objects" else scene[where]
    place[key] = value
    (tmp_path / "some.json").write_text(json.dumps(scene))
    with pytest.raises(UserError, match=f"some.json: {message}"):
        read_scenes(tmp_path)


def test_a_scene_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "some.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="some.json: expected a scene in JSON with the key 'objects' .RecursionError: "):
        scenes.read_scene(tmp_path / "some.json")


def test_a_scene_without_a_split_is_new(tmp_path):
    scene = scenes.sample_scene(np.random.default_rng(0), 3, mirror=True)
    named = scenes.name_scene(scene, 7, 64)
    del scene["split"]
    (tmp_path / "some.json").write_text(json.dumps(scene))
    (tmp_path / "._some.json").write_text("attributes")  # as macOS leaves
    assert scenes.name_scene(read_scenes(tmp_path)["some"], 7, 64) == named
