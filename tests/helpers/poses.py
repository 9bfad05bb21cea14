"""Random poses, and 2D-3D pairs of a known pose for the pose solvers."""

from __future__ import annotations

import numpy as np

from picopose_cli.base.geometry import make_T, project_points, transform_points
from picopose_cli.base.types import Correspondences

K = np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a uniformly distributed rotation matrix."""
    Q, R = np.linalg.qr(rng.standard_normal((3, 3)))
    Q = Q * np.sign(np.diag(R))
    return Q * np.linalg.det(Q)


def random_T(rng: np.random.Generator, t: tuple[float, float, float]) -> np.ndarray:
    """Return a random rotation with the given translation."""
    return make_T(random_rotation(rng), np.array(t, float))


def random_pose(rng: np.random.Generator) -> np.ndarray:
    """Return T_cam_from_obj of an object 0.6 m before a camera with `K`, inside its image."""
    R, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return make_T(R * np.linalg.det(R), np.array([0.05, -0.03, 0.6]))


def noisy_pairs(rng: np.random.Generator, T: np.ndarray, count=800, noise_px=0.0, outliers=0.0) -> Correspondences:
    """Return pairs of the pose `T` seen with `K`; a share of `outliers` has random image points."""
    xyz = rng.uniform(-0.05, 0.05, (count, 3))
    uv = project_points(K, transform_points(T, xyz)) + noise_px * rng.standard_normal((count, 2))
    wrong = rng.random(count) < outliers
    uv[wrong] = rng.uniform(200, 400, (int(wrong.sum()), 2))
    return Correspondences(uv, xyz, np.ones(count))
