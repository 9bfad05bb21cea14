"""The robust solver against exact poses, OpenCV's least squares and RANSAC, and numerical derivatives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from helpers.plain_solver import solve_one
from helpers.poses import K, noisy_pairs, random_pose
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from picopose_cli.base.geometry import make_T, project_points, rotation_angle_rad, transform_points
from picopose_cli.base.types import Correspondences
from picopose_cli.pose import robust, solve
from picopose_cli.pose.ransac import solve_released
from picopose_cli.pose.residuals import pair_residuals
from picopose_cli.pose.row_blocks import RowBlocks
from picopose_cli.pose.solve import RobustPose, best_pose

STD_PX = 2.7


def near(T: np.ndarray, rng: np.random.Generator, angle_deg: float = 20.0, shift: float = 0.06) -> np.ndarray:
    """A pose as far from another one as stage 2 may be."""
    axis = rng.standard_normal(3)
    rotation = Rotation.from_rotvec(np.deg2rad(angle_deg) * axis / np.linalg.norm(axis)).as_matrix()
    return make_T(rotation @ T[:3, :3], T[:3, 3] * (1 + rng.uniform(-shift, shift, 3)))


def angle_deg(T_a: np.ndarray, T_b: np.ndarray) -> float:
    return float(np.rad2deg(rotation_angle_rad(T_a[:3, :3], T_b[:3, :3])))


def test_exact_pairs_give_the_exact_pose():
    rng = np.random.default_rng(0)
    for _ in range(10):
        T = random_pose(rng)
        pairs = noisy_pairs(rng, T)
        solution = solve_one(pairs, K, STD_PX, near(T, rng))
        np.testing.assert_allclose(solution.T_cam_from_obj, T, atol=1e-6)
        assert solution.soft_inliers == pytest.approx(len(pairs.uv_image), rel=1e-6)


def test_without_outliers_and_with_a_wide_kernel_it_is_least_squares(monkeypatch):
    rng = np.random.default_rng(1)
    monkeypatch.setattr(solve, "minimise", partial(robust.minimise, scales=(2500.0,)))
    monkeypatch.setattr(robust, "MAX_STEPS", 50)
    T = random_pose(rng)
    pairs = noisy_pairs(rng, T, noise_px=2.0)
    found = solve_one(pairs, K, STD_PX, near(T, rng)).T_cam_from_obj
    rvec, tvec = cv2.Rodrigues(T[:3, :3])[0], T[:3, 3:].copy()
    rvec, tvec = cv2.solvePnPRefineLM(pairs.xyz_obj_m, pairs.uv_image, K, None, rvec, tvec)
    np.testing.assert_allclose(found[:3, :3], cv2.Rodrigues(rvec)[0], atol=1e-5)
    np.testing.assert_allclose(found[:3, 3], tvec[:, 0], atol=1e-5)


def test_the_pose_minimises_the_weighted_kernel():
    """A general minimiser of the cost finds the same pose, with uneven certainties and a skewed camera."""
    rng = np.random.default_rng(2)
    K_skewed = K + np.array([[0, 3.0, 0], [0, 25, 0], [0, 0, 0]])
    T = random_pose(rng)
    exact = noisy_pairs(rng, T, count=150)
    uv = project_points(K_skewed, transform_points(T, exact.xyz_obj_m)) + rng.standard_normal((150, 2)) * 3
    uv[::4] += rng.uniform(-40, 40, (len(uv[::4]), 2))
    pairs = Correspondences(uv, exact.xyz_obj_m, rng.random(150))

    def cost(change: np.ndarray) -> float:
        moved = make_T(Rotation.from_rotvec(change[:3]).as_matrix() @ T[:3, :3], T[:3, 3] + change[3:])
        squared = ((project_points(K_skewed, transform_points(moved, pairs.xyz_obj_m)) - uv) ** 2).sum(1)
        squared *= (1 / STD_PX / robust.KERNEL_SCALES[-1]) ** 2
        return float((pairs.certainty * squared / (1 + squared)).sum())

    options = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 20_000, "maxfev": 20_000, "adaptive": True}
    best = minimize(cost, np.full(6, 1e-3), method="Nelder-Mead", options=options).x
    expected = make_T(Rotation.from_rotvec(best[:3]).as_matrix() @ T[:3, :3], T[:3, 3] + best[3:])
    found = solve_one(pairs, K_skewed, STD_PX, near(T, rng, 10)).T_cam_from_obj
    assert angle_deg(found, expected) < 0.1
    np.testing.assert_allclose(found[:3, 3], expected[:3, 3], rtol=2e-3, atol=2e-4)


def test_more_accurate_than_the_released_rule_from_where_stage_2_may_be():
    rng = np.random.default_rng(3)
    ours, released = [], []
    for _ in range(20):
        T = random_pose(rng)
        pairs = noisy_pairs(rng, T, noise_px=3.0, outliers=0.5)
        ours.append(angle_deg(solve_one(pairs, K, STD_PX, near(T, rng, 25)).T_cam_from_obj, T))
        released.append(angle_deg(solve_released(pairs, K).T_cam_from_obj, T))
    assert np.max(ours) < 4
    assert np.median(ours) < 0.5 * np.median(released)


def test_right_correspondences_correct_a_wrong_start():
    rng = np.random.default_rng(9)
    for _ in range(10):
        T = random_pose(rng)
        pairs = noisy_pairs(rng, T, noise_px=1.0, outliers=0.2)
        found = solve_one(pairs, K, STD_PX, near(T, rng, 170)).T_cam_from_obj
        assert angle_deg(found, T) < 1


def test_certainty_counts():
    rng = np.random.default_rng(4)
    T = random_pose(rng)
    pairs = noisy_pairs(rng, T, count=400)
    uv = pairs.uv_image.copy()
    uv[::2] += 8.0  # half of the pairs agree on another pose
    sure = np.where(np.arange(400) % 2, 1.0, 0.1)
    found = solve_one(Correspondences(uv, pairs.xyz_obj_m, sure), K, STD_PX, T).T_cam_from_obj
    moved_px = project_points(K, found[:3, 3]) - project_points(K, T[:3, 3])
    assert np.linalg.norm(moved_px) < 1.5


def count_soft_inliers(T: np.ndarray, pairs: Correspondences) -> float:
    rows = RowBlocks(pair_residuals([pairs], np.array([STD_PX]), torch.device("cpu")), torch.from_numpy(K)[None])
    return float(rows.soft_inliers(torch.from_numpy(T)[None, None]))


def test_soft_inliers_are_counted_in_crop_pixels():
    rng = np.random.default_rng(5)
    T = random_pose(rng)
    pairs = noisy_pairs(rng, T, count=50)
    moved = Correspondences(pairs.uv_image + np.array([2.0, 0]), pairs.xyz_obj_m, np.full(50, 0.5))
    expected = 25 * np.exp(-0.5 * (2.0 / STD_PX) ** 2)
    assert count_soft_inliers(T, moved) == pytest.approx(expected)
    behind = make_T(T[:3, :3], -T[:3, 3])
    assert count_soft_inliers(behind, pairs) == 0


@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_correspondences_have_no_solution(count):
    rng = np.random.default_rng(6)
    T = random_pose(rng)
    assert solve_one(noisy_pairs(rng, T, count=count), K, STD_PX, T) is None


def test_degenerate_correspondences_and_starts_never_raise():
    rng = np.random.default_rng(7)
    T = random_pose(rng)
    same = Correspondences(np.full((20, 2), 100.0), np.zeros((20, 3)), np.ones(20))
    solution = solve_one(same, K, STD_PX, T)
    assert solution is None or np.isfinite(solution.T_cam_from_obj).all()
    unsure = Correspondences(same.uv_image, rng.random((20, 3)), np.zeros(20))
    assert solve_one(unsure, K, STD_PX, T).soft_inliers == 0
    assert solve_one(noisy_pairs(rng, T), K, STD_PX, np.full((4, 4), np.nan)) is None


def test_solutions_do_not_depend_on_threads_order_or_batches(monkeypatch):
    rng = np.random.default_rng(8)
    poses = [random_pose(rng) for _ in range(8)]
    problems = [(noisy_pairs(rng, T, 300, noise_px=1, outliers=0.4), K, STD_PX, near(T, rng)) for T in poses]
    problems[3] = (noisy_pairs(rng, poses[3], count=4), *problems[3][1:])  # too few to be solved
    alone = [solve_one(*problem) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda problem: solve_one(*problem), reversed(problems)))[::-1]
    monkeypatch.setattr(solve, "SOLVED_AT_ONCE", 3)
    pairs, *arrays = zip(*problems, strict=True)
    together = solve.solve_robust(pairs, *(np.stack(array) for array in arrays), torch.device("cpu"))
    for i, expected in enumerate(alone):
        assert (expected is None) == (i == 3)
        for found in (threaded[i], together[i]):
            if expected is None:
                assert found is None
            else:
                np.testing.assert_array_equal(found.T_cam_from_obj, expected.T_cam_from_obj)
                assert found.soft_inliers == expected.soft_inliers


def test_the_best_pose_has_the_highest_selection_score_or_falls_back_on_stage_2():
    weak, strong = RobustPose(np.eye(4), 3.0), RobustPose(2 * np.eye(4), 7.0)
    fallback = np.stack([3 * np.eye(4), np.eye(4)])
    assert best_pose([None, weak, strong], fallback) is strong
    assert best_pose([weak, RobustPose(np.zeros((4, 4)), 3.0)], fallback) is weak
    unaligned = RobustPose(np.zeros((4, 4)), 5.0, alignment=0.5)
    assert best_pose([unaligned, weak], fallback) is weak
    np.testing.assert_array_equal(best_pose([None, None], fallback).T_cam_from_obj, 3 * np.eye(4))
