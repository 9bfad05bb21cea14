"""Draw the depth of closed meshes without the faces on their far side, which are half of the work.

A ray from outside enters a closed surface through a face that looks towards the camera, so the nearest surface is such
a face. At the outline, where rounding decides which face covers a pixel, the faces that adjoin a drawn one are drawn
too; and where rounding leaves a gap between two faces, through which the far side is seen, all faces are drawn. So the
result equals that of all faces, to the bit. A mesh of which that is not known to hold is drawn with all faces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.geometry import make_T, rotation_deviation, transform_points
from picopose_cli.base.types import Array
from picopose_cli.rendering.rasteriser import (
    RasterView,
    Window,
    checked_faces,
    depth_in_window,
    draw_depth,
    metric_depth,
    place_vertices,
    rasterise_depth,
)

_MIN_FACES = 500
"""Fewer faces are drawn faster than they are chosen."""
_GRAZING = 0.01
"""Cosine of the angle to a face's normal up to which a face that looks away counts as looking towards the camera."""
_GAP_PX = 16
"""Larger holes are in the mesh. (Gaps have a pixel or a few, at an edge that passes through pixels' centres.)"""
_MAX_DEVIATION = 1e-3
"""Of R R^T from the identity, up to which the camera's place in the object's frame is known well enough."""
_SAME_PLACE = 1e-6
"""Share of the mesh's extent below which vertices are one: seams and poles have several at the same place."""
_CHECK_PX, _CHECK_DISTANCE = 64, 3.0
"""Size of the views that are compared when a table is made, and their distance in radii of the mesh."""


@dataclass(frozen=True)
class FaceTable:
    """The faces (F,3) i32 of a mesh, to be chosen from by the view.

    `normals` (F,3) f64 of length 1, and `heights` (F,) of the faces along them, in the object's frame; `corners` (3,F)
    of vertices numbered by place, of which there are `places`. `closed`: faces may be left out.
    """

    faces: Array
    normals: Array
    heights: Array
    corners: NDArray[np.intp]
    places: int
    closed: bool


def make_face_table(vertices_m: Array, faces: Array) -> FaceTable:
    """Return the table of faces (F,3) of vertices (N,3) in metres; ValueError as `checked_faces`."""
    faces = checked_faces(faces, len(vertices_m))
    xyz = vertices_m[faces]  # (F,3,3)
    normals = np.cross(xyz[:, 1] - xyz[:, 0], xyz[:, 2] - xyz[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    place = _number_places(vertices_m)
    corners = np.ascontiguousarray(place[faces].T)
    heights = np.einsum("fc,fc->f", normals, xyz[:, 0])
    table = FaceTable(faces, normals, heights, corners, int(place.max()) + 1, closed=True)
    return replace(table, closed=len(faces) >= _MIN_FACES and _is_closed(corners) and _looks_whole(table, vertices_m))


def render_table(
    table: FaceTable, T_cam_from_obj: Array, xyz_cam_m: Array, K: Array, box_xyxy: tuple[int, int, int, int]
) -> Array:
    """Return the depth (h,w) f32 in metres inside the pixels [x0, x1) x [y0, y1), as `render_depth` does.

    `xyz_cam_m` (N,3): the vertices of the table's mesh in the camera frame, where `T_cam_from_obj` (4,4) places them,
    to a hundredth pixel.
    """
    window = Window(*box_xyxy)
    view = place_vertices(xyz_cam_m, table.faces, K, window)

    def draw(view: RasterView) -> Array:
        whole = view.faces is table.faces  # nothing was cut off at the near plane
        return rasterise_faces(view, table, T_cam_from_obj) if whole else rasterise_depth(view)

    return depth_in_window(view, window, draw)


def rasterise_faces(view: RasterView, table: FaceTable, T_cam_from_obj: Array) -> Array:
    """Return the depth (h,w) f32 in metres of a view of all faces of `table`, as `rasterise_depth` does.

    All vertices are in front of the camera, and where `T_cam_from_obj` (4,4) places them.
    """
    R, t = T_cam_from_obj[:3, :3], T_cam_from_obj[:3, 3]
    if not table.closed or not rotation_deviation(R) <= _MAX_DEVIATION:
        return rasterise_depth(view)
    buffer, near = _draw_near_side(view, table, R, t)
    if _has_gaps(buffer < 1):
        draw_depth(view, table.faces.compress(~near, axis=0), buffer)
    return metric_depth(view, buffer)


def _draw_near_side(view: RasterView, table: FaceTable, R: Array, t: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Return the rasteriser's depth buffer (h,w) of the faces on the near side, and which (F,) they are."""
    buffer, near = np.ones(view.window.size_hw, np.float32), _near_side(table, -R.T @ t)
    draw_depth(view, table.faces.compress(near, axis=0), buffer)
    return buffer, near


def _near_side(table: FaceTable, eye: Array) -> NDArray[np.bool_]:
    """Return which faces (F,) look towards a camera at `eye` (3,), object frame, or have a vertex of one."""
    towards = np.flatnonzero(table.normals @ eye > table.heights - _GRAZING * np.linalg.norm(eye))
    drawn = np.zeros(table.places, np.bool_)
    for corner in table.corners:
        drawn[corner.take(towards)] = True
    first, second, third = (drawn.take(corner) for corner in table.corners)
    near: NDArray[np.bool_] = first | second | third
    return near


def _has_gaps(covered: NDArray[np.bool_]) -> bool:
    """Return whether a few pixels that are not `covered` (h,w) are enclosed by covered ones: a gap between faces."""
    in_row = covered[:, :-2] & covered[:, 2:] & ~covered[:, 1:-1]
    in_column = covered[:-2] & covered[2:] & ~covered[1:-1]
    if not (in_row.any() or in_column.any()):
        return False
    stats = cv2.connectedComponentsWithStats((~covered).view(np.uint8), connectivity=4)[2][1:]
    left, top, width, height, area = stats.T
    inside = (left > 0) & (top > 0) & (left + width < covered.shape[1]) & (top + height < covered.shape[0])
    return bool((inside & (area <= _GAP_PX)).any())


def _number_places(vertices_m: Array) -> NDArray[np.intp]:
    """Return the number (N,) of the place of each vertex (N,3)."""
    low, high = vertices_m.min(axis=0), vertices_m.max(axis=0)
    step_m = max(_SAME_PLACE * (high - low).max(), np.finfo(np.float64).tiny)
    index = np.rint((vertices_m - low) / step_m).astype(np.int64)
    return np.unique(index @ (1 << 40, 1 << 20, 1), return_inverse=True)[1]


def _is_closed(corners: NDArray[np.intp]) -> bool:
    """Return whether each edge of faces (3,F) is run through as often in the one direction as in the other."""
    a, b = np.concatenate([corners[[0, 1]], corners[[1, 2]], corners[[2, 0]]], axis=1)
    count = int(corners.max()) + 1
    return np.array_equal(np.sort(a * count + b), np.sort(b * count + a))


def _looks_whole(table: FaceTable, vertices_m: Array) -> bool:
    """Return whether six views show no difference: parts that are inside out, or folded through others, do."""
    low, high = vertices_m.min(axis=0), vertices_m.max(axis=0)
    distance_m = _CHECK_DISTANCE * float(np.linalg.norm(high - low)) / 2
    K = np.array([[_CHECK_PX, 0, _CHECK_PX / 2], [0, _CHECK_PX, _CHECK_PX / 2], [0, 0, 1]])
    for axis in range(3):
        for sign in (1, -1):
            R = np.roll(np.diag([sign, 1, sign]), axis, axis=1).astype(np.float64)
            T = make_T(R, np.array([0, 0, distance_m]) - R @ (low + high) / 2)
            view = place_vertices(transform_points(T, vertices_m), table.faces, K, Window(0, 0, _CHECK_PX, _CHECK_PX))
            if view is None:
                return False
            buffer, near = _draw_near_side(view, table, R, T[:3, 3])
            whole = buffer.copy()
            draw_depth(view, table.faces.compress(~near, axis=0), whole)
            if not np.array_equal(buffer, whole) and not _has_gaps(buffer < 1):
                return False
    return True
