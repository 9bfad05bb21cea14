"""Which estimates count, which ground truth is asked for, and which estimate found which instance."""

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
    """Return the indices of the `count` highest `visib_fracts` (G,) in rising order; of equal ones the first count."""
    return np.sort(np.argsort(-visib_fracts, kind="stable")[:count])


def match_greedily(errors: Array, thresholds: Array, asked: NDArray[np.bool_] | None = None) -> Indices:
    """Match estimates, best score first, to instances; return the instance's index or UNMATCHED, (T,E).

    `errors` (E,G) or one such array for each threshold (T,E,G); `thresholds` (T,). At each threshold an estimate takes,
    of the instances that are still free and whose error lies below the threshold, the one of the smallest error (the
    first of equal ones). An instance that is not `asked` for (G,) is taken only when no other can be. Sources: toolkit,
    pose_matching.match_poses; COCO's evaluation for instances that are not asked for.
    """
    count_est, count_gt = errors.shape[-2:]
    matched = np.full((len(thresholds), count_est), UNMATCHED, np.intp)
    if not count_gt:
        return matched
    costs = np.where(errors < thresholds[:, None, None], errors, np.inf)  # (T,E,G)
    if asked is not None:
        costs[..., ~asked] += thresholds.max()  # more than any error of an instance that is asked for
    each = np.arange(len(thresholds))
    for row in range(count_est):
        nearest = costs[:, row].argmin(axis=1)
        found = np.isfinite(costs[each, row, nearest])
        matched[found, row] = nearest[found]
        costs[each[found], :, nearest[found]] = np.inf
    return matched
