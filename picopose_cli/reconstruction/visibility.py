"""Which vertices of a surface a view sees, and at what angle."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.types import Array, Mesh
from picopose_cli.reconstruction.surface import Surface
from picopose_cli.reconstruction.views import ReferenceView
from picopose_cli.rendering.software import render_depth

_TOLERANCE = 0.01
"""Of the depth of a vertex against that of the render, in diameters."""
_FAR_M = 1e3


@dataclass(frozen=True)
class Sight:
    """What a view sees of a surface: its vertices at `x`, `y` (N,) f32, indices of pixels, at depths `z_m` (N,).

    `cosine` (N,) of the angle between a vertex' normal and the ray to the camera; `seen` (N,) bool; `depth_m` (h,w) f32
    is the render, 0 outside.
    """

    x: Array
    y: Array
    z_m: Array
    cosine: Array
    seen: Array
    depth_m: Array


def sight(view: ReferenceView, surface: Surface, mesh: Mesh) -> Sight:
    """Return what a view sees of a surface; `mesh` is the same surface, prepared for rendering once."""
    height, width = view.size_hw
    depth_m = render_depth(mesh, view.K, view.T_cam_from_obj, (0, 0, width, height))
    x, y, z = view.project(surface.vertices)
    to_camera = view.centre_m - surface.vertices
    cosine = (to_camera * surface.normals).sum(axis=1) / np.linalg.norm(to_camera, axis=1)
    # the farthest surface of the pixels around: a vertex at an edge is not hidden by its own neighbours
    around = cv2.dilate(np.where(depth_m > 0, depth_m, np.float32(_FAR_M)), np.ones((3, 3), np.uint8))
    nearest = sample_nearest(around, x, y, _FAR_M)
    tolerance = _TOLERANCE * float(np.linalg.norm(np.ptp(surface.vertices, axis=0)))
    seen = (cosine > 0) & (z < nearest + tolerance)
    seen &= (x > 0) & (y > 0) & (x < width - 1) & (y < height - 1)
    return Sight(x, y, z, cosine.astype(np.float32), seen, depth_m)


def sample_nearest(image: Array, x: Array, y: Array, outside: float) -> Array:
    """Return the values (N,) of an image (h,w) at the pixels nearest to positions x, y (N,)."""
    col, row = np.rint(x).astype(int), np.rint(y).astype(int)
    inside = (col >= 0) & (row >= 0) & (col < image.shape[1]) & (row < image.shape[0])
    values = np.full(len(x), outside, image.dtype)
    values[inside] = image[row[inside], col[inside]]
    return values


def as_mesh(surface: Surface) -> Mesh:
    """Return a surface as a mesh without colours."""
    return Mesh(surface.vertices, surface.faces)
