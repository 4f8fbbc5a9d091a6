"""Images and masks of single scenes."""

import numpy as np
import pytest

from data_modules.rendering import mitsuba_scene, render, scenes
from data_modules.rendering.generate import DEFAULT_SAMPLES


@pytest.fixture(scope="module")
def mi():
    return mitsuba_scene.load_mitsuba()


@pytest.fixture(scope="module")
def visible(mi):
    rng = np.random.default_rng(0)
    return [render.sample_visible_scene(mi, rng, 32, mirror=True) for _ in range(6)]


def test_every_object_and_the_mirror_are_seen(mi, visible):
    for scene, mask in visible:
        labels = render.render_labels(mi, scene, 32)
        assert (labels.clip(0) == mask).all()
        for label in (*range(1, len(scene["objects"]) + 1), -1):
            assert (labels == label).sum() >= 7
    assert len({len(scene["objects"]) for scene, _ in visible}) > 1


def test_masks_are_where_objects_are_projected(mi):
    scene = scenes.sample_scene(np.random.default_rng(1), 3, mirror=False)
    labels = render.render_labels(mi, scene, 128)
    for number, thing in enumerate(scene["objects"], start=1):
        x, y, _ = scenes.project(scene, thing["3d_coords"], 128)
        others = [scenes.project(scene, other["3d_coords"], 128) for other in scene["objects"] if other is not thing]
        if all(np.hypot(x - a, y - b) > 15 for a, b, _ in others):  # nothing nearby could hide it
            assert labels[y, x] == number


def test_same_seed_same_picture(mi, visible):
    scene = visible[0][0]
    first, again, other = (render.render_image(mi, scene, 16, 6, seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_the_mirror_is_seen_in_the_picture(mi, visible):
    scene, _ = visible[0]
    labels = render.render_labels(mi, scene, 32)
    with_it, without = (render.render_image(mi, s, 32, 12, 0).astype(int) for s in (scene, {**scene, "mirror_x": None}))
    change = np.abs(with_it - without).mean(axis=2)
    assert change[labels == -1].mean() > 5 * change[labels == 0].mean()


def test_no_fireflies(mi, visible):
    """Even with few samples, no pixel of the ground is far brighter than its neighbours."""
    for scene, _ in visible[:2]:
        image = render.render_image(mi, scene, 32, 72, 0).astype(int).max(axis=2)
        labels = render.render_labels(mi, scene, 32)
        for y, x in np.argwhere(labels[1:-1, 1:-1] == 0) + 1:
            window = labels[y - 1 : y + 2, x - 1 : x + 2]
            if (window == 0).all():
                assert image[y, x] - np.median(image[y - 1 : y + 2, x - 1 : x + 2]) < 40


def test_possible_numbers_of_samples_are_those_that_mitsuba_does_not_round(mi):
    sampler = mi.load_dict({"type": "multijitter"})
    for wanted in range(1, 200):
        possible = render.possible_samples(wanted)
        sampler.set_sample_count(-(-wanted // render.PASSES))
        assert possible == render.PASSES * sampler.sample_count() == render.possible_samples(possible) >= wanted
    assert render.possible_samples(DEFAULT_SAMPLES) == DEFAULT_SAMPLES


def test_single_paths_of_enormous_brightness_are_cut_and_highlights_are_not():
    light = np.random.default_rng(0).uniform(0.9, 1.1, (render.PASSES, 8, 8, 3))
    spotted = light.copy()
    spotted[: render.PASSES - 2, 2, 3] = 1000.0
    cleaned = render.without_fireflies(spotted)
    assert np.abs(cleaned - light.mean(0))[np.arange(8) != 2].max() < 1e-12
    assert (cleaned[2, 3] < 1.6).all()
    spotted[:, 5, 5] *= 50  # in every pass
    assert render.without_fireflies(spotted)[5, 5] == pytest.approx(50 * light.mean(0)[5, 5])


def test_srgb_curve():
    assert render.to_srgb(np.array([-1.0, 0.0, 0.0031308, 0.5, 1.0, 7.0])) == pytest.approx(
        [0, 0, 0.04045, 0.735357, 1, 1], abs=1e-5
    )
