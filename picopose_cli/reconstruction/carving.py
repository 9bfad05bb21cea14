"""From silhouettes to a closed surface: where the object is, a coarse hull, the views to leave out, a fine hull."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter

from picopose_cli.base.types import Array
from picopose_cli.reconstruction.hull import (
    OVERRULED_SHARES,
    Grid,
    enclosing_sphere,
    hull_values,
    mask_distances,
    silhouette_ious,
)
from picopose_cli.reconstruction.surface import Surface, extract_surface
from picopose_cli.reconstruction.views import ReferenceView

COARSE_CELLS = 40
_MADS = 5.0
"""Of the views' IoU below their median, beyond which a view is left out."""
_LEAST_GAP = 0.08
_BAND_CELLS = 2


@dataclass(frozen=True)
class Hull:
    """A hull: the box in which it is, the share of views that may contradict it, and the IoU (V,) of each view."""

    low_m: Array
    high_m: Array
    share: float
    ious: Array


def coarse_hull(views: Sequence[ReferenceView]) -> Hull | None:
    """Return the hull of the views on a coarse grid, None where there is nothing that the masks agree about."""
    distances = [mask_distances(view) for view in views]
    centre, radius, _ = enclosing_sphere(views)
    grid = Grid.around(centre - radius, centre + radius, COARSE_CELLS)
    points = grid.points(np.arange(np.prod(grid.shape)))
    values = hull_values(views, distances, points, OVERRULED_SHARES)
    # a little beyond the hull: a thin part need not contain the centre of a cube
    inside = values > -0.3 * grid.step_m
    if not (values > 0).any():
        return None
    none = np.zeros(len(views))
    ious = [silhouette_ious(views, points[each], grid.step_m) if each.any() else none for each in inside]
    best = int(np.argmax([np.median(each) for each in ious]))
    kept = points[inside[best]]
    low, high = kept.min(axis=0) - grid.step_m, kept.max(axis=0) + grid.step_m
    return Hull(low, high, OVERRULED_SHARES[best], ious[best])


def outliers(ious: Array) -> Array:
    """Return which views (V,) bool agree with the hull far less than the others."""
    middle = np.median(ious)
    mad = 1.4826 * np.median(np.abs(ious - middle))
    return np.asarray(ious < middle - max(_MADS * mad, _LEAST_GAP))


def fine_hull(views: Sequence[ReferenceView], hull: Hull, cells: int) -> tuple[Grid, Array]:
    """Return a grid of `cells` cubes along the hull's longest side and the hull's values (x,y,z) f32 m on it.

    They are computed near the surface of the hull at half the resolution, elsewhere interpolated.
    """
    distances = [mask_distances(view) for view in views]
    half = Grid.around(hull.low_m, hull.high_m, max(cells // 2, 8))
    values = hull_values(views, distances, half.points(np.arange(np.prod(half.shape))), [hull.share])[0]
    coarse = values.reshape(half.shape)
    fine = Grid(half.origin_m, half.step_m / 2, tuple(2 * side - 1 for side in half.shape))  # type: ignore[arg-type]
    doubled = _doubled(coarse)
    near = binary_dilation(_changes_sign(doubled), iterations=2 * _BAND_CELLS)
    index = np.flatnonzero(near)
    flat = doubled.ravel()
    flat[index] = hull_values(views, distances, fine.points(index), [hull.share])[0]
    return fine, flat.reshape(fine.shape)


def hull_surface(grid: Grid, values: Array) -> Surface:
    """Return the surface of a hull, its values slightly smoothed: they come from masks with steps of a pixel."""
    return extract_surface(gaussian_filter(np.clip(values, -4 * grid.step_m, 4 * grid.step_m), 0.7), grid)


def _doubled(values: Array) -> Array:
    """Return values (a,b,c) interpolated to twice the resolution (2a-1, 2b-1, 2c-1)."""
    for axis in range(3):
        values = np.moveaxis(values, axis, 0)
        finer = np.empty((2 * len(values) - 1, *values.shape[1:]), np.float32)
        finer[::2], finer[1::2] = values, (values[:-1] + values[1:]) / 2
        values = np.moveaxis(finer, 0, axis)
    return np.ascontiguousarray(values)


def _changes_sign(values: Array) -> Array:
    inside = values > 0
    changes = np.zeros(values.shape, bool)
    for axis in range(3):
        differs = np.diff(inside, axis=axis)
        low, high = [slice(None)] * 3, [slice(None)] * 3
        low[axis], high[axis] = slice(0, -1), slice(1, None)
        changes[tuple(low)] |= differs
        changes[tuple(high)] |= differs
    return changes
