"""Detections as of a detector that was never trained on the objects: duplicates, wrong labels and background too.

Modelled on CNOS, which compares segments with descriptors of templates: it is right more often than not, it also finds
parts of objects, gives a segment other objects' labels, and takes background for objects; its scores tell a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.synthesis.roughen import roughen_mask

RIGHT_SHARE, PART_SHARE, WRONG_SHARE = 0.9, 0.4, 0.7
"""How often a visible object is detected, detected again from a part of it, and detected as another object."""
MAX_BACKGROUND = 3
"""Up to so many segments of the background are taken for objects, at least one."""
_MEAN_SCORES = {"right": 0.60, "part": 0.50, "wrong": 0.48, "background": 0.42}
_SCORE_SPREAD = 0.08
_SCORE_RANGE = (0.05, 0.99)
_PART_LEFT = (0.35, 0.75)
_BLOB_HALF_AXES = (0.05, 0.2)
"""Of the image's height."""
_BLOB_FREE_SHARE = 0.5
_TRIES = 20


@dataclass(frozen=True)
class NoisyDetection:
    """A detection with its label, its score in [0, 1] and its mask (H,W) bool, which is never empty."""

    obj_id: int
    score: float
    mask: Array


def noisy_detections(
    rng: np.random.Generator, visible: Sequence[tuple[int, Array]], occupied: Array, obj_ids: Sequence[int]
) -> list[NoisyDetection]:
    """Return the detections of an image, best first.

    `visible` holds obj_id and mask (H,W) bool of what there is to detect, `occupied` (H,W) bool is where any object
    is seen, `obj_ids` are all labels. With a single label nothing is labelled wrongly.
    """
    found: list[NoisyDetection] = []
    for obj_id, mask in visible:
        others = [other for other in obj_ids if other != obj_id]
        if rng.random() < RIGHT_SHARE:
            found.append(NoisyDetection(obj_id, _score(rng, "right"), roughen_mask(rng, mask)))
        if rng.random() < PART_SHARE:
            found.append(NoisyDetection(obj_id, _score(rng, "part"), roughen_mask(rng, part_of_mask(rng, mask))))
        if others and rng.random() < WRONG_SHARE:
            label = others[int(rng.integers(len(others)))]
            found.append(NoisyDetection(label, _score(rng, "wrong"), roughen_mask(rng, mask)))
    for _ in range(int(rng.integers(1, MAX_BACKGROUND + 1))):
        blob = _background_blob(rng, occupied)
        if blob is not None:
            label = obj_ids[int(rng.integers(len(obj_ids)))]
            found.append(NoisyDetection(label, _score(rng, "background"), blob))
    return sorted(found, key=lambda detection: -detection.score)


def part_of_mask(rng: np.random.Generator, mask: Array) -> Array:
    """Return what a random straight cut leaves of a mask (H,W) bool: 35 to 75 % of its pixels."""
    rows, cols = np.nonzero(mask)
    angle = rng.uniform(0, 2 * np.pi)
    along = cols * np.cos(angle) + rows * np.sin(angle)
    kept = along <= np.quantile(along, rng.uniform(*_PART_LEFT))
    part = np.zeros_like(mask)
    part[rows[kept], cols[kept]] = True
    return part


def _background_blob(rng: np.random.Generator, occupied: Array) -> Array | None:
    """Return a rough segment (H,W) bool outside of `occupied`, or None where the objects leave no room for one."""
    height, width = occupied.shape
    for _ in range(_TRIES):
        blob = np.zeros(occupied.shape, np.uint8)
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = np.maximum(rng.uniform(*_BLOB_HALF_AXES, 2) * height, 1).astype(int)
        cv2.ellipse(blob, centre, axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 1, -1)
        rough = roughen_mask(rng, blob > 0, strength=2.0)
        free = rough & ~occupied
        if free.sum() > _BLOB_FREE_SHARE * rough.sum():
            return free
    return None


def _score(rng: np.random.Generator, kind: str) -> float:
    return round(float(np.clip(rng.normal(_MEAN_SCORES[kind], _SCORE_SPREAD), *_SCORE_RANGE)), 4)
