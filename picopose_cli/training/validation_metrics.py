"""Metrics of the validation: viewing directions, similarities, flow, certainty and poses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from picopose_cli.base.geometry import rotation_angle_rad, transform_points
from picopose_cli.base.types import CROP_PX, Array, TemplateBank
from picopose_cli.pose.correspondences import cell_centre_points
from picopose_cli.synthesis.samples import Sample
from picopose_cli.training.supervision import true_affine, true_flow
from picopose_cli.training.validation_stages import Attempt

NEAR_VIEW_DEG = 20.0
"""Angle within which a view counts as near; neighbours among the 162 views differ by 15 to 18 degrees."""
THRESHOLDS = np.arange(1, 11) * 0.05
"""Pose errors, relative to the object's diameter, whose recalls are averaged, as in BOP's AR."""
_SURFACE_POINTS = 400
_POINT_VIEWS = 24

Rows = dict[str, list[float]]
"""Numbers by name, one per sample."""


def view_angles_deg(T_cam_from_obj: Tensor, T_views: Tensor) -> Tensor:
    """Return the angles (B,V) between the viewing directions of poses (B,4,4) and of views (V,4,4)."""
    directions = [
        torch.nn.functional.normalize((T[:, :3, :3].transpose(1, 2) @ T[:, :3, 3:])[..., 0], dim=1)
        for T in (T_cam_from_obj, T_views)
    ]
    return torch.rad2deg((directions[0] @ directions[1].T).clamp(-1, 1).acos())


def surface_points(bank: TemplateBank) -> Array:
    """Return random points (N,3) m, object frame, on the surface that the views of a bank show."""
    chosen = range(0, len(bank.depth_centre_m), max(1, len(bank.depth_centre_m) // _POINT_VIEWS))
    points = np.concatenate(
        [
            cell_centre_points(depth, bank.K, bank.A_crop_from_image[view], bank.T_tmpl_from_obj[view])[depth > 0]
            for view in chosen
            for depth in (bank.depth_centre_m[view],)
        ]
    )
    rng = np.random.default_rng(0)
    sampled: Array = points[rng.choice(len(points), min(_SURFACE_POINTS, len(points)), replace=False)]
    return sampled


def pose_recalls(T_est: Array, T_true: Array, points_m: Array, diameter_m: float) -> tuple[float, float]:
    """Return the mean recalls of MSSD without symmetries and of ADD-S of one pose (4,4), with points (N,3) m.

    The thresholds are 5 to 50 % of the diameter.
    """
    moved, true = transform_points(T_est, points_m), transform_points(T_true, points_m)
    if not np.isfinite(moved).all():
        return 0.0, 0.0
    furthest = np.linalg.norm(moved - true, axis=1).max()
    nearest = np.linalg.norm(moved[:, None] - true[None], axis=2).min(axis=1).mean()
    return float((furthest < THRESHOLDS * diameter_m).mean()), float((nearest < THRESHOLDS * diameter_m).mean())


def average_precision(scores: Array, labels: Array) -> float:
    """Return the area under the precision-recall curve of scores (N,) for labels (N,) bool; 0 if no label is true."""
    ranked = labels[np.argsort(-scores, kind="stable")].astype(np.float64)
    if not ranked.any():
        return 0.0
    precision = ranked.cumsum() / np.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / ranked.sum())


def add_view_choice(rows: Rows, angles: Tensor, ranked: Tensor) -> None:
    """Add the errors of the views `ranked` (B,H), best first, from the angles (B,V) between poses and views."""
    chosen = angles.gather(1, ranked)
    rows["view_deg"] += chosen[:, 0].tolist()
    rows["view_deg_best_possible"] += angles.amin(1).tolist()
    rows["view_top1"] += (chosen[:, 0] < NEAR_VIEW_DEG).double().tolist()
    rows["view_top5"] += (chosen < NEAR_VIEW_DEG).any(1).double().tolist()


def add_affine(rows: Rows, name: str, attempt: Attempt) -> None:
    """Add the errors of the estimated similarities."""
    pairs = attempt.pairs
    truth = true_affine(pairs.observation, pairs.template)
    A = attempt.A_obs_from_tmpl
    origin = truth.origin_tmpl_crop[:, None]
    moved = (origin @ A[:, :2, :2].transpose(1, 2))[:, 0] + A[:, :2, 2] - origin[:, 0]
    angle = torch.atan2(A[:, 1, 0], A[:, 0, 0]) - truth.angle_rad
    rows[f"{name}_translation_px"] += (moved - truth.translation_px).norm(dim=1).tolist()
    rows[f"{name}_log_scale"] += (A[:, :2, 0].norm(dim=1) / truth.scale).log().abs().tolist()
    rows[f"{name}_inplane_deg"] += torch.rad2deg(torch.atan2(angle.sin(), angle.cos()).abs()).tolist()


def add_flow(rows: Rows, name: str, attempt: Attempt) -> None:
    """Add the mean end-point errors of every level in crop px, of each sample with valid cells."""
    grids = tuple(flow.shape[-1] for flow in attempt.offsets.flows)
    for grid, flow, truth in zip(grids, attempt.offsets.flows, true_flow(attempt.pairs, grids), strict=True):
        error = (flow - truth.flow).norm(dim=1) * truth.valid
        cells = truth.valid.sum((1, 2))
        means = (error.sum((1, 2)) / cells.clamp(min=1) * CROP_PX / grid)[cells > 0]
        rows[f"{name}_flow_{grid}_px"] += means.tolist()


def add_poses(rows: Rows, poses: Mapping[str, Array], samples: Sequence[Sample], points_m: Array) -> None:
    """Add the errors of poses (B,4,4) by name, with the object's surface points (N,3) m."""
    for name, T in poses.items():
        for T_est, sample in zip(T, samples, strict=True):
            T_true = sample.observation.T_cam_from_obj
            mssd, adds = pose_recalls(T_est, T_true, points_m, sample.diameter_m)
            rows[f"{name}_mssd"].append(mssd)
            rows[f"{name}_adds"].append(adds)
            rows[f"{name}_deg"].append(float(np.rad2deg(rotation_angle_rad(T_est[:3, :3], T_true[:3, :3]))))
