"""Renders the image and the mask of a scene description."""

import math

import numpy as np

from data_modules.rendering import mitsuba_scene
from data_modules.rendering.scenes import MAX_OBJECTS, MIN_OBJECTS, Scene, min_pixels, sample_scene

PASSES = 6  # independent renderings of an image; comparing them separates fireflies from light
FIREFLY = 1.5  # by this factor a pass may exceed the second darkest value of its pixel
MASK_SUPERSAMPLING = 4


def sample_visible_scene(mi, rng: np.random.Generator, size: int, mirror: bool) -> tuple[Scene, np.ndarray]:
    """A scene in which every object, and the mirror, is visible in enough pixels; and its mask, uint8 (size, size).

    The number of objects is drawn once, and rejected scenes are drawn again with the same number, so that crowded
    scenes are not rarer.
    """
    num_objects = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    wanted = np.array([*range(1, num_objects + 1), *([-1] if mirror else [])])
    while True:
        scene = sample_scene(rng, num_objects, mirror)
        labels = render_labels(mi, scene, size)
        if all((labels == label).sum() >= min_pixels(size) for label in wanted):
            return scene, to_mask(labels)


def render_labels(mi, scene: Scene, size: int) -> np.ndarray:
    """What is directly visible in each pixel, int (size, size): 0 = background, i = the i-th object, -1 = the mirror.

    Each pixel gets the most frequent label of its 4 × 4 subpixels.
    """
    fine = size * MASK_SUPERSAMPLING
    built, labels = mitsuba_scene.build(mi, scene, fine, lit=False)
    integrator = mi.load_dict({"type": "aov", "aovs": "shape:shape_index"})
    # Mitsuba writes the index plus one, and 0 where a ray leaves the scene.
    index = np.array(mi.render(built, integrator=integrator, spp=1, seed=0))[..., -1].round().astype(int)
    seen = np.concatenate([[0], labels])[index].reshape(size, MASK_SUPERSAMPLING, size, MASK_SUPERSAMPLING)
    values = np.unique(seen)
    votes = np.stack([(seen == value).sum(axis=(1, 3)) for value in values])
    return values[votes.argmax(axis=0)]


def to_mask(labels: np.ndarray) -> np.ndarray:
    """The labels as stored: uint8, with the mirror as background."""
    return labels.clip(0).astype(np.uint8)


def render_image(mi, scene: Scene, size: int, samples: int, seed: int) -> np.ndarray:
    """The image, uint8 (size, size, 3) in sRGB, with `samples` samples per pixel; see `possible_samples`.

    Reflections of lamps in glossy metal give fireflies: single samples of enormous brightness. So the image is rendered
    in independent passes; see `without_fireflies`.
    """
    built, _ = mitsuba_scene.build(mi, scene, size)
    integrator = mi.load_dict({"type": "volpath", "max_depth": mitsuba_scene.MAX_DEPTH, "hide_emitters": True})
    spp = samples // PASSES
    passes = np.stack(
        [
            np.array(mi.render(built, integrator=integrator, spp=spp, seed=(seed * PASSES + number) % 2**32))
            for number in range(PASSES)
        ]
    )
    return (to_srgb(without_fireflies(passes)) * 255).round().astype(np.uint8)


def possible_samples(wanted: int) -> int:
    """The smallest possible number of samples per pixel that is at least `wanted`.

    All passes have the same number of samples, which form a grid in the pixel.
    """
    in_a_pass = -(-wanted // PASSES)
    side = math.isqrt(in_a_pass)
    return PASSES * side * -(-in_a_pass // side)  # rounded as in Mitsuba's `multijitter`


def without_fireflies(passes: np.ndarray) -> np.ndarray:
    """The mean of passes (PASSES, H, W, 3), each clipped at FIREFLY times the second darkest pass at the same pixel.

    A firefly remains only if all passes but one have one: rare for single samples, certain in a lamp's highlight.
    """
    second_darkest = np.sort(passes, axis=0)[1]
    return np.minimum(passes, FIREFLY * second_darkest).mean(axis=0)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light, clipped to [0, 1], encoded with the sRGB transfer curve (IEC 61966-2-1)."""
    linear = linear.clip(0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
