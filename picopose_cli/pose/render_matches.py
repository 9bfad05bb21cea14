"""Matches of a render with the photograph as correspondences of the object, solved and judged in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from picopose_cli.base.geometry import backproject_pixels
from picopose_cli.base.types import Array, Correspondences
from picopose_cli.pose.residuals import PosePairs, pair_residuals
from picopose_cli.pose.row_blocks import RowBlocks
from picopose_cli.pose.solve import RobustPose, solve_robust

Matches = tuple[Array, Array, Array]
"""Positions in a render (N,2) and in the photograph (N,2), px from the outer corner, and certainties (N,)."""


@dataclass(frozen=True)
class RenderMatches:
    """The matches of one render.

    `correspondences` of the photograph's pixels and the object; `K` (3,3) px; `T_start` (4,4) metres: the pose of the
    render; `std_px`: standard deviation of right matches.
    """

    correspondences: Correspondences
    K: Array
    T_start: Array
    std_px: float

    @property
    def pairs(self) -> PosePairs:
        """The correspondences with their noise."""
        return PosePairs(self.correspondences, self.K, self.std_px)


def lift_matches(matches: Matches, depth_m: Array, K: Array, T_cam_from_obj: Array, std_px: float) -> RenderMatches:
    """Return matches as correspondences with the object, whose render at a pose has `depth_m` (S,S), 0 outside.

    A match outside of the render's silhouette is dropped.
    """
    in_render, in_photo, certainty = matches
    cols, rows = (
        np.clip(np.floor(in_render[:, i]).astype(int), 0, size - 1)
        for i, size in ((0, depth_m.shape[1]), (1, depth_m.shape[0]))
    )
    depth = depth_m[rows, cols].astype(np.float64)
    inside = depth > 0
    xyz_cam = backproject_pixels(K, in_render[inside], depth[inside])
    xyz_obj = (xyz_cam - T_cam_from_obj[:3, 3]) @ T_cam_from_obj[:3, :3]
    pairs = Correspondences(in_photo[inside], xyz_obj, certainty[inside])
    return RenderMatches(pairs, K, T_cam_from_obj, std_px)


def solve_matches(matches: Sequence[RenderMatches], device: torch.device) -> list[RobustPose | None]:
    """Return the robust pose of each render's matches, None where there is none."""
    if not matches:
        return []
    return solve_robust(
        [one.correspondences for one in matches],
        np.stack([one.K for one in matches]),
        np.array([one.std_px for one in matches]),
        np.stack([one.T_start for one in matches]),
        device,
    )


def support_of_poses(
    pools: Sequence[Sequence[RenderMatches]],
    poses: Sequence[Sequence[Array]],
    std_px: Sequence[float],
    device: torch.device,
) -> list[Array]:
    """Return the soft inliers (H,) of the H poses (4,4) of each of B detections among all its matches.

    `std_px` (B,): standard deviation by which a match counts.
    """
    if not pools:
        return []
    count = max(len(of_one) for of_one in poses)
    T = np.full((len(poses), count, 4, 4), np.nan)
    for row, of_one in enumerate(poses):
        T[row, : len(of_one)] = of_one
    joined = [_join([one.correspondences for one in pool]) for pool in pools]
    K = torch.from_numpy(np.stack([pool[0].K for pool in pools])).to(device)
    with torch.inference_mode():
        rows = RowBlocks(pair_residuals(joined, np.asarray(std_px), device), K)
        # pose by pose: products of matrices round differently by their sizes, and the batch decides the most poses
        of_poses = [rows.soft_inliers(torch.from_numpy(T[:, pose, None]).to(device)) for pose in range(count)]
        support = torch.cat(of_poses, dim=1).cpu().numpy()
    return [np.nan_to_num(support[row, : len(of_one)]) for row, of_one in enumerate(poses)]


def _join(parts: Sequence[Correspondences]) -> Correspondences:
    return Correspondences(
        np.concatenate([part.uv_image for part in parts]),
        np.concatenate([part.xyz_obj_m for part in parts]),
        np.concatenate([part.certainty for part in parts]),
    )
