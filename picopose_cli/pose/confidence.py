"""Confidence: the probability that a pose is right, by what is known of it.

Right means an MSSD below a tenth of the object's diameter. The logarithm of the odds is linear in the logarithms of the
quantities by which poses of a detection are chosen, so that the most probable pose is that of the largest product of
their powers. One of them is the side of the detection's close-up, which tells how many pixels show a small object: the
fewer, the less exact is a pose that agrees with them. The weights are fitted on generated data, of objects and images
that no benchmark has: `benchmarks/calibrate_confidence.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

REFINED_OFFSETS, REFINED_WEIGHTS = (0.01, 0.01, 0.05, 0.0), (0.87, 0.74, 2.19, 2.8, 4.07)
"""Of flow support, match support, mask IoU and the close-up's share of the largest side: what is added before the
logarithm; weights of these, and a constant."""
UNREFINED_OFFSETS, UNREFINED_WEIGHTS = (0.01, 0.05, 0.0), (3.8, 3.07, 1.36, 9.29)
"""Of soft inliers per grid cell, alignment and that share, likewise."""
CONTOUR_OFFSETS, CONTOUR_WEIGHTS = (0.01, 0.05, 0.0), (6.12, 1.91, 0.42, 3.97)
"""Of contour agreement, mask IoU and that share, likewise."""

MIN_DOUBT = 1e-3
"""Least probability of being wrong that an image leaves, where depth is added to it."""
DEPTH_OFFSETS, DEPTH_WEIGHTS = (0.01, 0.05, 0.05, 0.05, 0.05), (0.64, 0.53, 5.63, 2.12, 4.25, 4.91)
"""Of the odds by the image alone, of the kept share, and of agreement, explained share and overlap, likewise."""


def refined_confidence(flow_support: float, match_support: float, mask_iou: float, side_share: float) -> float:
    """Return the probability that a refined pose is right; see `RefinedPose.quantities`."""
    return _probability((flow_support, match_support, mask_iou, side_share), REFINED_OFFSETS, REFINED_WEIGHTS)


def unrefined_confidence(soft_inlier_share: float, alignment: float, side_share: float) -> float:
    """Return the probability that a pose that is not refined is right; see `RobustPose.quantities`."""
    return _probability((soft_inlier_share, alignment, side_share), UNREFINED_OFFSETS, UNREFINED_WEIGHTS)


def contour_confidence(agreement: float, mask_iou: float, side_share: float) -> float:
    """Return the probability that a pose found by its contours is right; see `ContourPose.quantities`."""
    return _probability((agreement, mask_iou, side_share), CONTOUR_OFFSETS, CONTOUR_WEIGHTS)


def depth_confidence(quantities: Sequence[float]) -> float:
    """Return the probability that a pose finished on depth is right, by its five quantities; see `DepthPose`."""
    return _probability(quantities, DEPTH_OFFSETS, DEPTH_WEIGHTS)


def _probability(quantities: Sequence[float], offsets: Sequence[float], weights: Sequence[float]) -> float:
    logarithms = [math.log(value + offset) for value, offset in zip(quantities, offsets, strict=True)]
    log_odds = weights[-1] + math.fsum(weight * value for weight, value in zip(weights, logarithms, strict=False))
    return 1 / (1 + math.exp(-log_odds))
