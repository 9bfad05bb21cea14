"""The released solver, perspective-n-point with RANSAC, and its choice between the hypotheses of a detection.

Deterministic: OpenCV seeds its draws anew in every call, so neither threads nor batches matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Array, Correspondences

RANSAC_ITERATIONS = 150
RANSAC_PX = 2.0
MIN_PAIRS = 4
"""OpenCV raises below four pairs."""


@dataclass(frozen=True)
class PoseSolution:
    """A pose from pairs: `T_cam_from_obj` (4,4) metres, the number of inliers and their share of all pairs."""

    T_cam_from_obj: Array
    inliers: int
    inlier_ratio: float


def solve_released(pairs: Correspondences, K: Array) -> PoseSolution | None:
    """Return the released solution: EPnP in RANSAC, 2 px in the full image, 150 draws; None where it fails."""
    if len(pairs.uv_image) < MIN_PAIRS:
        return None
    try:
        found, rvec, tvec, inliers = cv2.solvePnPRansac(
            pairs.xyz_obj_m,
            pairs.uv_image,
            K,
            None,
            iterationsCount=RANSAC_ITERATIONS,
            reprojectionError=RANSAC_PX,
            flags=cv2.SOLVEPNP_EPNP,
        )
    except cv2.error:  # degenerate pairs: OpenCV has no other way to say so
        return None
    if not found or inliers is None or not (np.isfinite(rvec).all() and np.isfinite(tvec).all()):
        return None
    count = len(inliers)
    return PoseSolution(_pose(rvec, tvec), count, count / len(pairs.uv_image))


def choose_released(solutions: Sequence[PoseSolution | None], fallback_poses: Array) -> Array:
    """Return T_cam_from_obj of the hypothesis with the highest inlier ratio, the first of equals.

    A hypothesis without a solution counts as ratio 0 with its stage-2 pose of `fallback_poses` (H,4,4).
    """
    # PARITY: a ratio, so that a hypothesis with a handful of pairs can win
    ratios = [0.0 if solution is None else solution.inlier_ratio for solution in solutions]
    index = int(np.argmax(ratios))
    solution = solutions[index]
    pose: Array = fallback_poses[index] if solution is None else solution.T_cam_from_obj
    return pose


def _pose(rvec: Array, tvec: Array) -> Array:
    R, _ = cv2.Rodrigues(rvec)
    return make_T(np.asarray(R), np.asarray(tvec).reshape(3))
