"""Rasterise meshes with `cv2.triangleRasterize`: any pinhole camera, any window of its image, with near clipping.

From its source (OpenCV 5.0): it samples at pixel centres (index + 0.5), interpolates with perspective, assigns a pixel
on an edge to both triangles, drops triangles under 5e-7 px² and bounds each triangle by the buffer. It does not clip: a
vertex behind the camera is mirrored into the image, so triangles that cross the near plane are cut here first. It does
not check indices: a face out of range reads invalid memory, so faces are checked when a RasterMesh is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.geometry import make_T, transform_points
from picopose_cli.base.types import Array

NEAR_M = 1e-3
"""Surfaces nearer to the camera than this are cut off."""

_FIELD_OF_VIEW = np.pi / 2  # arbitrary: the camera is part of the view matrix, see _view_matrix
_DEPTH_MARGIN = 1e-3
_SETTINGS = (
    cv2.TriangleRasterizeSettings()
    # No culling: scanned meshes have holes and flipped faces, which culling would remove. (On a closed mesh it would
    # save a quarter of the time.)
    .setCullingMode(cv2.RASTERIZE_CULLING_NONE)
    # Buffer values in [0, 1]: a pixel without a triangle stays exactly 1.
    .setGlCompatibleMode(cv2.RASTERIZE_COMPAT_INVDEPTH)
    .setShadingType(cv2.RASTERIZE_SHADING_SHADED)
)


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels of an image: columns [x0, x1), rows [y0, y1); may lie outside the image."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in px, 0 where the rectangle is empty."""
        return max(self.y1 - self.y0, 0), max(self.x1 - self.x0, 0)

    @property
    def is_empty(self) -> bool:
        """Whether it holds no pixel."""
        return 0 in self.size_hw

    def clipped_to(self, other: Window) -> Window:
        """Return its intersection with `other`, possibly empty."""
        return Window(max(self.x0, other.x0), max(self.y0, other.y0), min(self.x1, other.x1), min(self.y1, other.y1))

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """Return its rows and columns in an array of the pixels of `outer`, which contains it."""
        return slice(self.y0 - outer.y0, self.y1 - outer.y0), slice(self.x0 - outer.x0, self.x1 - outer.x0)


@dataclass(frozen=True)
class RasterMesh:
    """A mesh in the rasteriser's format, relative to the centre of its box so that float32 is precise enough.

    `vertices` (N,3) f32 m relative to `centre` (3,) of the object frame; `faces` (F,3) i32; `attributes` (N,3) f32 or
    None: the values to interpolate over the surface; `corners` (8,3) f64 of the box around it, relative to `centre`.
    """

    vertices: Array
    faces: Array
    attributes: Array | None
    centre: Array
    corners: Array


def make_raster_mesh(vertices_m: Array, faces: Array, attributes: Array | None = None) -> RasterMesh:
    """Prepare vertices (N,3) in metres, object frame, faces (F,3) and attributes (N,3) for many views.

    Raises ValueError when there is no face or a face refers to a vertex that does not exist.
    """
    faces = checked_faces(faces, len(vertices_m))
    low, high = vertices_m.min(axis=0), vertices_m.max(axis=0)
    centre = (low + high) / 2
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(8, 3)
    return RasterMesh(
        np.ascontiguousarray(vertices_m - centre, np.float32),
        faces,
        None if attributes is None else np.ascontiguousarray(attributes, np.float32),
        centre,
        signs * (high - low) / 2,
    )


def checked_faces(faces: Array, vertices: int) -> Array:
    """Return faces (F,3) as the rasteriser wants them, i32; raises ValueError when there is none or one is invalid."""
    if not len(faces) or faces.min() < 0 or faces.max() >= vertices:
        raise ValueError("there must be faces, and they must refer to existing vertices")
    return np.ascontiguousarray(faces, np.int32)


@dataclass(frozen=True)
class RasterView:
    """A mesh placed in front of a camera: the inputs shared by all rasterisations of a view.

    `vertices`, `faces`, `attributes` as in RasterMesh, cut at the near plane where necessary; `T_cam_from_vertices`
    (4,4); `near_m`, `far_m` enclose the surface; `window` is the part of the requested window in which it may appear.
    """

    vertices: Array
    faces: Array
    attributes: Array | None
    T_cam_from_vertices: Array
    K: Array
    near_m: float
    far_m: float
    window: Window


def place_mesh(mesh: RasterMesh, K: Array, T_cam_from_obj: Array, window: Window) -> RasterView | None:
    """Return the mesh placed in front of the camera K (3,3), or None where no part of it is visible in `window`.

    A pose with NaN or infinity gives None.
    """
    if window.is_empty or not np.isfinite(T_cam_from_obj).all():
        return None
    T = T_cam_from_obj @ make_T(np.eye(3), mesh.centre)
    corners_cam = transform_points(T, mesh.corners)
    near, far = corners_cam[:, 2].min(), corners_cam[:, 2].max()
    if far <= NEAR_M:
        return None
    if near > NEAR_M:
        window = _projected_box(K, corners_cam).clipped_to(window)
        vertices, faces, attributes = mesh.vertices, mesh.faces, mesh.attributes
    else:
        vertices, faces, attributes = _cut_at_near_plane(mesh, T)
        T = np.eye(4)
    if window.is_empty or not len(faces):
        return None
    return RasterView(vertices, faces, attributes, T, K, *_depth_limits(near, far), window)


def place_vertices(xyz_cam_m: Array, faces: Array, K: Array, window: Window) -> RasterView | None:
    """Return vertices (N,3) in metres, camera frame, with checked `faces` as `place_mesh` does, in the whole window."""
    low, high = xyz_cam_m.min(axis=0), xyz_cam_m.max(axis=0)
    if not low[2] > 2 * NEAR_M:
        return place_mesh(make_raster_mesh(xyz_cam_m, faces), K, np.eye(4), window)
    if window.is_empty or not np.isfinite(high).all():
        return None
    centre, half = (low + high) / 2, (high - low) / 2
    T, vertices = make_T(np.eye(3), centre), np.ascontiguousarray(xyz_cam_m - centre, np.float32)
    return RasterView(vertices, faces, None, T, K, *_depth_limits(centre[2] - half[2], centre[2] + half[2]), window)


def _depth_limits(near_m: float, far_m: float) -> tuple[float, float]:
    """Return depths that enclose a surface from `near_m` to `far_m`, of which what is too near is cut off."""
    margin = _DEPTH_MARGIN * (far_m - near_m) + 1e-6 * far_m
    return float(max(max(near_m, NEAR_M) - margin, NEAR_M / 2)), float(far_m + margin)


def rasterise_depth(view: RasterView) -> Array:
    """Return the depth (h,w) f32 in metres at the pixel centres of the view's window, 0 outside the mesh."""
    buffer = np.ones(view.window.size_hw, np.float32)
    draw_depth(view, view.faces, buffer)
    return metric_depth(view, buffer)


def depth_in_window(
    view: RasterView | None, window: Window, draw: Callable[[RasterView], Array] = rasterise_depth
) -> Array:
    """Return the depth (h,w) f32 in metres that `draw` gives of a view, in a window that contains its own, else 0."""
    if view is not None and view.window == window:
        return draw(view)
    depth_m = np.zeros(window.size_hw, np.float32)
    if view is not None:
        depth_m[view.window.slices_in(window)] = draw(view)
    return depth_m


def draw_depth(view: RasterView, faces: Array, buffer: Array) -> None:
    """Draw `faces` (F,3) i32 of the view into the rasteriser's own depth `buffer` (h,w) f32, 1 where nothing is."""
    cv2.triangleRasterizeDepth(
        view.vertices, faces, buffer, _view_matrix(view, 1), _FIELD_OF_VIEW, view.near_m, view.far_m, _SETTINGS
    )


def rasterise_attributes(view: RasterView, samples: int) -> tuple[Array, Array]:
    """Return attributes (h s, w s, 3) f32, 0 outside, and coverage (h s, w s) u8, 255 inside, s = `samples`."""
    attributes, buffer = _rasterise(view, samples)
    return attributes, (buffer < 1).astype(np.uint8) * np.uint8(255)


def rasterise_both(view: RasterView) -> tuple[Array, Array]:
    """Return attributes (h,w,3) f32, 0 outside, and depth (h,w) f32 in metres at the pixel centres."""
    attributes, buffer = _rasterise(view, 1)
    return attributes, metric_depth(view, buffer)


def metric_depth(view: RasterView, buffer: Array) -> Array:
    """Return the depth (h,w) f32 in metres, 0 outside the mesh, of the rasteriser's own depth buffer (h,w) f32."""
    # Inverse of the rasteriser's [near, far] -> [0, 1], in the most precise form (1 / z is linear in the buffer).
    depth_m = buffer * np.float32(1 / view.far_m - 1 / view.near_m)
    depth_m += np.float32(1 / view.near_m)
    np.divide(np.float32(1), depth_m, out=depth_m)
    depth_m[buffer >= 1] = 0
    return depth_m


def _rasterise(view: RasterView, samples: int) -> tuple[Array, Array]:
    """Return attributes (h s, w s, 3) f32 and the rasteriser's own depth buffer (h s, w s) f32, 1 outside."""
    assert view.attributes is not None
    height, width = view.window.size_hw
    attributes = np.zeros((height * samples, width * samples, 3), np.float32)
    buffer = np.ones(attributes.shape[:2], np.float32)
    cv2.triangleRasterize(
        view.vertices,
        view.faces,
        view.attributes,
        attributes,
        buffer,
        _view_matrix(view, samples),
        _FIELD_OF_VIEW,
        view.near_m,
        view.far_m,
        _SETTINGS,
    )
    return attributes, buffer


def _view_matrix(view: RasterView, samples: int) -> Array:
    """Return the matrix (4,4) with which the rasteriser renders the window of camera K at `samples` per pixel side.

    Its camera has y up, looks along -z and, at 90 degrees, projects (x, y, -1) to half a height times (x, -y) from the
    buffer's middle. K's focal lengths, skew and principal point become a shear of x and y along z.
    """
    height, width = (samples * size for size in view.window.size_hw)
    to_buffer = samples * view.K  # buffer px = (to_buffer @ xyz) / z
    to_buffer[0, 2] -= samples * view.window.x0 + width / 2
    to_buffer[1, 2] -= samples * view.window.y0 + height / 2
    rasteriser_from_cam = np.eye(4)
    rasteriser_from_cam[0, :3] = to_buffer[0] * (2 / height)
    rasteriser_from_cam[1, :3] = to_buffer[1] * (-2 / height)
    rasteriser_from_cam[2, 2] = -1
    matrix: Array = rasteriser_from_cam @ view.T_cam_from_vertices
    return matrix


def _projected_box(K: Array, corners_cam: Array) -> Window:
    """Return the whole pixels that the projected corners (8,3) enclose; all of them in front of the camera."""
    uv = corners_cam @ K.T
    uv = np.clip(uv[:, :2] / uv[:, 2:], -1e9, 1e9)
    (x0, y0), (x1, y1) = np.floor(uv.min(axis=0)).astype(int), np.ceil(uv.max(axis=0)).astype(int)
    return Window(int(x0), int(y0), int(x1), int(y1))


def _cut_at_near_plane(mesh: RasterMesh, T_cam_from_vertices: Array) -> tuple[Array, Array, Array | None]:
    """Return vertices (N',3) f32 in the camera frame, faces and attributes of the part beyond the near plane."""
    vertices = transform_points(T_cam_from_vertices, mesh.vertices.astype(np.float64))
    values = vertices if mesh.attributes is None else np.concatenate([vertices, mesh.attributes], axis=1)
    beyond = vertices[:, 2] >= NEAR_M
    count = beyond[mesh.faces].sum(axis=1)
    one, two = mesh.faces[count == 1], mesh.faces[count == 2]
    one, two = _odd_vertex_first(one, beyond[one]), _odd_vertex_first(two, ~beyond[two])
    cuts = [_cut_edges(values, triangles[:, [0, 0]], triangles[:, 1:]) for triangles in (one, two)]
    # One vertex beyond: a smaller triangle. Two beyond: a quadrilateral, split into two triangles.
    tips = np.stack([values[one[:, 0]], cuts[0][:, 0], cuts[0][:, 1]], axis=1)
    lower = np.stack([values[two[:, 1]], values[two[:, 2]], cuts[1][:, 0]], axis=1)
    upper = np.stack([values[two[:, 2]], cuts[1][:, 1], cuts[1][:, 0]], axis=1)
    corners = np.concatenate([tips, lower, upper]).reshape(-1, values.shape[1])
    added = np.arange(len(values), len(values) + len(corners), dtype=np.int32).reshape(-1, 3)
    faces = np.concatenate([mesh.faces[count == 3], added])
    everything = np.concatenate([values, corners]).astype(np.float32)
    everything[: len(values)][~beyond, 2] = NEAR_M  # not used by any face; avoids a division by zero
    attributes = None if mesh.attributes is None else np.ascontiguousarray(everything[:, 3:])
    return np.ascontiguousarray(everything[:, :3]), faces, attributes


def _odd_vertex_first(faces: Array, odd: Array) -> Array:
    """Rotate each face (F,3) so that the one vertex marked in `odd` (F,3) bool is first; its winding stays."""
    shift = odd.argmax(axis=1)[:, None] + np.arange(3)
    rotated: Array = np.take_along_axis(faces, shift % 3, axis=1)
    return rotated


def _cut_edges(values: Array, start: Array, end: Array) -> Array:
    """Return the values (F,2,C) where the edges from vertices `start` (F,2) to `end` (F,2) meet the near plane."""
    a, b = values[start], values[end]
    fraction = (NEAR_M - a[..., 2:3]) / (b[..., 2:3] - a[..., 2:3])
    cut: Array = a + fraction * (b - a)
    return cut
