"""Meshes are closed, face outwards, and have the stated sizes."""

from collections import Counter

import numpy as np
import pytest

from data_modules.rendering import geometry


@pytest.mark.parametrize(
    ("mesh", "volume"),
    [
        (geometry.rounded_cube(), 8.0),
        (geometry.rounded_cylinder(), 2 * np.pi),
        (geometry.rounded_cube(0.5), 4 + 3 / 4 * np.pi + np.pi / 6),  # faces, edges, corners
    ],
)
def test_solids(mesh, volume):
    vertices, normals, faces = mesh
    assert np.abs(vertices).max(axis=0) == pytest.approx([1, 1, 1])
    assert np.linalg.norm(normals, axis=1) == pytest.approx(1.0)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    outwards = np.cross(b - a, c - a)
    assert (np.einsum("fi,fi->f", outwards, normals[faces].mean(axis=1)) > 0).all()
    # Divergence theorem: correct only for a closed surface that faces outwards, including its caps.
    assert np.einsum("fi,fi->", a, outwards) / 6 == pytest.approx(volume, rel=0.04)
    # Every edge, identified by its position, is shared by exactly two faces.
    ids = np.unique(vertices.round(9), axis=0, return_inverse=True)[1].ravel()[faces]
    edges = Counter(tuple(sorted(edge)) for face in ids for edge in zip(face, np.roll(face, 1), strict=True))
    assert set(edges.values()) == {2}


def test_ground_is_flat_then_rises_behind():
    away = np.array([0.6, 0.8])
    vertices, normals, faces = geometry.ground(away, front=12, flat=10, radius=15, height=40)
    distance = vertices[:, :2] @ away
    assert (vertices[distance < 10.001, 2] == 0).all() and distance.min() == pytest.approx(-12)
    assert distance.max() == pytest.approx(25) and vertices[:, 2].max() == 40
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    assert (np.cross(b - a, c - a)[:, 2] >= -1e-9).all()
