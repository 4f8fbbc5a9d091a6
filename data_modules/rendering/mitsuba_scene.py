"""Turns a CLEVR-Mirror scene description into a Mitsuba scene: geometry, materials, lamps and camera.

All numbers are from the public generator's scene and material files (Blender, Cycles), except those marked as fitted,
which were fitted to renderings of the same scenes in Cycles.
"""

import math
from functools import cache

import numpy as np

from data_modules.rendering import geometry
from data_modules.rendering.scenes import COLORS, LAMPS, RADII, Lamp, Scene
from implicit_slate.errors import UserError

FIELD_OF_VIEW = 2 * math.degrees(math.atan(16 / 35))  # a 35 mm lens on a 32 mm sensor
MIRROR_HALF_EXTENTS = (0.0625, 5.0, 3.125)
MIRROR_TURN = 90.0  # radians: the generator gives degrees where Blender expects radians, so it is really 116.6°
SUN_IRRADIANCE = 0.45
SUN_DIRECTION = [-0.41458602628015107, 0.19457824848851832, -0.8889644155017534]
"""Blender's lamps shine along -z; this one is turned by 0.236 rad about x, then 0.417 about y, then 0.097 about z."""
GROUND_ALBEDO = 0.8
GROUND_FRONT = 12.0  # fitted: how far the ground reaches to the camera's side, which is visible in the mirror
WALL_START, WALL_RADIUS, WALL_HEIGHT = 10.0, 15.0, 40.0  # fitted; the wall stands about 25 units behind the objects
MAX_DEPTH = 6
FILM = {"type": "hdrfilm", "rfilter": {"type": "box"}, "pixel_format": "rgb", "component_format": "float32"}

_MESHES = {"cube": geometry.rounded_cube(), "cylinder": geometry.rounded_cylinder()}


def load_mitsuba():
    """The mitsuba module, set to its scalar variant and one thread.

    Raises:
        UserError: Mitsuba is not installed.
    """
    try:
        import drjit
        import mitsuba
    except ImportError as error:
        raise UserError(f"rendering needs the extra 'render': make setup EXTRAS=render ({error})") from None
    mitsuba.set_variant("scalar_rgb")
    drjit.set_thread_count(1)  # because scenes are distributed over processes
    return mitsuba


def build(mi, scene: Scene, size: int, lit: bool = True):
    """The mitsuba.Scene of `scene` for `size` × `size` images, and labels of its shapes.

    Args:
        lit: with sun and lamps. Without them for label images, where the lamps' squares would appear as shapes.

    Returns:
        (mitsuba_scene, labels): labels[i] is k if the i-th shape of the scene is the k-th object (from 1), -1 if it is
        the mirror, else 0.
    """
    transform = mi.ScalarTransform4f
    away = np.array(scene["directions"]["behind"][:2])
    ground = geometry.ground(away, GROUND_FRONT, WALL_START, WALL_RADIUS, WALL_HEIGHT)
    white = {"type": "diffuse", "reflectance": _rgb([GROUND_ALBEDO] * 3)}
    description = {
        "type": "scene",
        "sensor": {
            "type": "perspective",
            "fov": FIELD_OF_VIEW,
            "fov_axis": "x",
            "to_world": transform().look_at(origin=scene["camera"]["location"], target=[0, 0, 0], up=[0, 0, 1]),
            "film": FILM | {"width": size, "height": size},
            "sampler": {"type": "multijitter"},
        },
        "ground": _mesh(mi, "ground", ground, mi.load_dict({"type": "twosided", "bsdf": white})),
    }
    if lit:
        description["sun"] = {"type": "directional", "direction": SUN_DIRECTION, "irradiance": SUN_IRRADIANCE}
        for name, lamp in LAMPS.items():
            description[name] = _lamp(transform, lamp, scene["lamps"][name])
    labels = {}
    for number, thing in enumerate(scene["objects"], start=1):
        labels[f"object{number}"] = number
        description[f"object{number}"] = _object(mi, f"object{number}", thing)
    if scene["mirror_x"] is not None:
        labels["mirror"] = -1
        description["mirror"] = {
            "type": "cube",
            "to_world": transform()
            .translate([scene["mirror_x"], 5.0, 2.5])
            .rotate([0, 0, 1], math.degrees(MIRROR_TURN))
            .scale(list(MIRROR_HALF_EXTENTS)),
            "bsdf": _material("metal", (0.5, 0.5, 0.5)),
        }
    # optimize=False: otherwise Mitsuba merges meshes, and a shape's index no longer identifies the object.
    built = mi.load_dict(description, optimize=False)
    return built, np.array([labels.get(shape.id(), 0) for shape in built.shapes()])


def _object(mi, name: str, thing: dict):
    radius, center = RADII[thing["size"]], np.array(thing["3d_coords"])
    color = tuple(channel / 255 for channel in COLORS[thing["color"]])  # used as linear values, as in the generator
    bsdf = _material(thing["material"], color)
    if thing["shape"] == "sphere":
        return {"type": "sphere", "center": center.tolist(), "radius": radius, "bsdf": bsdf}
    angle = thing["rotation"]  # radians, see scenes.py
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    vertices, normals, faces = _MESHES[thing["shape"]]
    return _mesh(mi, name, (radius * vertices @ turn.T + center, normals @ turn.T, faces), bsdf)


@cache  # Mitsuba integrates tables for each new rough plastic, which takes longer than the rest of a scene
def _material(material: str, color: tuple[float, float, float]):
    import mitsuba

    return mitsuba.load_dict({"rubber": _rubber, "metal": _metal}[material](color))


def _mesh(mi, name: str, mesh: geometry.Mesh, bsdf):
    vertices, normals, faces = mesh
    properties = mi.Properties()
    properties["bsdf"] = bsdf
    made = mi.Mesh(name, len(vertices), len(faces), has_vertex_normals=True, props=properties)
    parameters = mi.traverse(made)
    parameters["vertex_positions"] = vertices.ravel().astype(np.float32)
    parameters["vertex_normals"] = normals.ravel().astype(np.float32)
    parameters["faces"] = faces.ravel().astype(np.uint32)
    parameters.update()
    return made


def _rgb(values) -> dict:
    return {"type": "rgb", "value": list(values)}


def _rubber(color) -> dict:
    """Diffuse with a rough coating of IOR 1.2; the generator's Fresnel velvet is left out."""
    return {"type": "roughplastic", "diffuse_reflectance": _rgb(color), "int_ior": 1.2, "alpha": 0.35}


def _metal(color) -> dict:
    """Two glossy lobes tinted by the colour; alpha is Blender's roughness². Blender's slight anisotropy is left out."""
    lobe = {"type": "roughconductor", "material": "none", "distribution": "ggx", "specular_reflectance": _rgb(color)}
    smooth, rough = (lobe | {"alpha": roughness**2} for roughness in (0.1, 0.447))
    return {"type": "blendbsdf", "weight": 0.4, "smooth": smooth, "rough": rough}


def _lamp(transform, lamp: Lamp, location) -> dict:
    radiance = lamp.watts / (math.pi * lamp.side**2)  # of a one-sided square emitter, by Lambert's law
    return {
        "type": "rectangle",
        "to_world": transform().look_at(origin=location, target=[0, 0, 0], up=[0, 0, 1]).scale(lamp.side / 2),
        "emitter": {"type": "area", "radiance": _rgb(radiance * channel for channel in lamp.color)},
        "bsdf": {"type": "null"},  # otherwise the lamps would cast shadows
    }
