"""Triangle meshes of the CLEVR shapes and of the ground, in plain numpy.

A mesh is (vertices, normals, faces): float (V, 3), float (V, 3), int (F, 3), with faces counter-clockwise seen from
outside. Solid shapes have half-extent 1 and slightly rounded edges, as in CLEVR's shape files.
"""

import numpy as np

Mesh = tuple[np.ndarray, np.ndarray, np.ndarray]

CUBE_BEVEL, CYLINDER_BEVEL = 0.14, 0.035  # edge radii, fitted to silhouettes in Cycles renderings
ARC_STEPS, SEGMENTS = 4, 64  # pieces of a rounded edge, and around a cylinder
GROUND_WIDTH = 200.0


def rounded_cube(bevel: float = CUBE_BEVEL) -> Mesh:
    """The cube [-1, 1]³ with edges and corners rounded with radius `bevel`.

    Every point of a plain cube's surface is moved onto the sphere of that radius around the nearest point of the
    inner cube [-(1 - bevel), 1 - bevel]³.
    """
    inner = 1.0 - bevel
    arc = inner + bevel * np.tan(np.linspace(0.0, np.pi / 4, ARC_STEPS + 1))
    line = np.concatenate([-arc[::-1], arc])
    n = len(line)
    u, v = (axis.ravel() for axis in np.meshgrid(line, line, indexing="ij"))
    corner = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    quads = np.stack([corner, corner + n, corner + n + 1, corner + 1], axis=1)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])

    vertices, normals, faces = [], [], []
    for axis in range(3):
        for side in (1.0, -1.0):
            points = np.empty((n * n, 3))
            points[:, axis], points[:, (axis + 1) % 3], points[:, (axis + 2) % 3] = side, u, v
            core = points.clip(-inner, inner)
            normal = points - core
            normal /= np.linalg.norm(normal, axis=1, keepdims=True)
            faces.append((triangles if side > 0 else triangles[:, ::-1]) + len(vertices) * n * n)
            vertices.append(core + bevel * normal)
            normals.append(normal)
    return np.concatenate(vertices), np.concatenate(normals), np.concatenate(faces)


def rounded_cylinder(bevel: float = CYLINDER_BEVEL) -> Mesh:
    """The upright cylinder of radius 1, z in [-1, 1], with both caps, and its two rims rounded with radius `bevel`."""
    inner = 1.0 - bevel
    angle = np.linspace(0.0, np.pi / 2, ARC_STEPS + 1)
    arc = np.stack([inner + bevel * np.cos(angle), inner + bevel * np.sin(angle)], axis=1)  # (radius, z)
    arc_normal = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    flip = np.array([1.0, -1.0])
    profile = np.concatenate([[[0.0, -1.0]], (arc * flip)[::-1], arc, [[0.0, 1.0]]])
    profile_normal = np.concatenate([[[0.0, -1.0]], (arc_normal * flip)[::-1], arc_normal, [[0.0, 1.0]]])

    turn = np.linspace(0.0, 2 * np.pi, SEGMENTS, endpoint=False)
    around = np.stack([np.cos(turn), np.sin(turn)], axis=1)

    def revolve(radius_and_z: np.ndarray) -> np.ndarray:
        xy = radius_and_z[:, None, :1] * around[None]
        z = np.broadcast_to(radius_and_z[:, None, 1:], (*xy.shape[:2], 1))
        return np.concatenate([xy, z], axis=2).reshape(-1, 3)

    faces = []
    for ring in range(len(profile) - 1):
        here, there = ring * SEGMENTS + np.arange(SEGMENTS), ring * SEGMENTS + (np.arange(SEGMENTS) + 1) % SEGMENTS
        if profile[ring, 0] > 0:
            faces.append(np.stack([here, there, there + SEGMENTS], axis=1))
        if profile[ring + 1, 0] > 0:
            faces.append(np.stack([here, there + SEGMENTS, here + SEGMENTS], axis=1))
    return revolve(profile), revolve(profile_normal), np.concatenate(faces)


def ground(away: np.ndarray, front: float, flat: float, radius: float, height: float) -> Mesh:
    """A sheet, flat at z = 0, that bends upwards into a wall in a quarter circle of `radius`.

    The flat part reaches from `front` units before the origin to `flat` units behind it. `away` is the horizontal unit
    vector (2,) from the camera's side to the wall's; `height` is z of the wall's upper edge.
    """
    angle = np.linspace(0.0, np.pi / 2, 33)
    bend = np.stack([flat + radius * np.sin(angle), radius * (1 - np.cos(angle))], axis=1)  # (distance, z)
    bend_normal = np.stack([-np.sin(angle), np.cos(angle)], axis=1)
    profile = np.concatenate([[[-front, 0.0]], bend, [[flat + radius, height]]])
    profile_normal = np.concatenate([[[0.0, 1.0]], bend_normal, [[-1.0, 0.0]]])

    side = np.array([-away[1], away[0]])
    vertices, normals = [], []
    for offset in (-GROUND_WIDTH, GROUND_WIDTH):
        xy = profile[:, :1] * away + offset * side
        vertices.append(np.concatenate([xy, profile[:, 1:]], axis=1))
        normals.append(np.concatenate([profile_normal[:, :1] * away, profile_normal[:, 1:]], axis=1))
    here, n = np.arange(len(profile) - 1), len(profile)
    faces = np.concatenate([np.stack([here, here + 1, here + 1 + n], 1), np.stack([here, here + 1 + n, here + n], 1)])
    return np.concatenate(vertices), np.concatenate(normals), faces
