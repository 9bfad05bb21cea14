"""Ranking by score and visibility, and the greedy assignment of estimates to instances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.types import Array

UNMATCHED = -1

Indices = NDArray[np.intp]


def best_scored(scores: Array, count: int | None = None) -> Indices:
    """Return the indices of the `count` highest `scores` (E,), best first; equal scores keep their order."""
    return np.argsort(-scores, kind="stable")[:count]


def most_visible(visib_fracts: Array, count: int) -> Indices:
    """Return the indices of the `count` highest `visib_fracts` (G,), sorted; of equal ones the first are taken."""
    return np.sort(np.argsort(-visib_fracts, kind="stable")[:count])


def match_greedily(errors: Array, thresholds: Array) -> Indices:
    """Return the index of the instance that each estimate is matched to, or UNMATCHED, (T,E).

    `errors` (E,G), best-scored estimate first, or one such array for each threshold (T,E,G); `thresholds` (T,). At each
    threshold an estimate gets, of the unmatched instances with an error below the threshold, the one with the smallest
    error (the first of equal ones). An error that is NaN matches nothing.
    Source: toolkit, pose_matching.match_poses.
    """
    count_est, count_gt = errors.shape[-2:]
    matched = np.full((len(thresholds), count_est), UNMATCHED, np.intp)
    if not count_gt:
        return matched
    costs = np.where(errors < thresholds[:, None, None], errors, np.inf)  # (T,E,G)
    each = np.arange(len(thresholds))
    for row in range(count_est):
        nearest = costs[:, row].argmin(axis=1)
        found = np.isfinite(costs[each, row, nearest])
        matched[found, row] = nearest[found]
        costs[each[found], :, nearest[found]] = np.inf
    return matched
