"""The robust solver for one pose in NumPy, the oracle of the batched one, and the batched one for one pose."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from picopose_cli.base.geometry import make_T, transform_points
from picopose_cli.base.types import Correspondences
from picopose_cli.pose.solve import RobustPose, solve_robust

KERNEL_SCALES = (10.0, 5.0, 2.5)
MAX_STEPS = 5
DAMPING = 1e-4


def solve_one(pairs: Correspondences, K: np.ndarray, std_px: float, T_start: np.ndarray) -> RobustPose | None:
    """Return the package's robust pose of one candidate, solved alone."""
    (pose,) = solve_robust([pairs], K[None], np.array([std_px]), T_start[None], torch.device("cpu"))
    return pose


@dataclass(frozen=True)
class PlainRows:
    """Rows with residuals W (N,2,2) (projected - uv): `uv` (N,2) px, `xyz` (N,3) m, `weight`, `kernel_scale` (N,)."""

    uv: np.ndarray
    xyz: np.ndarray
    weight: np.ndarray
    W: np.ndarray
    kernel_scale: np.ndarray


def plain_pairs(correspondences: Correspondences, std_px: float) -> PlainRows:
    """Return the rows of correspondences."""
    count = len(correspondences.certainty)
    W = np.tile(np.eye(2) / std_px, (count, 1, 1))
    return PlainRows(correspondences.uv_image, correspondences.xyz_obj_m, correspondences.certainty, W, np.ones(count))


def minimise_plainly(T: np.ndarray, rows: PlainRows, K: np.ndarray, scales=KERNEL_SCALES, steps=MAX_STEPS):
    """Return the pose (4,4) near T that minimises the weighted Geman-McClure kernels of the residuals."""
    for scale in scales:
        cost = robust_cost(T, rows, K, scale)
        for _ in range(steps):
            T_next = _step(T, rows, K, scale)
            cost_next = robust_cost(T_next, rows, K, scale)
            if not cost_next < cost:  # also true for NaN
                break
            T, cost = T_next, cost_next
    return T


def robust_cost(T: np.ndarray, rows: PlainRows, K: np.ndarray, scale: float) -> float:
    """Return the weighted sum of x / (1 + x), 1 behind the camera, of x, the squared residual in kernel scales.

    Rows of another kernel scale weigh its square more: near the truth it then makes no difference.
    """
    xyz, r = _residuals(T, rows, K)
    x = (r**2).sum(1) / (scale * rows.kernel_scale) ** 2
    return float((rows.weight * rows.kernel_scale**2) @ np.where(xyz[:, 2] > 0, x / (1 + x), 1.0))


def plain_soft_inliers(T: np.ndarray, rows: PlainRows, K: np.ndarray) -> float:
    """Return the sum of weight times exp(-r^2 / 2)."""
    xyz, r = _residuals(T, rows, K)
    return float(rows.weight @ ((xyz[:, 2] > 0) * np.exp(-0.5 * (r**2).sum(1))))


def _residuals(T: np.ndarray, rows: PlainRows, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points in the camera (N,3) and the whitened residuals (N,2)."""
    xyz = transform_points(T, rows.xyz)
    xyz[:, 2] = np.where(xyz[:, 2] == 0, 1e-30, xyz[:, 2])
    e = (xyz / xyz[:, 2:]) @ K[:2].T - rows.uv
    return xyz, np.einsum("nij,nj->ni", rows.W, e)


def _step(T: np.ndarray, rows: PlainRows, K: np.ndarray, scale: float) -> np.ndarray:
    """Return the pose after one damped Gauss-Newton step: a rotation about the object's origin, then a shift."""
    xyz, r = _residuals(T, rows, K)
    x, y, z = xyz.T
    weight = rows.weight * (z > 0) / (1 + (r**2).sum(1) / (scale * rows.kernel_scale) ** 2) ** 2
    by_point = np.zeros((len(z), 2, 3))
    by_point[:, 0] = np.stack([K[0, 0] / z, K[0, 1] / z, -(K[0, 0] * x + K[0, 1] * y) / z**2], 1)
    by_point[:, 1, 1:] = np.stack([K[1, 1] / z, -K[1, 1] * y / z**2], 1)
    by_point = rows.W @ by_point
    offset = (xyz - T[:3, 3])[:, None]
    by_update = np.concatenate([np.cross(offset, by_point), by_point], axis=2)  # (N,2,6)
    normal = np.einsum("n,nki,nkj->ij", weight, by_update, by_update)
    normal += DAMPING * np.diag(np.diag(normal))
    gradient = np.einsum("n,nki,nk->i", weight, by_update, r)
    update = -np.linalg.lstsq(normal, gradient, rcond=1e-14)[0]
    rotation, _ = cv2.Rodrigues(update[:3])
    return make_T(rotation @ T[:3, :3], T[:3, 3] + update[3:])
