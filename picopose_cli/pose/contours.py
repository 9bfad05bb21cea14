"""The contours of a render: its outline, and inside of it the edges where one surface hides another or folds.

They come from the depth alone, so that they do not depend on the colours of a CAD model. The inverse depth of a plane
is an affine function of the pixel: its second derivatives are zero except where the surface folds, bends or ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.geometry import ImageSlices, backproject_pixels, mask_slices
from picopose_cli.base.types import Array

MAX_OUTLINE, MAX_INNER = 200, 150
"""Points of a contour."""
MIN_FOLD = 0.4
"""Change of slope from one pixel to the next, relative to 1 + slope^2, at which a surface folds."""
_SIGMA_PX = 1.5
"""Smoothing of the silhouette, from which come normals and positions between pixels."""
_MARGIN_PX = 4
"""Around the object, within which its contour is found."""
_BORDER_PX = 3
"""An object that the border cuts off has no contour there."""
_NEIGHBOURS = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Contour:
    """N points of a render's contours.

    `uv` (N,2) px; `normal` (N,2) their unit normals in the image, those of the outline point outwards; `xyz_obj_m`
    (N,3) metres; `is_outline` (N,) bool.
    """

    uv: Array
    normal: Array
    xyz_obj_m: Array
    is_outline: Array


def find_contour(depth_m: Array, K: Array, T_cam_from_obj: Array) -> Contour:
    """Return the contours of a render (S,S) f32 metres, 0 outside, at the pose (4,4) in the camera K (3,3)."""
    box = mask_slices(depth_m > 0, _MARGIN_PX)
    if box is None:
        return Contour(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(0, bool))
    depth = depth_m[box]
    inside = depth > 0
    outline = _outline_points(inside)
    inner = _inner_points(depth, inside, K - _offset(box))
    at = np.concatenate([outline[0], inner[0]])
    uv = np.concatenate([outline[1], inner[1]]) + np.array([box[1].start, box[0].start])
    normal = np.concatenate([outline[2], inner[2]])
    is_outline = np.arange(len(at)) < len(outline[0])
    # the object's own edge is on the nearer of two surfaces
    near = cv2.erode(np.where(inside, depth, np.float32(np.inf)), _NEIGHBOURS)
    rows, cols = at.T
    distance = np.where(is_outline, depth[rows, cols], near[rows, cols])
    xyz_cam = backproject_pixels(K, uv, distance.astype(np.float64))
    xyz_obj = (xyz_cam - T_cam_from_obj[:3, 3]) @ T_cam_from_obj[:3, :3]
    shown = (np.minimum(uv, len(depth_m) - uv) > _BORDER_PX).all(axis=1)
    return Contour(uv[shown], normal[shown], xyz_obj[shown], is_outline[shown])


def _offset(box: ImageSlices) -> Array:
    return np.array([[0, 0, box[1].start], [0, 0, box[0].start], [0, 0, 0]])


def _outline_points(inside: Array) -> tuple[Array, Array, Array]:
    """Return pixels (N,2) row, column of the silhouette's edge, positions (N,2) on it and outward normals (N,2)."""
    covered = inside.astype(np.uint8)
    rows, cols = _limited(np.nonzero(inside & (cv2.erode(covered, _NEIGHBOURS, borderValue=1) == 0)), MAX_OUTLINE)
    smooth = np.pad(cv2.GaussianBlur(covered.astype(np.float32), (0, 0), _SIGMA_PX), 1, mode="edge")
    gradient = np.stack(
        [smooth[rows + 1, cols + 2] - smooth[rows + 1, cols], smooth[rows + 2, cols + 1] - smooth[rows, cols + 1]],
        axis=1,
    )
    steepness = np.linalg.norm(gradient, axis=1, keepdims=True) / 2
    clear = steepness[:, 0] > 0.05  # thin parts have no gradient
    rows, cols, gradient, steepness = rows[clear], cols[clear], gradient[clear], steepness[clear]
    normal = -gradient / (2 * steepness)
    step_px = np.clip((smooth[rows + 1, cols + 1, None] - 0.5) / steepness, -1, 2)
    return np.stack([rows, cols], axis=1), np.stack([cols, rows], axis=1) + 0.5 + normal * step_px, normal


def _inner_points(depth: Array, inside: Array, K: Array) -> tuple[Array, Array, Array]:
    """Return pixels (N,2) row, column where the surface folds or hides another, positions (N,2) and normals (N,2)."""
    strength, angle = _folds(depth, inside, K)
    rows, cols = np.nonzero(strength > MIN_FOLD)
    normal = np.stack([np.cos(angle[rows, cols]), np.sin(angle[rows, cols])], axis=1)
    before, at, after = (_sampled(strength, cols, rows, normal * step) for step in (-1, 0, 1))
    peak = (at >= before) & (at > after)
    before, at, after = before[peak], at[peak], after[peak]
    offset = np.clip(0.5 * (before - after) / np.minimum(before - 2 * at + after, -1e-9), -0.5, 0.5)
    chosen = np.stack([rows[peak], cols[peak], *normal[peak].T, offset], axis=1)
    chosen = chosen[_spread(len(chosen), MAX_INNER)]
    rows, cols, normal = chosen[:, 0].astype(int), chosen[:, 1].astype(int), chosen[:, 2:4]
    uv = np.stack([cols, rows], axis=1) + 0.5 + normal * chosen[:, 4:]
    return np.stack([rows, cols], axis=1), uv, normal


def _folds(depth: Array, inside: Array, K: Array) -> tuple[Array, Array]:
    """Return the strength (h,w) f32 of the folds of a surface, 0 near its outline, and the angles of their normals."""
    core = cv2.erode(inside.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0)
    inverse = np.divide(1, depth, out=np.zeros_like(depth), where=inside)
    x, y, xx, xy, yy = (
        cv2.Sobel(inverse, cv2.CV_32F, in_x, in_y, scale=scale)
        for in_x, in_y, scale in ((1, 0, 1 / 8), (0, 1, 1 / 8), (2, 0, 1 / 4), (1, 1, 1 / 4), (0, 2, 1 / 4))
    )
    to_slope = depth * np.float32(K[0, 0])  # of a derivative of the inverse depth by the pixel
    slope_squared = (x * x + y * y) * to_slope**2
    half_trace, half_difference = (xx + yy) / 2, (xx - yy) / 2
    strength = (np.abs(half_trace) + np.sqrt(half_difference**2 + xy**2)) * to_slope / (1 + slope_squared)
    # the eigenvector of the eigenvalue that is larger in magnitude
    sign = np.where(half_trace < 0, np.float32(-1), np.float32(1))
    return strength * core, np.arctan2(sign * xy, sign * half_difference) / 2


def _sampled(image: Array, cols: Array, rows: Array, offset: Array) -> Array:
    x, y = (cols + offset[:, 0]).astype(np.float32), (rows + offset[:, 1]).astype(np.float32)
    if not len(x):
        return np.zeros(0, np.float32)
    return np.asarray(cv2.remap(image, x[:, None], y[:, None], cv2.INTER_LINEAR))[:, 0]


def _limited(places: tuple[Array, ...], most: int) -> tuple[Array, ...]:
    kept = _spread(len(places[0]), most)
    return tuple(axis[kept] for axis in places)


def _spread(count: int, most: int) -> Array:
    """Return at most `most` indices of `count`, evenly spread."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(int)
