"""Masks with the errors of a detector's: dilated or eroded, with noisy borders, parts missing and parts added."""

from __future__ import annotations

import cv2
import numpy as np

from picopose_cli.base.geometry import grown_slices, mask_slices
from picopose_cli.base.types import Array

_BOX_SHARE = 0.06
"""Probability, at strength 1, that a mask is replaced by its box or convex hull."""


def roughen_mask(rng: np.random.Generator, mask: Array, strength: float = 1.0) -> Array:
    """Return a mask (H,W) bool with a detector's errors, of a true mask (H,W) bool; never empty unless that is.

    At strength 1 the intersection over union with the true mask is .85 on average, occasionally .6.
    """
    window = mask_slices(mask)
    if window is None:
        return mask.copy()
    size = max(side.stop - side.start for side in window)
    inside = grown_slices(window, size // 4 + 3, mask)
    part = _rough_part(rng, mask[inside], size, strength)
    if part.sum() < 0.3 * mask[inside].sum():
        return mask.copy()
    rough = np.zeros_like(mask)
    rough[inside] = part
    return rough


def _rough_part(rng: np.random.Generator, mask: Array, size: int, strength: float) -> Array:
    """Return the rough mask (h,w) bool of a cut-out mask (h,w) bool of an object of `size` px; it may be empty."""
    distance = signed_distance(mask)
    noisy = distance + rng.normal(0.004, 0.014 * strength) * size
    for cells, amplitude in ((4, 0.018), (14, 0.01), (40, 0.005)):
        coarse = rng.standard_normal((cells, cells), np.float32)
        noise = cv2.resize(coarse, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
        noisy = noisy + noise * float(amplitude * strength * rng.uniform(0.2, 1.6) * size)
    rough = noisy > 0
    for _ in range(int(rng.poisson(0.7 * strength))):
        _place_blob(rng, rough, distance, size, strength)
    if rng.random() < _BOX_SHARE * strength:
        return _boxed(rng, rough)
    if rng.random() < 0.4:  # steps, as in an upsampled mask
        factor = int(rng.integers(2, 5))
        small = cv2.resize(rough.astype(np.uint8), None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_NEAREST)
        if small is not None and small.any():
            rough = cv2.resize(small, mask.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return np.asarray(rough)


def signed_distance(mask: Array) -> Array:
    """Return the distance (H,W) f32 px to the border of a mask (H,W) bool, positive inside."""
    inside = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3)
    return np.asarray(distance[1:-1, 1:-1])


def _place_blob(rng: np.random.Generator, rough: Array, distance: Array, size: int, strength: float) -> None:
    """Remove an ellipse at the border from the mask, or add one, in place."""
    rows, cols = np.nonzero(np.abs(distance) <= max(0.03 * size, 1))
    if not len(rows):
        return
    index = int(rng.integers(len(rows)))
    axes = np.maximum(rng.uniform(0.04, 0.14, 2) * size * strength, 1).astype(int)
    blob = np.zeros(rough.shape, np.uint8)
    cv2.ellipse(blob, (int(cols[index]), int(rows[index])), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1, -1)
    rough[blob > 0] = rng.random() < 0.5


def _boxed(rng: np.random.Generator, rough: Array) -> Array:
    """Return the box or the convex hull (H,W) bool of a mask, as a failed segmentation gives it."""
    window = mask_slices(rough)
    if window is None:
        return rough
    box = np.zeros(rough.shape, np.uint8)
    box[window] = 1
    if rng.random() < 0.5:
        points = np.stack(np.nonzero(rough)[::-1], axis=-1).astype(np.int32)
        box[:] = 0
        cv2.fillConvexPoly(box, cv2.convexHull(points), 1)
    return np.asarray(box > 0)
