"""The poses of uncertain correspondences by robust least squares.

A local search under a narrowing kernel does the work of RANSAC: wrong correspondences lose their weight. It starts from
two poses, the stage-2 pose and the least-squares pose of all correspondences, which is right if most of them are,
however wrong stage 2 was. There are no random draws: the same correspondences always give the same pose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import GRID_CELLS, Array, Correspondences
from picopose_cli.pose.close_ups import MAX_SIDE_PX
from picopose_cli.pose.confidence import unrefined_confidence
from picopose_cli.pose.residuals import PosePairs, pair_residuals
from picopose_cli.pose.robust import minimise
from picopose_cli.pose.row_blocks import RowBlocks

MIN_ROBUST_CORRESPONDENCES = 6
"""With fewer there is nothing to average over."""
SOLVED_AT_ONCE = 128
"""Candidates whose rows are held in memory at once."""


@dataclass(frozen=True)
class RobustPose:
    """A pose and the quantities by which it is chosen among the poses of a detection.

    `T_cam_from_obj` (4,4) metres; `soft_inliers`: certainty-weighted number of inliers; `alignment` in [0, 1]: mean
    match probability of stage 1 under the hypothesis' 2D similarity (1: not searched); `pairs` that it was solved from;
    `side_px` of the detection's close-up.
    """

    T_cam_from_obj: Array
    soft_inliers: float
    alignment: float = 1.0
    pairs: PosePairs | None = None
    side_px: int = MAX_SIDE_PX

    @property
    def selection_score(self) -> float:
        """Product of the soft inliers and the alignment: the best pose has the most."""
        return self.soft_inliers * self.alignment

    @property
    def quantities(self) -> tuple[float, float, float]:
        """What the confidence is made of: soft inliers per grid cell, alignment, and share of the largest side."""
        return self.soft_inliers / GRID_CELLS**2, self.alignment, self.side_px / MAX_SIDE_PX

    @property
    def confidence(self) -> float:
        """Probability that the pose is right."""
        return unrefined_confidence(*self.quantities)


def solve_robust(
    correspondences: Sequence[Correspondences],
    K: Array,
    std_px: Array,
    T_start: Array,
    device: torch.device,
) -> list[RobustPose | None]:
    """Return, for each of B candidates, the pose that minimises the weighted kernels of the reprojection errors.

    `K` (B,3,3) of the images; `std_px` (B,) image px: standard deviation of right correspondences; `T_start` (B,4,4)
    metres. A pose is None if there are too few correspondences, if the start is not finite, or
    if no finite pose in front of the camera is found. It is the same to the bit in every batch.
    """
    found: list[RobustPose | None] = []
    for first in range(0, len(correspondences), SOLVED_AT_ONCE):
        part = slice(first, first + SOLVED_AT_ONCE)
        found += _solve(correspondences[part], K[part], std_px[part], T_start[part], device)
    return found


def _solve(
    correspondences: Sequence[Correspondences],
    K: Array,
    std_px: Array,
    T_start: Array,
    device: torch.device,
) -> list[RobustPose | None]:
    starts = np.stack([_starts(*one) for one in zip(correspondences, K, T_start, strict=True)])  # (B,2,4,4)
    rows = RowBlocks(pair_residuals(correspondences, std_px, device), torch.from_numpy(K.astype(float)).to(device))
    T = minimise([rows], torch.from_numpy(starts).to(device))
    soft_inliers, poses = rows.soft_inliers(T).cpu().numpy(), T.cpu().numpy()
    soft_inliers[~is_possible(poses)] = -1
    best = soft_inliers.argmax(axis=1)  # the first of equals
    return [
        RobustPose(poses[i, start], float(soft_inliers[i, start])) if soft_inliers[i, start] >= 0 else None
        for i, start in enumerate(best)
    ]


def _starts(correspondences: Correspondences, K: Array, T_start: Array) -> Array:
    """Return the poses (2,4,4) that the search starts from; NaN stands for none."""
    starts = np.full((2, 4, 4), np.nan)
    if len(correspondences.uv_image) >= MIN_ROBUST_CORRESPONDENCES and np.isfinite(T_start).all():
        starts[0] = T_start
        least_squares = _least_squares(correspondences, K)
        if least_squares is not None:
            starts[1] = least_squares
    return starts


def best_pose(poses: Sequence[RobustPose | None], fallback_poses: Array) -> RobustPose:
    """Return the pose of the highest selection score, the first of equals; if none the first of (H,4,4)."""
    found = [pose for pose in poses if pose is not None]
    return max(found, key=lambda pose: pose.selection_score) if found else RobustPose(fallback_poses[0], 0.0)


def _least_squares(correspondences: Correspondences, K: Array) -> Array | None:
    """Return the least-squares pose (4,4) of all correspondences, found without a start; None if there is none."""
    try:
        found, rvec, tvec = cv2.solvePnP(
            correspondences.xyz_obj_m, correspondences.uv_image, K, None, flags=cv2.SOLVEPNP_SQPNP
        )
    except cv2.error:  # degenerate correspondences: OpenCV has no other way to report them
        return None
    if not found:
        return None
    R, _ = cv2.Rodrigues(rvec)
    T = make_T(np.asarray(R), np.asarray(tvec).reshape(3))
    return T if is_possible(T) else None


def is_possible(T: Array) -> Array:
    """Return whether poses (...,4,4) are finite and in front of the camera."""
    possible: Array = np.isfinite(T).all(axis=(-2, -1)) & (T[..., 2, 3] > 0)
    return possible
