"""Confidence: the probability that a pose is right, by what is known of it.

Right means an MSSD below a tenth of the object's diameter. The logarithm of the odds is linear in the logarithms of the
quantities by which poses of a detection are chosen, so that the most probable pose is that of the largest product of
their powers. The weights are fitted on generated data, of objects and images that no benchmark has:
`benchmarks/calibrate_confidence.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

REFINED_OFFSETS, REFINED_WEIGHTS = (0.01, 0.01, 0.05), (1.09, 0.93, 2.75, 4.61)
"""Of flow support, match support and mask IoU: what is added before the logarithm; weights of these, and a constant."""
UNREFINED_OFFSETS, UNREFINED_WEIGHTS = (0.01, 0.05), (2.23, 1.8, 4.9)
"""Of soft inliers per grid cell and alignment, likewise."""

CONTOUR_OFFSETS, CONTOUR_WEIGHTS = (0.01, 0.05), (6.0, 2.0, 4.0)
"""Of contour agreement and mask IoU, likewise."""

MIN_DOUBT = 1e-3
"""Least probability of being wrong that an image leaves, where depth is added to it."""
DEPTH_OFFSETS, DEPTH_WEIGHTS = (0.01, 0.05, 0.05, 0.05, 0.05), (0.84, 0.76, 5.29, 1.4, 4.19, 5.91)
"""Of the odds by the image alone, of the kept share, and of agreement, explained share and overlap, likewise."""


def refined_confidence(flow_support: float, match_support: float, mask_iou: float) -> float:
    """Return the probability that a refined pose is right; see `RefinedPose` for its three quantities."""
    return _probability((flow_support, match_support, mask_iou), REFINED_OFFSETS, REFINED_WEIGHTS)


def unrefined_confidence(soft_inlier_share: float, alignment: float) -> float:
    """Return the probability that a pose is right by its soft inliers per grid cell and its alignment."""
    return _probability((soft_inlier_share, alignment), UNREFINED_OFFSETS, UNREFINED_WEIGHTS)


def contour_confidence(agreement: float, mask_iou: float) -> float:
    """Return the probability that a pose found by its contours is right; see `ContourPose` for the quantities."""
    return _probability((agreement, mask_iou), CONTOUR_OFFSETS, CONTOUR_WEIGHTS)


def depth_confidence(quantities: Sequence[float]) -> float:
    """Return the probability that a pose finished on depth is right, by its five quantities; see `DepthPose`."""
    return _probability(quantities, DEPTH_OFFSETS, DEPTH_WEIGHTS)


def _probability(quantities: Sequence[float], offsets: Sequence[float], weights: Sequence[float]) -> float:
    logarithms = [math.log(value + offset) for value, offset in zip(quantities, offsets, strict=True)]
    log_odds = weights[-1] + math.fsum(weight * value for weight, value in zip(weights, logarithms, strict=False))
    return 1 / (1 + math.exp(-log_odds))
