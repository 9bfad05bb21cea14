"""What may hide parts of an object: the other detections of its image.

Detectors without training on the objects return many segments that overlap: several hypotheses of one object, parts of
it, groups of objects, and what objects lie on. A segment is taken for another object beside a detection's own only if
little of either is in the other one, and if it does not surround it.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from picopose_cli.base.geometry import ImageSlices, grown_slices, mask_slices
from picopose_cli.base.types import Array

SAME_SHARE = 0.5
"""Masks that have more than this share of the smaller one in common are of one object, or of a part of it."""
AROUND_SHARE = 0.5
"""A mask that has more than this share of another's rim is behind it."""
RIM_SHARE = 0.15
"""Width of a rim in square roots of the mask's area."""
COMPARED_PX = 48
"""Masks are compared at a resolution at which the larger side of one is about as many pixels."""


class OtherMasks:
    """The masks of an image's detections, (H,W) bool each, None where one has no mask."""

    def __init__(self, masks: Sequence[Array | None]) -> None:
        self._masks = masks
        self._windows = [None if mask is None else mask_slices(mask) for mask in masks]
        self._areas = [0 if mask is None else np.count_nonzero(mask) for mask in masks]

    def hidden_from(self, index: int, mask: Array) -> Array | None:
        """Return the pixels (H,W) bool of other objects around a detection's `mask` (H,W) bool, None without any.

        `index`: the detection's place among the masks.
        """
        own = mask_slices(mask)
        if own is None:
            return None
        side = max(rows_or_cols.stop - rows_or_cols.start for rows_or_cols in own)
        near, step = grown_slices(own, side, mask), max(side // COMPARED_PX, 1)
        here, hidden = mask[near][::step, ::step], np.zeros(mask.shape, bool)
        rim, area = _rim(here), np.count_nonzero(here)
        for i, (other, window) in enumerate(zip(self._masks, self._windows, strict=True)):
            if i == index or other is None or window is None or not _meet(near, window):
                continue
            there = other[near][::step, ::step]
            is_same = np.count_nonzero(there & here) > SAME_SHARE * min(area, self._areas[i] / step**2)
            if not is_same and np.count_nonzero(there & rim) <= AROUND_SHARE * np.count_nonzero(rim):
                hidden[near] |= other[near]
        hidden[near] &= ~mask[near]
        return hidden if hidden[near].any() else None


def _meet(one: ImageSlices, other: ImageSlices) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def _rim(mask: Array) -> Array:
    width = max(2, round(RIM_SHARE * np.sqrt(np.count_nonzero(mask))))
    return (cv2.dilate(mask.astype(np.uint8), np.ones((2 * width + 1, 2 * width + 1), np.uint8)) > 0) & ~mask
