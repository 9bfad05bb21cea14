"""Poses drawn on their image: the outline, the axes and a label of each object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.cameras import CameraModel, Pinhole
from picopose_cli.base.geometry import transform_points
from picopose_cli.base.types import Array, Mesh
from picopose_cli.pictures.outlines import object_outlines, object_window, render_silhouette
from picopose_cli.rendering.mesh_size import mesh_diameter_m

Rgb = tuple[int, int, int]

CORRECT_RGB: Rgb = (60, 255, 60)
WRONG_RGB: Rgb = (255, 50, 50)
OBJECT_COLOURS_RGB: tuple[Rgb, ...] = (
    (0, 200, 255), (255, 170, 0), (255, 90, 255), (255, 255, 0), (90, 140, 255), (190, 255, 200), (255, 150, 150),
)  # fmt: skip
"""Colours of objects whose poses are not known to be right or wrong."""
_AXES_RGB: tuple[Rgb, ...] = ((255, 0, 0), (0, 220, 0), (60, 110, 255))
_AXIS_SHARE = 0.35
"""Length of an axis over the diameter of its object."""
_OUTLINE_SCALE = 4
"""Silhouette pixels along one image pixel, for smooth outlines."""
_OUTLINE_PX = 2
_LEGEND_PX = 24
_LABEL_RGB = (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_NEAR_M = 0.001
_LARGE_PX = 1_000_000


@dataclass(frozen=True)
class DrawnPose:
    """A pose to draw: the object's mesh, `T_cam_from_obj` (4,4) metres, a colour and a text beside it."""

    mesh: Mesh
    T_cam_from_obj: Array
    colour_rgb: Rgb
    label: str = ""


def draw_poses(image_rgb: Array, camera: CameraModel, poses: Sequence[DrawnPose], *, axes: bool = True) -> Array:
    """Return an image (H,W,3) u8 RGB with the outline of each pose, its label and, with `axes`, its object's axes.

    x is drawn red, y green, z blue. Objects that are not in view are not drawn.
    """
    picture = image_rgb.copy()
    corners = [_draw_outline(picture, pose, camera) for pose in poses]
    for pose, corner in zip(poses, corners, strict=True):
        if corner is not None and axes:
            _draw_axes(picture, pose, camera)
        if corner is not None and pose.label:
            _draw_label(picture, pose, corner)
    return picture


def add_legend(image_rgb: Array, entries: Sequence[tuple[str, Rgb]]) -> Array:
    """Return an image (H,W,3) u8 RGB with 24 rows below it that explain colours."""
    width = image_rgb.shape[1]
    strip = np.zeros((_LEGEND_PX, width, 3), np.uint8)
    x, middle = 8, _LEGEND_PX // 2
    for text, colour in entries:
        strip[middle - 1 : middle - 1 + _OUTLINE_PX, x : x + 20] = colour
        cv2.putText(strip, text, (x + 28, middle + 4), _FONT, 0.4, _LABEL_RGB, 1, cv2.LINE_AA)
        x += 28 + cv2.getTextSize(text, _FONT, 0.4, 1)[0][0] + 24
    return np.concatenate([image_rgb, strip])


def _draw_outline(picture: Array, pose: DrawnPose, camera: CameraModel) -> tuple[int, int] | None:
    """Draw the outline and return the top left corner (x, y) px of what it surrounds, None where nothing is in view."""
    size_hw = (picture.shape[0], picture.shape[1])
    if not isinstance(camera, Pinhole):
        lines = object_outlines(pose.mesh, camera, pose.T_cam_from_obj, size_hw)
        points = [np.rint((line - 0.5) * 16).astype(np.int64) for line in lines]
        for line in points:
            cv2.polylines(picture, [line.astype(np.int32)], True, pose.colour_rgb, _OUTLINE_PX, cv2.LINE_AA, shift=4)
        return (
            None
            if not lines
            else (int(min(one[:, 0].min() for one in lines)), int(min(one[:, 1].min() for one in lines)))
        )
    window = object_window(pose.mesh, camera.K, pose.T_cam_from_obj, size_hw)
    if window is None:
        return None
    silhouette = render_silhouette(pose.mesh, camera.K, pose.T_cam_from_obj, window, _OUTLINE_SCALE)
    x0, y0, x1, y1 = window
    part = picture[y0:y1, x0:x1].astype(np.float32)
    part += outline(silhouette, _OUTLINE_SCALE)[..., None] * (np.array(pose.colour_rgb, np.float32) - part)
    picture[y0:y1, x0:x1] = np.rint(part).astype(np.uint8)
    return x0, y0


def outline(silhouette: Array, scale: int) -> Array:
    """Return the part (h,w) f32 in [0, 1] of each pixel that the line along the edge of a silhouette (s*h,s*w) covers.

    There is no line where the silhouette leaves the image.
    """
    side = _OUTLINE_PX * scale + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    line = cv2.morphologyEx(silhouette.astype(np.uint8), cv2.MORPH_GRADIENT, disc).astype(np.float32)
    size_wh = silhouette.shape[1] // scale, silhouette.shape[0] // scale
    return cv2.resize(line, size_wh, interpolation=cv2.INTER_AREA)


def _draw_axes(picture: Array, pose: DrawnPose, camera: CameraModel) -> None:
    length_m = _AXIS_SHARE * mesh_diameter_m(pose.mesh)
    ends = transform_points(pose.T_cam_from_obj, np.vstack([np.zeros(3), np.eye(3) * length_m]))
    if (ends[:, 2] < _NEAR_M).any():
        return
    uv = np.clip(camera.project(ends) - camera.first_pixel_px, -_LARGE_PX, _LARGE_PX)
    points = np.rint(uv * 16).astype(np.int64)  # OpenCV counts from the centre of the first pixel
    for end, colour in sorted(zip(range(1, 4), _AXES_RGB, strict=True), key=lambda item: -ends[item[0], 2]):
        cv2.line(picture, points[0].tolist(), points[end].tolist(), colour, 2, cv2.LINE_AA, shift=4)


def _draw_label(picture: Array, pose: DrawnPose, corner: tuple[int, int]) -> None:
    """Write a pose's label above its corner, on a dark ground, inside the image."""
    height, width = picture.shape[:2]
    size = max(0.4, height / 1200)
    (text_w, text_h), below = cv2.getTextSize(pose.label, _FONT, size, 1)
    x = int(np.clip(corner[0], 0, max(width - text_w - 4, 0)))
    y = int(np.clip(corner[1], text_h + below + 2, height))
    ground = picture[max(y - text_h - below - 2, 0) : y, x : x + text_w + 4]
    ground[:] = ground // 3
    cv2.putText(picture, pose.label, (x + 2, y - below), _FONT, size, pose.colour_rgb, 1, cv2.LINE_AA)
