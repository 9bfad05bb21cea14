"""Perspective-n-point with RANSAC, and the choice between the hypotheses of a detection.

Both solvers are deterministic: OpenCV seeds its draws anew in every call, so neither threads nor batches matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.geometry import Floats, make_T, project_points, transform_points
from picopose_cli.structs import Correspondences

RANSAC_ITERATIONS = 150
RANSAC_PX = 2.0
REFINE_PX = 3.0
REFINE_ROUNDS = 2
MIN_PAIRS = 4
"""OpenCV raises below four pairs."""
MIN_REFINE_PAIRS = 6
"""Fewer leave Levenberg-Marquardt little to average over."""


@dataclass(frozen=True)
class PoseSolution:
    """A pose from pairs: `T_cam_from_obj` (4,4) metres, the number of inliers and their share of all pairs."""

    T_cam_from_obj: Floats
    inliers: int
    inlier_ratio: float


def solve_released(pairs: Correspondences, K: Floats) -> PoseSolution | None:
    """Return the released solution: EPnP in RANSAC, 2 px in the full image, 150 draws; None where it fails."""
    return _ransac(pairs, K, cv2.SOLVEPNP_EPNP)


def solve_refined(pairs: Correspondences, K: Floats) -> PoseSolution | None:
    """Return MAGSAC's solution after two Levenberg-Marquardt rounds on the pairs within 3 px; None where it fails."""
    solution = _ransac(pairs, K, cv2.USAC_MAGSAC)
    if solution is None:
        return None
    T = solution.T_cam_from_obj
    for _ in range(REFINE_ROUNDS):
        near = _reprojection_px(T, pairs, K) < REFINE_PX
        if near.sum() >= MIN_REFINE_PAIRS:
            T = _refine(T, pairs, near, K)
    inliers = int((_reprojection_px(T, pairs, K) < REFINE_PX).sum())
    if not np.isfinite(T).all() or T[2, 3] <= 0:
        return None
    return PoseSolution(T, inliers, inliers / len(pairs.uv_image))


def choose_released(solutions: Sequence[PoseSolution | None], fallback_poses: Floats) -> Floats:
    """Return T_cam_from_obj of the hypothesis with the highest inlier ratio, the first of equals.

    A hypothesis without a solution counts as ratio 0 with its stage-2 pose of `fallback_poses` (H,4,4).
    """
    # PARITY: a ratio, so that a hypothesis with a handful of pairs can win
    ratios = [0.0 if solution is None else solution.inlier_ratio for solution in solutions]
    return _chosen(int(np.argmax(ratios)), solutions, fallback_poses)


def choose_refined(solutions: Sequence[PoseSolution | None], fallback_poses: Floats) -> Floats:
    """Return T_cam_from_obj of the hypothesis with most inliers, the first of equals; see `choose_released`."""
    counts = [0 if solution is None else solution.inliers for solution in solutions]
    return _chosen(int(np.argmax(counts)), solutions, fallback_poses)


def _chosen(index: int, solutions: Sequence[PoseSolution | None], fallback_poses: Floats) -> Floats:
    solution = solutions[index]
    pose: Floats = fallback_poses[index] if solution is None else solution.T_cam_from_obj
    return pose


def _ransac(pairs: Correspondences, K: Floats, method: int) -> PoseSolution | None:
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
            flags=method,
        )
    except cv2.error:  # degenerate pairs: OpenCV has no other way to say so
        return None
    if not found or inliers is None or not (np.isfinite(rvec).all() and np.isfinite(tvec).all()):
        return None
    count = len(inliers)
    return PoseSolution(_pose(rvec, tvec), count, count / len(pairs.uv_image))


def _refine(T: Floats, pairs: Correspondences, near: Floats, K: Floats) -> Floats:
    rvec, _ = cv2.Rodrigues(T[:3, :3])
    rvec, tvec = cv2.solvePnPRefineLM(pairs.xyz_obj_m[near], pairs.uv_image[near], K, None, rvec, T[:3, 3:].copy())
    return _pose(rvec, tvec)


def _pose(rvec: Floats, tvec: Floats) -> Floats:
    R, _ = cv2.Rodrigues(rvec)
    return make_T(np.asarray(R), np.asarray(tvec).reshape(3))


def _reprojection_px(T: Floats, pairs: Correspondences, K: Floats) -> Floats:
    xyz_cam = transform_points(T, pairs.xyz_obj_m)
    in_front = xyz_cam[:, 2] > 0
    distance = np.full(len(xyz_cam), np.inf)
    distance[in_front] = np.linalg.norm(project_points(K, xyz_cam[in_front]) - pairs.uv_image[in_front], axis=1)
    return distance
