"""Detections with the errors of a detector that was not trained on the objects.

Modelled on CNOS, which compares segments with descriptors of templates: most detections are correct, but there are also
parts of objects, segments with the label of another object, and background; scores are only weakly informative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.synthesis.roughen import roughen_mask

CORRECT_SHARE, PART_SHARE, WRONG_LABEL_SHARE = 0.9, 0.4, 0.7
"""Probabilities that a visible object is detected, a part of it is detected, it is detected as another object."""
MAX_BACKGROUND = 3
"""Largest number of background segments in an image that are detected as objects; there is at least one."""
_MEAN_SCORES = {"correct": 0.60, "part": 0.50, "wrong_label": 0.48, "background": 0.42}
_SCORE_SPREAD = 0.08
_SCORE_RANGE = (0.05, 0.99)
_PART_SHARES = (0.35, 0.75)
_BLOB_HALF_AXES = (0.05, 0.2)
"""Relative to the image height."""
_BLOB_FREE_SHARE = 0.5
_MAX_ATTEMPTS = 20


@dataclass(frozen=True)
class NoisyDetection:
    """A detection: label, score in [0, 1], and mask (H,W) bool, never empty."""

    obj_id: int
    score: float
    mask: Array


def noisy_detections(
    rng: np.random.Generator, visible: Sequence[tuple[int, Array]], occupied: Array, obj_ids: Sequence[int]
) -> list[NoisyDetection]:
    """Return the detections of an image, sorted by score, best first.

    `visible` holds obj_id and visible mask (H,W) bool of the objects to detect, `occupied` (H,W) bool is the union of
    the masks of all objects, `obj_ids` are all labels. With a single label there are no wrong labels.
    """
    found: list[NoisyDetection] = []
    for obj_id, mask in visible:
        others = [other for other in obj_ids if other != obj_id]
        if rng.random() < CORRECT_SHARE:
            found.append(NoisyDetection(obj_id, _score(rng, "correct"), roughen_mask(rng, mask)))
        if rng.random() < PART_SHARE:
            found.append(NoisyDetection(obj_id, _score(rng, "part"), roughen_mask(rng, part_of_mask(rng, mask))))
        if others and rng.random() < WRONG_LABEL_SHARE:
            label = others[int(rng.integers(len(others)))]
            found.append(NoisyDetection(label, _score(rng, "wrong_label"), roughen_mask(rng, mask)))
    for _ in range(int(rng.integers(1, MAX_BACKGROUND + 1))):
        blob = _background_blob(rng, occupied)
        if blob is not None:
            label = obj_ids[int(rng.integers(len(obj_ids)))]
            found.append(NoisyDetection(label, _score(rng, "background"), blob))
    return sorted(found, key=lambda detection: -detection.score)


def part_of_mask(rng: np.random.Generator, mask: Array) -> Array:
    """Return the part of a mask (H,W) bool on one side of a random straight line: 35 to 75 % of its pixels."""
    rows, cols = np.nonzero(mask)
    angle = rng.uniform(0, 2 * np.pi)
    along = cols * np.cos(angle) + rows * np.sin(angle)
    kept = along <= np.quantile(along, rng.uniform(*_PART_SHARES))
    part = np.zeros_like(mask)
    part[rows[kept], cols[kept]] = True
    return part


def _background_blob(rng: np.random.Generator, occupied: Array) -> Array | None:
    """Return a rough segment (H,W) bool outside `occupied`, or None when there is no room for one."""
    height, width = occupied.shape
    for _ in range(_MAX_ATTEMPTS):
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
