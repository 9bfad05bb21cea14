"""Detections of one thing: of the poses of an object from masks that overlap, the best-scored one remains.

Where an object is several times in an image, a second pose of one instance would take the place of another instance.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import mask_iou
from picopose_cli.base.types import Array, Detection

SAME_IOU = 0.5
"""Masks that overlap by more are of one thing: instances do not share pixels, and a part is a worse detection."""

Pairs = frozenset[tuple[int, int]]


def overlapping_detections(detections: Sequence[Detection], masks: Sequence[Array | PicoPoseError | None]) -> Pairs:
    """Return the pairs (i, j), i < j, of detections of one object whose areas overlap by more than SAME_IOU.

    `masks`: (H,W) bool each, None where a detection has only a box; two boxes are compared, a box and a mask are not.
    """
    return frozenset(
        (i, j)
        for i, j in combinations(range(len(detections)), 2)
        if detections[i].obj_id == detections[j].obj_id
        and _iou(detections[i], detections[j], masks[i], masks[j]) > SAME_IOU
    )


def without_duplicates(places: Sequence[int], scores: Sequence[float], pairs: Pairs) -> list[int]:
    """Return the indices, in order, of the estimates of which no better one that remains is of the same thing.

    `places` of their detections, and `scores`; `pairs` as of `overlapping_detections`.
    """
    kept: list[int] = []
    for index in sorted(range(len(places)), key=lambda index: -scores[index]):
        if not any((min(places[index], places[k]), max(places[index], places[k])) in pairs for k in kept):
            kept.append(index)
    return sorted(kept)


def _iou(
    one: Detection, other: Detection, mask: Array | PicoPoseError | None, mask_of_other: Array | PicoPoseError | None
) -> float:
    if mask is None and mask_of_other is None:
        return _box_iou(one.box_xywh, other.box_xywh)
    if not isinstance(mask, np.ndarray) or not isinstance(mask_of_other, np.ndarray):
        return 0.0
    if mask.shape != mask_of_other.shape:
        return 0.0
    return mask_iou(mask, mask_of_other)


def _box_iou(box_xywh: Sequence[float], other_xywh: Sequence[float]) -> float:
    (x, y, w, h), (x2, y2, w2, h2) = box_xywh, other_xywh
    common = max(min(x + w, x2 + w2) - max(x, x2), 0.0) * max(min(y + h, y2 + h2) - max(y, y2), 0.0)
    return common / max(w * h + w2 * h2 - common, 1e-9)
