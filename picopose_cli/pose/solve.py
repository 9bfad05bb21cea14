"""The pose of uncertain correspondences by robust least squares.

A local search under a narrowing kernel does the work of RANSAC: wrong correspondences lose their weight. It starts from
two poses, the stage-2 pose and the least-squares pose of all correspondences, which is right if most of them are,
however wrong stage 2 was. There are no random draws: the same correspondences always give the same pose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import GRID_CELLS, Array, Correspondences

KERNELS_PX = (40.0, 20.0, 10.0)
"""Scales of the Geman-McClure kernel, crop px: stage 2 errs by tens of crop pixels, stage 3 by several."""
MAX_STEPS = 5
"""Gauss-Newton steps per kernel; fewer if the cost stops falling."""
DAMPING = 1e-4
"""Share of the normal equations' diagonal that is added to it."""
SOFT_INLIER_PX = 4.0
"""Standard deviation, crop px, of the Gaussian by which a correspondence counts as a soft inlier of a pose."""
MIN_ROBUST_CORRESPONDENCES = 6
"""With fewer there is nothing to average over."""


@dataclass(frozen=True)
class RobustPose:
    """A pose and the quantities by which it is chosen among the poses of a detection.

    `T_cam_from_obj` (4,4) metres; `soft_inliers`: certainty-weighted number of inliers; `alignment` in [0, 1]: mean
    match probability of stage 1 under the hypothesis' 2D similarity (1: not searched). `mask_iou` in [0, 1], known
    after refinement and then used in place of `alignment`: overlap of the rendered with the detected silhouette.
    """

    T_cam_from_obj: Array
    soft_inliers: float
    alignment: float = 1.0
    mask_iou: float | None = None

    @property
    def selection_score(self) -> float:
        """Product of the soft inliers and the alignment, or the mask IoU if it is known: the best pose has the most."""
        return self.soft_inliers * (self.alignment if self.mask_iou is None else self.mask_iou)

    @property
    def confidence(self) -> float:
        """Confidence in [0, 1]: geometric mean of the selection score's two factors, soft inliers per grid cell."""
        return math.sqrt(self.selection_score / GRID_CELLS**2)


@dataclass(frozen=True)
class _Projection:
    """Points in the camera `xyz_cam` (3,N) m, and their images minus the observed ones `residual_px` (2,N) px.

    `in_front` (N,) bool: in front of the camera; the values of the other points are meaningless.
    """

    xyz_cam: Array
    residual_px: Array
    in_front: Array

    def squared(self, scale: float) -> Array:
        """Return the squared lengths (N,) of the residuals times `scale`."""
        squared: Array = (self.residual_px**2).sum(axis=0) * scale**2
        return squared


def solve_robust(correspondences: Correspondences, K: Array, crop_scale: float, T_start: Array) -> RobustPose | None:
    """Return the pose near `T_start` (4,4) that minimises the certainty-weighted kernels of the reprojection errors.

    `K` (3,3) of the image; `crop_scale` crop px per image px: errors are measured in pixels of the network's input.
    Returns None if there are too few correspondences or no finite pose in front of the camera is found.
    """
    if len(correspondences.uv_image) < MIN_ROBUST_CORRESPONDENCES or not np.isfinite(T_start).all():
        return None
    starts = [np.asarray(T_start, np.float64), _least_squares(correspondences, K)]
    found = [_narrow(T, correspondences, K, crop_scale) for T in starts if T is not None]
    poses = [RobustPose(T, count_soft_inliers(T, correspondences, K, crop_scale)) for T in found if _is_possible(T)]
    return max(poses, key=lambda pose: pose.soft_inliers, default=None)


def count_soft_inliers(T_cam_from_obj: Array, correspondences: Correspondences, K: Array, crop_scale: float) -> float:
    """Return the sum over the correspondences of certainty times a Gaussian of the reprojection error."""
    projection = _project(T_cam_from_obj, correspondences, K)
    agreement = projection.in_front * np.exp(-0.5 * projection.squared(crop_scale / SOFT_INLIER_PX))
    return float(correspondences.certainty @ agreement)


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
    return T if _is_possible(T) else None


def _is_possible(T: Array) -> bool:
    return bool(np.isfinite(T).all() and T[2, 3] > 0)


def _narrow(T: Array, correspondences: Correspondences, K: Array, crop_scale: float) -> Array:
    """Minimise under one kernel after the other."""
    for kernel_px in KERNELS_PX:
        T = _descend(T, correspondences, K, crop_scale / kernel_px)
    return T


def _descend(T: Array, correspondences: Correspondences, K: Array, residual_scale: float) -> Array:
    """Take Gauss-Newton steps while the robust cost falls."""
    projection = _project(T, correspondences, K)
    cost = _cost(projection, correspondences, residual_scale)
    for _ in range(MAX_STEPS):
        T_next = _step(T, projection, correspondences, K, residual_scale)
        projection = _project(T_next, correspondences, K)
        cost_next = _cost(projection, correspondences, residual_scale)
        if not cost_next < cost:  # also true for NaN
            break
        T, cost = T_next, cost_next
    return T


def _cost(projection: _Projection, correspondences: Correspondences, residual_scale: float) -> float:
    """Return the weighted sum of Geman and McClure's r^2 / (1 + r^2); 1, the maximum, behind the camera."""
    squared = projection.squared(residual_scale)
    return float(correspondences.certainty @ np.where(projection.in_front, squared / (1 + squared), 1.0))


def _project(T: Array, correspondences: Correspondences, K: Array) -> _Projection:
    xyz_cam = T[:3, :3] @ correspondences.xyz_obj_m.T + T[:3, 3:]  # (3,N)
    in_front = xyz_cam[2] > 0
    xyz_cam[2, ~in_front] = 1.0  # any number that divides
    return _Projection(xyz_cam, K[:2] @ (xyz_cam / xyz_cam[2]) - correspondences.uv_image.T, in_front)


def _step(
    T: Array, projection: _Projection, correspondences: Correspondences, K: Array, residual_scale: float
) -> Array:
    """Return the pose after one damped step; the weight is certainty / (1 + r^2)^2, as the kernel implies.

    An update is a rotation about the object's origin followed by a shift: to first order a point moves by the cross
    product of the rotation vector with its offset from the origin, plus the shift.
    """
    weight = correspondences.certainty * projection.in_front / (1 + projection.squared(residual_scale)) ** 2
    x, y, z = projection.xyz_cam
    offset = projection.xyz_cam - T[:3, 3:]
    zero = np.zeros_like(z)
    d_u = np.stack([K[0, 0] / z, K[0, 1] / z, -(K[0, 0] * x + K[0, 1] * y) / z**2])  # by the point's coordinates, (3,N)
    d_v = np.stack([zero, K[1, 1] / z, -K[1, 1] * y / z**2])
    normal, gradient = np.zeros((6, 6)), np.zeros(6)
    for by_point, residual_px in zip((d_u, d_v), projection.residual_px, strict=True):
        by_update = np.concatenate([_cross(offset, by_point), by_point])  # (6,N)
        weighted = by_update * weight
        normal += weighted @ by_update.T
        gradient += weighted @ residual_px
    normal += DAMPING * np.diag(np.diag(normal))
    update = -np.linalg.lstsq(normal, gradient, rcond=1e-14)[0]
    rotation, _ = cv2.Rodrigues(update[:3])
    return make_T(np.asarray(rotation) @ T[:3, :3], T[:3, 3] + update[3:])


def _cross(a: Array, b: Array) -> Array:
    """Return the cross products of columns, (3,N)."""
    return np.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])
