"""Visible Surface Discrepancy: the visible surfaces of an object at two poses, compared pixel by pixel.

Each pose is rendered once, in the box of its own projection; a pair of poses is compared where the boxes overlap.
Distances are from the camera's centre to the surface, not along the optical axis (definition of VSD).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.types import Array

BoxXyxy = tuple[int, int, int, int]
"""Pixels [x0, x1) x [y0, y1) of an image, as (x0, y0, x1, y1)."""

GRID_PER_PX = 256
"""Subpixel steps of OpenGL's rasteriser (8 bits in every current implementation)."""
MIN_DEPTH_M = 1e-3
"""Objects with a vertex nearer to the camera plane than this are not rounded."""


@dataclass(frozen=True)
class DistanceMap:
    """An object at one pose inside `box_xyxy`: `distance_m` (h,w) f64, 0 outside the object; `visible` (h,w) bool.

    A pixel is `visible` unless a measured surface is in front of the object by more than the tolerance.
    """

    box_xyxy: BoxXyxy
    distance_m: Array
    visible: NDArray[np.bool_]


def place_on_grid(xyz_obj_m: Array, T_cam_from_obj: Array, K: Array, size_hw: tuple[int, int]) -> tuple[Array, BoxXyxy]:
    """Return points (N,3) in the camera frame as OpenGL draws them, and the box of the pixels they may cover.

    OpenGL rounds projected vertices to 1/256 px before it decides which pixels a triangle covers. The returned points
    project onto that grid, so that another renderer draws the same outline; they move by less than 1/500 px.
    An object that is not entirely in front of the camera is unchanged and gets the whole image as its box; one beside
    the image gets an empty box.
    """
    height, width = size_hw
    xyz = T_cam_from_obj[:3, :3] @ xyz_obj_m.T + T_cam_from_obj[:3, 3:]  # (3,N): contiguous rows
    if not xyz[2].min() > MIN_DEPTH_M:
        return xyz.T, (0, 0, width, height)
    u, v, _ = K @ (xyz / xyz[2])
    left, right = _pixel_range(u, width)
    top, bottom = _pixel_range(v, height)
    for axis in (u, v):
        axis *= GRID_PER_PX
        np.rint(axis, out=axis)
        axis /= GRID_PER_PX
    y = (v - K[1, 2]) / K[1, 1]
    x = (u - K[0, 2] - K[0, 1] * y) / K[0, 0]
    xyz[0], xyz[1] = x * xyz[2], y * xyz[2]
    return xyz.T, (left, top, right, bottom)


def _pixel_range(positions: Array, size: int) -> tuple[int, int]:
    """Return the first pixel and the one after the last, within 0 to `size`, that `positions` (N,) px enclose."""
    low, high = (float(min(max(value, -1), size + 1)) for value in (positions.min(), positions.max()))
    first = min(max(math.floor(low), 0), size)
    return first, max(min(math.ceil(high), size), first)


def make_distance_map(
    depth_m: Array, box_xyxy: BoxXyxy, measured_depth_m: Array, K: Array, tolerance_m: float
) -> DistanceMap:
    """Return the distance map of a render `depth_m` (h,w) of `box_xyxy`; `measured_depth_m` (H,W) may hide it (metres).

    Source: toolkit, visibility._estimate_visib_mask in its mode bop19, with distances of misc.depth_im_to_dist_im_fast,
    where the ray of a pixel passes through its index, not through its centre.
    """
    x0, y0, x1, y1 = box_xyxy
    ray_lengths = _ray_lengths(K[0, 0], K[1, 1], K[0, 2], K[1, 2], measured_depth_m.shape)[y0:y1, x0:x1]
    measured_m = measured_depth_m[y0:y1, x0:x1]
    distance_m = depth_m * ray_lengths
    behind_m = distance_m.astype(np.float32)
    behind_m -= (measured_m * ray_lengths).astype(np.float32)
    visible = ((behind_m <= tolerance_m) | (measured_m == 0)) & (depth_m > 0)
    return DistanceMap(box_xyxy, distance_m, visible)


@lru_cache(maxsize=2)
def _ray_lengths(fx: float, fy: float, cx: float, cy: float, size_hw: tuple[int, int]) -> Array:
    """Return the distance (H,W) of the surface at each pixel for a depth of 1; the last cameras' are kept."""
    rays_x, rays_y = (np.arange(size_hw[1]) - cx) / fx, (np.arange(size_hw[0]) - cy) / fy
    lengths: Array = np.sqrt(rays_x**2 + rays_y[:, None] ** 2 + 1)
    return lengths


def vsd(est: DistanceMap, gt: DistanceMap, diameter_m: float, taus: Array) -> Array:
    """Return the Visible Surface Discrepancy (T,) in [0, 1] for misalignment tolerances `taus` (T,) of the diameter.

    The step cost of the BOP challenge. The estimate also counts as visible wherever the ground truth is visible and
    the estimate has a surface. Source: Hodan et al., ECCVW 2018, eq. 1 (toolkit: pose_error.vsd).
    """
    in_est, in_gt = _common_slices(est.box_xyxy, gt.box_xyxy)
    visible_gt, distance_est = gt.visible[in_gt], est.distance_m[in_est]
    # outside the common part a pixel is visible in at most one of the two
    both = visible_gt & (distance_est > 0)
    visible_in_both = np.count_nonzero(est.visible[in_est] & visible_gt)
    union = np.count_nonzero(gt.visible) + np.count_nonzero(est.visible) - visible_in_both
    if union == 0:
        return np.ones(len(taus))
    apart = gt.distance_m[in_gt] - distance_est  # in place from here: the arrays are large
    np.abs(apart, out=apart)
    apart /= diameter_m
    apart = apart[both & (apart >= taus.min())]
    misaligned = np.array([np.count_nonzero(apart >= tau) for tau in taus])
    discrepancy: Array = (misaligned + union - np.count_nonzero(both)) / union
    return discrepancy


def _common_slices(a: BoxXyxy, b: BoxXyxy) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the (rows, columns) of the pixels common to two boxes, in the arrays of each."""
    x0, y0 = max(a[0], b[0]), max(a[1], b[1])
    x1, y1 = max(min(a[2], b[2]), x0), max(min(a[3], b[3]), y0)
    in_a, in_b = ((slice(y0 - box[1], y1 - box[1]), slice(x0 - box[0], x1 - box[0])) for box in (a, b))
    return in_a, in_b
