"""The released solver: perspective-n-point with RANSAC.

Deterministic: OpenCV seeds its draws anew in every call, so results depend neither on threads nor on batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Array, Correspondences

RANSAC_ITERATIONS = 150
RANSAC_PX = 2.0
MIN_RANSAC_CORRESPONDENCES = 4
"""OpenCV raises below four."""


@dataclass(frozen=True)
class RansacPose:
    """A pose `T_cam_from_obj` (4,4) metres, the number of its inliers and their share of all correspondences."""

    T_cam_from_obj: Array
    inliers: int
    inlier_ratio: float

    @property
    def selection_score(self) -> float:
        """Inlier ratio. PARITY: a ratio, so that a hypothesis with a handful of correspondences can be chosen."""
        return self.inlier_ratio

    @property
    def confidence(self) -> float:
        """Always 1: the released code leaves the detector's score as it is."""
        return 1.0


def solve_released(correspondences: Correspondences, K: Array) -> RansacPose | None:
    """Return the released solution: EPnP in RANSAC, 2 px in the full image, 150 draws; None if it fails.

    `K` (3,3) of the image.
    """
    if len(correspondences.uv_image) < MIN_RANSAC_CORRESPONDENCES:
        return None
    try:
        found, rvec, tvec, inliers = cv2.solvePnPRansac(
            correspondences.xyz_obj_m,
            correspondences.uv_image,
            K,
            None,
            iterationsCount=RANSAC_ITERATIONS,
            reprojectionError=RANSAC_PX,
            flags=cv2.SOLVEPNP_EPNP,
        )
    except cv2.error:  # degenerate correspondences: OpenCV has no other way to report them
        return None
    if not found or inliers is None or not (np.isfinite(rvec).all() and np.isfinite(tvec).all()):
        return None
    R, _ = cv2.Rodrigues(rvec)
    T = make_T(np.asarray(R), np.asarray(tvec).reshape(3))
    return RansacPose(T, len(inliers), len(inliers) / len(correspondences.uv_image))
