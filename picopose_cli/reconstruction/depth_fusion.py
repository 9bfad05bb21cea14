"""Fuse depth maps into the values of a grid (TSDF), where they are measured; elsewhere the silhouettes' hull stays.

A depth map tells of a point in front of its surface that it is outside, of one just behind it that it is inside, and
nothing of one farther behind. The values of all views are averaged, truncated to a few cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.reconstruction.hull import Grid
from picopose_cli.reconstruction.views import ReferenceView
from picopose_cli.reconstruction.visibility import sample_nearest

_TRUNCATION_CELLS = 3.0
_LEAST_VIEWS = 2
"""Fewer measurements of a point count as none."""
_BEYOND_HULL_SHARE = 0.03
"""Of the grid's longest side: how far outside of the hull of rough masks a measured surface may be."""
_CHUNK_POINTS = 200_000


def fuse_depth(views: Sequence[ReferenceView], grid: Grid, hull: Array) -> Array:
    """Return the values (x,y,z) f32 m, positive inside, of depth maps and, where there is none, of the hull (x,y,z)."""
    limit = np.float32(_TRUNCATION_CELLS * grid.step_m)
    around = [_around(view) for view in views]
    found = np.clip(hull, -limit, limit).ravel()
    nearby = np.flatnonzero(hull.ravel() > -_BEYOND_HULL_SHARE * grid.step_m * max(grid.shape))
    for start in range(0, len(nearby), _CHUNK_POINTS):
        part = nearby[start : start + _CHUNK_POINTS]
        points = grid.points(part)
        total, count = np.zeros(len(part), np.float32), np.zeros(len(part), np.int32)
        for view, near_mask in zip(views, around, strict=True):
            if view.depth_m is None:
                continue
            x, y, z = view.project(points)
            depth = sample_nearest(view.depth_m, x, y, 0.0)
            behind = z - depth
            # what is not of the object, such as a table, can only tell that the space in front of it is empty
            on_object = sample_nearest(near_mask, x, y, 0) > 0
            known = (depth > 0) & (behind < limit) & (on_object | (behind < -limit))
            total[known] += np.maximum(behind[known], -limit)
            count[known] += 1
        measured = count >= _LEAST_VIEWS
        found[part[measured]] = total[measured] / count[measured]
    return np.asarray(found.reshape(hull.shape))


def _around(view: ReferenceView) -> Array:
    """Return the pixels (h,w) u8 of a mask and, as it may be too small, a few around it."""
    side = 2 * max(int(_BEYOND_HULL_SHARE * max(view.size_hw)), 1) + 1
    return np.asarray(cv2.dilate(view.silhouette.astype(np.uint8), np.ones((side, side), np.uint8)))
