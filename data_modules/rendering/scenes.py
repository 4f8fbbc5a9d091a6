"""Scene descriptions: objects and their placement in a CLEVR-Mirror scene, by the rules of its public generator.

A scene is the dictionary that is written as `scenes/<stem>.json`. It has the keys of CLEVR's own scene files (`split`,
`image_index`, `image_filename`, `objects`, `directions`), and those needed to render the same image again (`camera`,
`lamps`, `mirror_x`, which is None without a mirror). Lengths are in Blender units. `rotation` is as in the generator:
360 times a uniform number, which Blender then takes as *radians*.
"""

import json
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from implicit_slate.errors import UserError

Scene = dict[str, Any]

SHAPES = ("cube", "sphere", "cylinder")
MATERIALS = ("rubber", "metal")
RADII = {"large": 0.7, "small": 0.55}  # half-extents
COLORS = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}

ATTRIBUTES = {"shape": SHAPES, "size": tuple(RADII), "material": MATERIALS, "color": tuple(COLORS)}
"""The possible values of each attribute of an object."""

MIN_OBJECTS, MAX_OBJECTS = 3, 6
MIN_GAP = 0.25  # between the circles around two objects
MIN_MARGIN = 0.25  # along each of left, right, front and behind, so that these relations are unambiguous
MAX_TRIES = 50  # for one object, before the scene is started again
MIN_PIXELS = 100  # visible of every object and of the mirror, at 128 × 128
CAMERA, CAMERA_JITTER = (7.481, -6.508, 5.344), 0.5
LAMP_JITTER = 1.0
MIRROR_X = (-7.0, 0.0)
LARGEST = 10**6  # absolute value of numbers in a scene file; squares of far larger numbers overflow


class Lamp(NamedTuple):
    """A square area light that faces the origin."""

    location: tuple[float, float, float]
    side: float
    watts: float
    color: tuple[float, float, float]


LAMPS = {
    "Lamp_Key": Lamp((6.447, -2.905, 4.258), 0.5, 78.5, (1.0, 0.932, 0.817)),
    "Lamp_Fill": Lamp((-4.671, -4.014, 3.011), 0.5, 23.6, (0.762, 0.818, 1.0)),
    "Lamp_Back": Lamp((-1.169, 2.646, 5.816), 1.0, 39.3, (1.0, 1.0, 1.0)),
}


def min_pixels(size: int) -> int:
    """How many pixels of every object, and of the mirror, must be visible in a `size` × `size` image."""
    return math.ceil(MIN_PIXELS * (size / 128) ** 2)


def sample_scene(rng: np.random.Generator, num_objects: int, mirror: bool) -> Scene:
    """A random scene that obeys the rules of placement. `render.sample_visible_scene` also ensures visibility."""
    camera = np.array(CAMERA) + rng.uniform(-CAMERA_JITTER, CAMERA_JITTER, 3)
    directions = ground_directions(camera)
    lamps = {name: np.array(lamp.location) + rng.uniform(-LAMP_JITTER, LAMP_JITTER, 3) for name, lamp in LAMPS.items()}
    mirror_x = rng.uniform(*MIRROR_X) if mirror else None
    objects = None
    while objects is None:
        objects = _place_objects(rng, num_objects, directions)
    return {
        "split": "new",
        "objects": objects,
        "directions": {name: _rounded(direction) for name, direction in directions.items()},
        "camera": {"location": _rounded(camera), "rotation_euler": _rounded(_camera_euler(camera))},
        "lamps": {name: _rounded(location) for name, location in lamps.items()},
        "mirror_x": None if mirror_x is None else round(mirror_x, 6),
    }


def name_scene(scene: Scene, index: int, size: int) -> Scene:
    """`scene` with the values that depend on its index and on the image size: names and pixel coordinates."""
    objects = [{**thing, "pixel_coords": project(scene, thing["3d_coords"], size)} for thing in scene["objects"]]
    return {
        "split": scene.get("split", "new"),
        "image_index": index,
        "image_filename": f"CLEVR_new_{index:010d}.png",
        "objects": objects,
        **{key: scene[key] for key in ("directions", "camera", "lamps", "mirror_x")},
    }


def read_scene(path: Path | zipfile.Path) -> Scene:
    """The scene in a file, with the attributes and coordinates of its objects checked. For the rest, see
    `check_can_be_rendered`.

    Raises:
        UserError: a key is missing or has an unknown value; the message names the file and the key.
    """
    try:
        scene = json.loads(path.read_bytes())
        objects = scene["objects"]
    except (FileNotFoundError, KeyError, TypeError, ValueError, RecursionError) as error:
        found = "found nothing" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: expected a scene in JSON with the key 'objects' ({found})") from None
    except OSError as error:
        raise UserError(f"{path}: expected a scene file that can be read ({error.strerror or error})") from None
    if not isinstance(objects, list) or not objects:
        raise UserError(f"{path}: objects: expected a list of at least one object")
    for index, thing in enumerate(objects):
        where = f"{path}: objects[{index}]"
        if not isinstance(thing, dict):
            raise UserError(f"{where}: expected an object with its attributes, found {thing!r}")
        _check_point(thing, "3d_coords", where)
        for key, values in ATTRIBUTES.items():
            if _value(thing, key, where) not in values:
                raise UserError(f"{where}: {key}: expected one of {', '.join(values)}; found {thing[key]!r}")
    return scene


def check_can_be_rendered(scene: Scene, path: Path) -> None:
    """UserError, naming `path` and the key, if the scene lacks something that rendering needs."""
    if not isinstance(index := scene.get("image_index", 0), int):
        raise UserError(f"{path}: image_index: expected a whole number, found {index!r}")
    for key, inner in (("directions", ["behind"]), ("camera", ["location"]), ("lamps", LAMPS)):
        for name in inner:
            _check_point(_value(scene, key, path), name, f"{path}: {key}")
            length, wanted = math.hypot(*scene[key][name][:2]), None
            if key == "directions" and abs(length - 1) > 1e-3:  # the ground bends along this direction
                wanted = "expected a horizontal vector of length 1"
            elif length < 1e-6:  # Mitsuba computes with 7 digits
                wanted = "expected a place beside the z axis, as it looks at the origin with z up"
            if wanted:
                raise UserError(f"{path}: {key}: {name}: {wanted}; found {scene[key][name]!r}")
    for index, thing in enumerate(scene["objects"]):
        where = f"{path}: objects[{index}]"
        _check_number(_value(thing, "rotation", where), f"{where}: rotation")
        try:
            with np.errstate(all="ignore"):
                project(scene, thing["3d_coords"], 1)
        except (ValueError, OverflowError):  # its depth is 0
            wanted = "expected a place before or behind the camera"
            raise UserError(f"{where}: 3d_coords: {wanted}, found {thing['3d_coords']!r}") from None
    if (mirror_x := _value(scene, "mirror_x", path)) is not None:
        _check_number(mirror_x, f"{path}: mirror_x")


def ground_directions(camera: np.ndarray) -> dict[str, np.ndarray]:
    """Horizontal unit vectors (3,) for behind, front, left and right, as seen from `camera`, which faces the origin."""
    behind = -np.array([camera[0], camera[1], 0.0]) / np.hypot(camera[0], camera[1])
    left = np.array([-behind[1], behind[0], 0.0])
    return {"behind": behind, "front": -behind, "left": left, "right": -left}


def project(scene: Scene, point, size: int) -> list:
    """Where `point` (3,) appears in a `size` × `size` image: [x, y (downwards), depth along the optical axis]."""
    camera = np.array(scene["camera"]["location"])
    forward = -camera / np.linalg.norm(camera)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    ray = np.array(point) - camera
    depth = ray @ forward
    zoom = 35 / 32 / depth  # focal length / sensor width
    x, y = 0.5 + zoom * (ray @ right), 0.5 - zoom * (ray @ np.cross(right, forward))
    return [round(float(x * size)), round(float(y * size)), round(float(depth), 6)]


def _place_objects(rng: np.random.Generator, num_objects: int, directions: dict) -> list[dict] | None:
    """Objects that keep their distances, or None if no place was found for one of them."""
    objects: list[dict] = []
    for _ in range(num_objects):
        size = str(rng.choice(list(RADII)))
        for _ in range(MAX_TRIES):
            center = np.array([*rng.uniform(-3.0, 3.0, 2), RADII[size]])
            if all(_apart(center, size, older, directions) for older in objects):
                break
        else:
            return None
        objects.append(
            {
                "shape": str(rng.choice(SHAPES)),
                "size": size,
                "material": str(rng.choice(MATERIALS)),
                "color": str(rng.choice(list(COLORS))),
                "rotation": round(360.0 * rng.random(), 6),
                "3d_coords": _rounded(center),
            }
        )
    return objects


def _apart(center: np.ndarray, size: str, older: dict, directions: dict) -> bool:
    offset = center - np.array(older["3d_coords"])
    if np.hypot(offset[0], offset[1]) - RADII[size] - RADII[older["size"]] < MIN_GAP:
        return False
    return not any(0 < offset[:2] @ direction[:2] < MIN_MARGIN for direction in directions.values())


def _value(mapping: Any, key: str, where: object) -> Any:
    if not isinstance(mapping, dict) or key not in mapping:
        raise UserError(f"{where}: expected the key {key!r}, found none")
    return mapping[key]


def _check_point(mapping: Any, key: str, where: object) -> None:
    point = _value(mapping, key, where)
    if not isinstance(point, list) or len(point) != 3:
        raise UserError(f"{where}: {key}: expected three numbers, found {point!r}")
    for value in point:
        _check_number(value, f"{where}: {key}")


def _check_number(value: Any, where: object) -> None:
    if not isinstance(value, (int, float)) or not abs(value) <= LARGEST:  # also refuses NaN
        raise UserError(f"{where}: expected a number up to {LARGEST:,}, found {value!r}")


def _camera_euler(camera: np.ndarray) -> list[float]:
    """Blender's Euler angles of a camera at `camera` that faces the origin, z up."""
    return [math.atan2(np.hypot(camera[0], camera[1]), camera[2]), 0.0, math.atan2(camera[0], -camera[1])]


def _rounded(values) -> list[float]:
    return [round(float(value), 6) + 0.0 for value in values]  # + 0.0 turns -0.0 into 0.0
