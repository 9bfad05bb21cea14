"""The 162 viewpoints and the camera of a template bank, computed to equal the released ones."""

from __future__ import annotations

import numpy as np

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Array

TEMPLATE_SIZE_HW = (480, 640)
DISTANCE_DIAMETERS = 2.0
"""Distance of the centre of the mesh's axis-aligned box from the camera, in diagonals of the box."""

_K = ((572.4114, 0.0, 320.0), (0.0, 573.57043, 240.0), (0.0, 0.0, 1.0))

# Half of the icosahedron of the modelling program that made the released viewpoints; the other half is its reflection
# through the origin. Rounding leaves the corners unequal by 1e-5, and the released order depends on it.
_ICOSAHEDRON = (
    (0.0, 0.0, -1.0),
    (0.7236, -0.52572, -0.447215),
    (-0.276385, -0.85064, -0.447215),
    (-0.894425, 0.0, -0.447215),
    (-0.276385, 0.85064, -0.447215),
    (0.7236, 0.52572, -0.447215),
)
_SUBDIVISIONS = 2
# PARITY: the released list was sorted by height in float32, whose rounding swapped these viewpoints of equal height.
_SWAPPED = ((6, 7), (63, 65), (64, 66), (95, 97), (96, 98), (124, 125))


def template_camera() -> Array:
    """Return the camera matrix K (3,3) f64 px of every template, for images of 480 rows and 640 columns."""
    return np.array(_K)


def view_poses() -> Array:
    """Return T_cam_from_obj (162,4,4) f64 of the template views at distance 1, OpenCV axes, in the released order.

    The cameras are at the corners of an icosahedron subdivided twice and face the origin, the object's z axis up
    in the image. Multiply the translation by the distance in metres.
    """
    centres = _sorted_viewpoints(_subdivided_icosahedron())  # (162,3)
    forward = -centres
    right = np.cross(forward, [0.0, 0.0, 1.0])
    at_pole = np.linalg.norm(right, axis=1) < 1e-9
    right[at_pole] = np.cross([0.0, -1.0, 0.0], forward[at_pole])  # at the poles the object's y axis is up
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    R = np.stack([right, np.cross(forward, right), forward], axis=1)
    return make_T(R, np.tile([0.0, 0.0, 1.0], (len(R), 1)))


def place_views(diameter_m: float) -> Array:
    """Return T_tmpl_from_obj (162,4,4) f64 in metres of the template views of an object of that box diagonal."""
    T = view_poses()
    T[:, 2, 3] = DISTANCE_DIAMETERS * diameter_m
    return T


def _subdivided_icosahedron() -> Array:
    """Return the unit vertices (162,3) in no particular order."""
    half = np.array(_ICOSAHEDRON)
    vertices = np.concatenate([half, -half])
    edge = 2 / np.sqrt(1 + ((1 + np.sqrt(5)) / 2) ** 2)
    for level in range(_SUBDIVISIONS):
        # Neighbours are closer than 1.3 edges; the next nearest vertices are further than 1.6.
        first, second = np.nonzero(np.triu(_distances(vertices) < 1.3 * edge / 2**level, k=1))
        # Normalised only after the midpoints are computed, so that midpoints of equal corners are level.
        vertices = np.concatenate([vertices, vertices[first] + vertices[second]])
        vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    return vertices


def _distances(vertices: Array) -> Array:
    distances: Array = np.linalg.norm(vertices[:, None] - vertices[None], axis=-1)
    return distances


def _sorted_viewpoints(vertices: Array) -> Array:
    """Sort unit vertices (162,3) from the south pole to the north pole, at equal height by azimuth."""
    azimuth = np.arctan2(vertices[:, 0], vertices[:, 1])
    order = np.lexsort([azimuth, vertices[:, 2]])
    for a, b in _SWAPPED:
        order[[a, b]] = order[[b, a]]
    return vertices[order]
