"""The software renderer, without OpenGL, display or GPU: `cv2.triangleRasterize` of OpenCV 5."""

from __future__ import annotations

import weakref
from copy import copy

import cv2
import numpy as np

from picopose_cli.base.types import Array, Mesh, RenderedView
from picopose_cli.rendering.rasteriser import (
    RasterMesh,
    RasterView,
    Window,
    depth_in_window,
    make_raster_mesh,
    place_mesh,
    rasterise_attributes,
    rasterise_both,
    rasterise_depth,
)
from picopose_cli.rendering.shading import SAMPLES, Surface, average_samples, make_surface


class SoftwareRenderer:
    """Renders one mesh with one camera; may be used by several threads at once (OpenCV releases the GIL)."""

    name = "software"
    thread_safe = True

    def __init__(self, mesh: Mesh, K: Array, size_hw: tuple[int, int]) -> None:
        self.detail = f"cv2.triangleRasterize, OpenCV {cv2.__version__}"
        self._surface: Surface = make_surface(mesh)
        self._K = np.asarray(K, np.float64)
        self._image = Window(0, 0, size_hw[1], size_hw[0])

    def with_camera(self, K: Array, size_hw: tuple[int, int]) -> SoftwareRenderer:
        """Return a renderer of the same mesh, whose data it shares, with another camera and image size."""
        other = copy(self)
        other._K, other._image = np.asarray(K, np.float64), Window(0, 0, size_hw[1], size_hw[0])
        return other

    def render(self, T_cam_from_obj: Array) -> RenderedView:
        """Return the view at `T_cam_from_obj` (4,4), metres; colour is the mean of 2 x 2 samples, depth is exact."""
        size_hw = self._image.size_hw
        rgb, alpha = np.zeros((*size_hw, 3), np.uint8), np.zeros(size_hw, np.uint8)
        depth_m = np.zeros(size_hw, np.float32)
        view = place_mesh(self._surface.raster_mesh, self._K, T_cam_from_obj, self._image)
        if view is not None:
            inside = view.window.slices_in(self._image)
            rgb[inside], alpha[inside] = _draw_colour(self._surface, view, T_cam_from_obj)
            depth_m[inside] = rasterise_depth(view)
        return RenderedView(rgb, alpha, depth_m)

    def render_quickly(self, T_cam_from_obj: Array) -> RenderedView:
        """Return the view with one sample of colour a pixel: edges are jagged, in a third of the time of `render`."""
        size_hw = self._image.size_hw
        rgb, depth_m = np.zeros((*size_hw, 3), np.uint8), np.zeros(size_hw, np.float32)
        view = place_mesh(self._surface.raster_mesh, self._K, T_cam_from_obj, self._image)
        if view is not None:
            inside = view.window.slices_in(self._image)
            attributes, depth_m[inside] = rasterise_both(view)
            colours = self._surface.colour(attributes, T_cam_from_obj, _samples_per_m(view, T_cam_from_obj, 1))
            rgb[inside] = np.where(depth_m[inside][..., None] > 0, colours, 0)
        return RenderedView(rgb, (depth_m > 0).astype(np.uint8) * np.uint8(255), depth_m)

    def close(self) -> None:
        """Do nothing: no resources are held."""


def render_depth(mesh: Mesh, K: Array, T_cam_from_obj: Array, box_xyxy: tuple[int, int, int, int]) -> Array:
    """Return the depth (h,w) f32 in metres of a mesh inside the pixels [x0, x1) x [y0, y1) of a camera's image.

    Depth is along the optical axis at the pixels' centres, 0 outside the object. The object may be partly or wholly
    outside the image, behind the camera or around it; surfaces nearer than 1 mm are cut off. An empty window gives an
    empty array. The first call prepares a mesh and caches it for the lifetime of the Mesh object.
    """
    window = Window(*(int(side) for side in box_xyxy))
    view = place_mesh(_prepared(mesh), np.asarray(K, np.float64), np.asarray(T_cam_from_obj, np.float64), window)
    return depth_in_window(view, window)


_PREPARED: dict[int, tuple[weakref.ref[Mesh], RasterMesh]] = {}


def _prepared(mesh: Mesh) -> RasterMesh:
    """Return the raster mesh, made once for each Mesh object (by identity: arrays cannot be dictionary keys)."""
    key = id(mesh)
    known = _PREPARED.get(key)
    if known is None or known[0]() is not mesh:
        reference = weakref.ref(mesh, lambda _: _PREPARED.pop(key, None))
        known = (reference, make_raster_mesh(mesh.vertices_m, mesh.faces))
        _PREPARED[key] = known
    return known[1]


def _draw_colour(surface: Surface, view: RasterView, T_cam_from_obj: Array) -> tuple[Array, Array]:
    """Return colour (h,w,3) u8 and coverage (h,w) u8 of the view's window, both the mean of the pixel's samples."""
    attributes, covered = rasterise_attributes(view, SAMPLES)
    colours = surface.colour(attributes, T_cam_from_obj, _samples_per_m(view, T_cam_from_obj, SAMPLES))
    return average_samples(colours, covered)


def _samples_per_m(view: RasterView, T_cam_from_obj: Array, samples: int) -> float:
    """Return the number of samples a metre of the object at its distance, of `samples` a pixel's side."""
    focal_px = np.sqrt(abs(np.linalg.det(view.K[:2, :2])))
    return float(samples * focal_px / max(float(T_cam_from_obj[2, 3]), view.near_m))
