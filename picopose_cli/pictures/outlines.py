"""Where an object is in an image: its window, its silhouette and its outlines, for pinhole and fisheye cameras."""

from __future__ import annotations

import cv2
import numpy as np

from picopose_cli.base.cameras import CameraModel, Pinhole
from picopose_cli.base.geometry import PIXEL_CENTRE_PX, project_points, ray_rotation, transform_points
from picopose_cli.base.types import Array, Mesh
from picopose_cli.rendering.software import render_depth

BoxXyxy = tuple[int, int, int, int]

_MARGIN_PX = 4
_NEAR_M = 0.001
_LARGE_PX = 1_000_000
_VIRTUAL_PX = 4096
"""Side of the virtual pinhole image in which an object before a fisheye camera is rendered."""
_TOLERANCE = 0.8
"""Largest distance of a simplified outline from the exact one, in samples."""


def object_outlines(
    mesh: Mesh, camera: CameraModel, T_cam_from_obj: Array, size_hw: tuple[int, int], scale: float = 1.0
) -> list[Array]:
    """Return the closed outlines of an object, each (N,2), (x, y) px of the image enlarged by `scale`.

    `size_hw` (H,W) px of the image itself. Pixel centres are at index + 0.5. Empty where the object is not in view.
    Before a fisheye camera the object is rendered by a virtual pinhole that looks at it, and its outline projected.
    """
    if isinstance(camera, Pinhole):
        large_hw = (round(size_hw[0] * scale), round(size_hw[1] * scale))
        return _contours(mesh, np.diag([scale, scale, 1.0]) @ camera.K, T_cam_from_obj, large_hw)
    R = ray_rotation(T_cam_from_obj[None, :3, 3])[0]  # R_cam_from_virtual
    T_virtual = T_cam_from_obj.copy()
    T_virtual[:3] = R.T @ T_cam_from_obj[:3]
    focal, middle = camera.pinhole_numbers[0] * scale, _VIRTUAL_PX / 2
    K = np.array([[focal, 0, middle], [0, focal, middle], [0, 0, 1]])
    lines = []
    for line in _contours(mesh, K, T_virtual, (_VIRTUAL_PX, _VIRTUAL_PX)):
        uv = camera.project(Pinhole(K).unproject(line) @ R.T) - camera.first_pixel_px + PIXEL_CENTRE_PX
        if np.isfinite(uv).all():
            lines.append(uv * scale)
    return lines


def object_window(mesh: Mesh, K: Array, T_cam_from_obj: Array, size_hw: tuple[int, int]) -> BoxXyxy | None:
    """Return the part (x0, y0, x1, y1) of an image of (H,W) px that an object is in, with a margin; None outside it."""
    height, width = size_hw
    xyz_cam = transform_points(T_cam_from_obj, mesh.vertices_m)
    if (xyz_cam[:, 2] < _NEAR_M).all() or not np.isfinite(xyz_cam).all():
        return None
    if (xyz_cam[:, 2] < _NEAR_M).any():  # the camera is in the object's box: it may be anywhere
        return 0, 0, width, height
    uv = np.clip(project_points(K, xyz_cam), -_LARGE_PX, _LARGE_PX)
    x0, y0 = np.maximum(np.floor(uv.min(axis=0)).astype(int) - _MARGIN_PX, 0).tolist()
    x1, y1 = np.minimum(np.ceil(uv.max(axis=0)).astype(int) + _MARGIN_PX, (width, height)).tolist()
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def render_silhouette(mesh: Mesh, K: Array, T_cam_from_obj: Array, window: BoxXyxy, scale: int) -> Array:
    """Return the silhouette (s*h,s*w) bool of an object in a window of the image, s = `scale` samples along a pixel."""
    scaled_K = np.diag([scale, scale, 1.0]) @ K
    x0, y0, x1, y1 = (side * scale for side in window)
    return np.asarray(render_depth(mesh, scaled_K, T_cam_from_obj, (x0, y0, x1, y1)) > 0)


def _contours(mesh: Mesh, K: Array, T_cam_from_obj: Array, size_hw: tuple[int, int]) -> list[Array]:
    """Return the outlines (N,2) px of an object seen by a pinhole."""
    window = object_window(mesh, K, T_cam_from_obj, size_hw)
    if window is None:
        return []
    silhouette = render_silhouette(mesh, K, T_cam_from_obj, window, 1).astype(np.uint8)
    found, _ = cv2.findContours(silhouette, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=window[:2])
    lines = [cv2.approxPolyDP(one, _TOLERANCE, True).reshape(-1, 2) for one in found if len(one) > 2]
    return [line + PIXEL_CENTRE_PX for line in lines if len(line) > 1]
