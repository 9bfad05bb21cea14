"""Masks given as polygons, as in COCO's annotations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from picopose_cli.base.types import Array, Polygons


def polygon_mask(polygons: Polygons, size_hw: tuple[int, int]) -> Array:
    """Return the mask (H,W) bool of the pixels whose centre is inside any of the polygons; a pixel is 1 wide.

    The origin of the vertices is the outer corner of the first pixel. Parts outside the image are cut off.
    """
    mask = np.zeros(size_hw, bool)
    for ring in polygons.rings:
        mask |= _inside(ring, size_hw)
    return mask


def _inside(ring: Sequence[float], size_hw: tuple[int, int]) -> Array:
    """Return the pixels (H,W) bool inside one polygon: an odd number of edges is to the left of their centre."""
    height, width = size_hw
    points = np.array(ring).reshape(-1, 2)
    toggles = np.zeros((height, width + 1), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        # rows whose centre is in [y0, y1): an edge shared by two polygons counts once
        first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in (y0, y1))
        rows = np.arange(first, last)
        crossings = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0)) if len(rows) else np.zeros(0)
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)
        toggles[rows, columns] ^= True
    return np.asarray(np.logical_xor.accumulate(toggles, axis=1)[:, :width])
