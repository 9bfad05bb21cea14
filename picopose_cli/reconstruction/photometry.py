"""What photographs of one surface have in common whatever the light: colours relative to their surroundings."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.reconstruction.hull import sample
from picopose_cli.reconstruction.surface import Surface
from picopose_cli.reconstruction.views import ReferenceView
from picopose_cli.reconstruction.visibility import Sight, as_mesh, sight

_FINE_PX, _WIDE_PX = 1.0, 7.0
"""Standard deviations of the smoothing against noise, and of the surroundings."""
_LEAST_CONTRAST = 6.0
"""Standard deviation of the surroundings, of 255 levels, below which differences are noise."""
_LEAST_COSINE = 0.35
_EDGE_PX = 2.5
"""Vertices nearer to the render's border, or to a step in its depth, are not compared."""


def relative_colours(view: ReferenceView, inside: Array) -> Array:
    """Return the colours (h,w,3) f32 of a view, smoothed, less the mean of their surroundings, in units of contrast.

    Mean and contrast are those of the pixels `inside` (h,w) bool.
    """
    weight = inside.astype(np.float32)
    image = view.rgb.astype(np.float32)
    fine = np.asarray(cv2.GaussianBlur(image, (0, 0), _FINE_PX), np.float32)
    around = np.maximum(cv2.GaussianBlur(weight, (0, 0), _WIDE_PX), np.float32(1e-3))
    mean = cv2.GaussianBlur(fine * weight[..., None], (0, 0), _WIDE_PX) / around[..., None]
    square = cv2.GaussianBlur((fine**2).sum(axis=2) * weight, (0, 0), _WIDE_PX) / around
    contrast = np.sqrt(np.maximum(square - (mean**2).sum(axis=2), 0)) + np.float32(_LEAST_CONTRAST)
    return np.asarray((fine - mean) / contrast[..., None], np.float32)


def clear_sights(surface: Surface, views: Sequence[ReferenceView]) -> list[tuple[Sight, Array]]:
    """Return what each view sees of a surface, and how well (N,) f32: 0 for what is hidden, steep or at an edge."""
    mesh, found = as_mesh(surface), []
    for view in views:
        one = sight(view, surface, mesh)
        clear = ~depth_edges(one.depth_m) & view.unhidden
        distance = np.asarray(cv2.distanceTransform(clear.astype(np.uint8), cv2.DIST_L2, 3), np.float32)
        good = one.seen & (one.cosine > _LEAST_COSINE) & (sample(distance, one.x, one.y) > _EDGE_PX)
        found.append((one, np.where(good, one.cosine**2, 0).astype(np.float32)))
    return found


def pixel_size_m(views: Sequence[ReferenceView], sights: Sequence[tuple[Sight, Array]]) -> float:
    """Return what a pixel of the views covers of a surface, metres: a median of the views."""
    return float(np.median([np.median(one.z_m) / view.focal_px for view, (one, _) in zip(views, sights, strict=True)]))


def depth_edges(depth_m: Array) -> Array:
    """Return the pixels (h,w) bool outside of a render or at a step in its depth (h,w)."""
    kernel = np.ones((3, 3), np.uint8)
    steps = np.asarray(cv2.dilate(depth_m, kernel)) - np.asarray(cv2.erode(depth_m, kernel))
    extent = np.ptp(depth_m[depth_m > 0]) if (depth_m > 0).any() else 0
    return np.asarray((depth_m <= 0) | (steps > 0.1 * extent))
