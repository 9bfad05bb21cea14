from __future__ import annotations

from dataclasses import replace

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import NO_BOX, Detection
from picopose_cli.pose.duplicates import overlapping_detections, without_duplicates

ONE = Detection(1, 0.5, NO_BOX, None, 0.0)


def columns(first: int, last: int) -> np.ndarray:
    mask = np.zeros((10, 20), bool)
    mask[:, first:last] = True
    return mask


def test_masks_of_one_object_that_overlap_by_half_are_of_one_thing():
    masks = [columns(0, 10), columns(4, 10), columns(5, 10), columns(0, 10), columns(10, 20)]
    detections = [ONE, ONE, ONE, replace(ONE, obj_id=2), ONE]
    assert overlapping_detections(detections, masks) == {(0, 1), (1, 2)}  # (0, 2) by exactly a half


def test_boxes_are_compared_with_boxes_alone():
    boxes = [(0.0, 0.0, 10.0, 10.0), (4.0, 0.0, 6.0, 10.0), (4.0, 6.0, 10.0, 10.0)]
    detections = [replace(ONE, box_xywh=box) for box in boxes]
    assert overlapping_detections(detections, [None] * 3) == {(0, 1)}
    unusable = [None, columns(0, 10), PicoPoseError("broken")]
    assert overlapping_detections([detections[0]] * 3, unusable) == frozenset()


def test_the_best_estimate_of_each_thing_stays():
    """1 is of the same thing as 3 and 5, of which 7 is another neighbour: 7 loses nothing to the dropped 5."""
    pairs = frozenset({(1, 3), (1, 5), (5, 7)})
    assert without_duplicates([1, 3, 5, 7], [0.5, 0.9, 0.6, 0.2], pairs) == [1, 2]
    assert without_duplicates([1, 3, 5, 7], [0.9, 0.5, 0.6, 0.2], pairs) == [0, 3]
    assert without_duplicates([3, 5], [0.1, 0.2], pairs) == [0, 1]
    assert without_duplicates([2, 4], [0.3, 0.3], frozenset({(2, 4)})) == [0]  # equal: the better detection
