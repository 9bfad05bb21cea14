"""The pose from uncertain pairs by robust least squares, and the choice between the hypotheses of a detection.

A local search under a narrowing kernel does what RANSAC does: wrong pairs lose their weight. It starts from two poses,
the one that stage 3 started from and the least-squares pose of all pairs, which is right where most pairs are, however
wrong stage 2 was. There are no draws: the same pairs always give the same pose.
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
ROUNDS = 5
"""Gauss-Newton steps a kernel; fewer where the cost stops falling."""
DAMPING = 1e-4
"""Of the normal equations' diagonal."""
EVIDENCE_PX = 4.0
"""Standard deviation, crop px, of the Gaussian that says how well a pair agrees with a pose."""
MIN_PAIRS = 6
"""Fewer leave nothing to average over."""


@dataclass(frozen=True)
class RobustPose:
    """A pose `T_cam_from_obj` (4,4) metres and its evidence: in how many sure pairs' worth of agreement it stands.

    `support` in [0, 1] is another witness: what stage 1's matches say for the hypothesis that it comes from, or, after
    refinement, the overlap of its silhouette with the detection's mask.
    """

    T_cam_from_obj: Array
    evidence: float
    support: float = 1.0

    @property
    def worth(self) -> float:
        """What a pose is chosen by: two witnesses multiplied."""
        return self.evidence * self.support

    @property
    def confidence(self) -> float:
        """In [0, 1], to be multiplied with the detector's score: the mean of both, evidence as a share of all cells."""
        return math.sqrt(self.worth / GRID_CELLS**2)


@dataclass(frozen=True)
class _Placed:
    """Points in the camera `xyz_cam` (3,N), how far their images are from where they should be `residual_px` (2,N).

    `in_front` (N,) bool: of the camera; the others' numbers mean nothing.
    """

    xyz_cam: Array
    residual_px: Array
    in_front: Array

    def squared(self, scale: float) -> Array:
        """Return the squared lengths (N,) of the residuals times `scale`."""
        squared: Array = (self.residual_px**2).sum(axis=0) * scale**2
        return squared


def solve_robust(pairs: Correspondences, K: Array, crop_scale: float, T_start: Array) -> RobustPose | None:
    """Return the pose near `T_start` (4,4) that minimises the kernels of the pairs' distances, weighted by certainty.

    `K` (3,3) of the image; `crop_scale` crop px an image px: distances count in pixels of what the network saw. None
    where there are too few pairs or nothing finite in front of the camera comes out.
    """
    if len(pairs.uv_image) < MIN_PAIRS or not np.isfinite(T_start).all():
        return None
    starts = [np.asarray(T_start, np.float64), _least_squares(pairs, K)]
    found = [_narrow(T, pairs, K, crop_scale) for T in starts if T is not None]
    solutions = [RobustPose(T, evidence(T, pairs, K, crop_scale)) for T in found if _is_possible(T)]
    return max(solutions, key=lambda solution: solution.evidence, default=None)


def evidence(T_cam_from_obj: Array, pairs: Correspondences, K: Array, crop_scale: float) -> float:
    """Return the sum over the pairs of certainty times a Gaussian of the distance: a mass, in pairs, not a ratio."""
    placed = _project(T_cam_from_obj, pairs, K)
    return float(pairs.certainty @ (placed.in_front * np.exp(-0.5 * placed.squared(crop_scale / EVIDENCE_PX))))


def choose_by_evidence(solutions: Sequence[RobustPose | None], fallback_poses: Array) -> RobustPose:
    """Return the solution of most worth, the first of equals; without any the first fallback pose (H,4,4)."""
    found = [solution for solution in solutions if solution is not None]
    return max(found, key=lambda solution: solution.worth) if found else RobustPose(fallback_poses[0], 0.0)


def _least_squares(pairs: Correspondences, K: Array) -> Array | None:
    """Return the pose (4,4) that all pairs together speak for, found without a start; None where they do not say."""
    try:
        found, rvec, tvec = cv2.solvePnP(pairs.xyz_obj_m, pairs.uv_image, K, None, flags=cv2.SOLVEPNP_SQPNP)
    except cv2.error:  # degenerate pairs: OpenCV has no other way to say so
        return None
    if not found:
        return None
    R, _ = cv2.Rodrigues(rvec)
    T = make_T(np.asarray(R), np.asarray(tvec).reshape(3))
    return T if _is_possible(T) else None


def _is_possible(T: Array) -> bool:
    return bool(np.isfinite(T).all() and T[2, 3] > 0)


def _narrow(T: Array, pairs: Correspondences, K: Array, crop_scale: float) -> Array:
    """Search under one kernel after the other."""
    for kernel_px in KERNELS_PX:
        T = _descend(T, pairs, K, crop_scale, kernel_px)
    return T


def _descend(T: Array, pairs: Correspondences, K: Array, crop_scale: float, kernel_px: float) -> Array:
    """Take Gauss-Newton steps while the robust cost falls."""
    placed = _project(T, pairs, K)
    cost = _cost(placed, pairs, crop_scale / kernel_px)
    for _ in range(ROUNDS):
        T_next = _step(T, placed, pairs, K, crop_scale / kernel_px)
        placed = _project(T_next, pairs, K)
        cost_next = _cost(placed, pairs, crop_scale / kernel_px)
        if not cost_next < cost:  # not a number does not fall either
            break
        T, cost = T_next, cost_next
    return T


def _cost(placed: _Placed, pairs: Correspondences, residual_scale: float) -> float:
    """Return the weighted sum of Geman and McClure's r^2 / (1 + r^2); a pair behind the camera costs 1, the most."""
    squared = placed.squared(residual_scale)
    return float(pairs.certainty @ np.where(placed.in_front, squared / (1 + squared), 1.0))


def _project(T: Array, pairs: Correspondences, K: Array) -> _Placed:
    xyz_cam = T[:3, :3] @ pairs.xyz_obj_m.T + T[:3, 3:]  # (3,N)
    in_front = xyz_cam[2] > 0
    xyz_cam[2, ~in_front] = 1.0  # any number that divides
    return _Placed(xyz_cam, K[:2] @ (xyz_cam / xyz_cam[2]) - pairs.uv_image.T, in_front)


def _step(T: Array, placed: _Placed, pairs: Correspondences, K: Array, residual_scale: float) -> Array:
    """Return the pose after one damped step; a pair's weight is certainty / (1 + r^2)^2, the kernel's.

    A change is a turn about the object's origin, then a shift: a point moves by turn x (its offset from it) + shift.
    """
    weight = pairs.certainty * placed.in_front / (1 + placed.squared(residual_scale)) ** 2
    x, y, z = placed.xyz_cam
    offset = placed.xyz_cam - T[:3, 3:]
    zero = np.zeros_like(z)
    d_u = np.stack([K[0, 0] / z, K[0, 1] / z, -(K[0, 0] * x + K[0, 1] * y) / z**2])  # by the point's coordinates, (3,N)
    d_v = np.stack([zero, K[1, 1] / z, -K[1, 1] * y / z**2])
    normal, gradient = np.zeros((6, 6)), np.zeros(6)
    for by_point, residual_px in zip((d_u, d_v), placed.residual_px, strict=True):
        by_change = np.concatenate([_cross(offset, by_point), by_point])  # (6,N)
        weighted = by_change * weight
        normal += weighted @ by_change.T
        gradient += weighted @ residual_px
    normal += DAMPING * np.diag(np.diag(normal))
    change = -np.linalg.lstsq(normal, gradient, rcond=1e-14)[0]
    turn, _ = cv2.Rodrigues(change[:3])
    return make_T(np.asarray(turn) @ T[:3, :3], T[:3, 3] + change[3:])


def _cross(a: Array, b: Array) -> Array:
    """Return the cross products of columns, (3,N)."""
    return np.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])
