from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.poses import K, noisy_pairs, random_pose

from picopose_cli.base.geometry import rotation_angle_rad
from picopose_cli.base.types import Correspondences
from picopose_cli.pose.ransac import solve_released


def test_exact_pairs_give_the_exact_pose():
    rng = np.random.default_rng(0)
    T = random_pose(rng)
    solution = solve_released(noisy_pairs(rng, T), K)
    assert rotation_angle_rad(solution.T_cam_from_obj[:3, :3], T[:3, :3]) < 1e-4
    np.testing.assert_allclose(solution.T_cam_from_obj[:3, 3], T[:3, 3], atol=1e-5)
    assert solution.inlier_ratio == 1.0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_correspondences_have_no_solution(count):
    rng = np.random.default_rng(2)
    assert solve_released(noisy_pairs(rng, random_pose(rng), count=count), K) is None


def test_degenerate_correspondences_never_raise():
    same = Correspondences(np.full((20, 2), 100.0), np.zeros((20, 3)), np.ones(20))
    solution = solve_released(same, K)
    assert solution is None or np.isfinite(solution.T_cam_from_obj).all()


def test_solutions_do_not_depend_on_threads_or_order_of_calls():
    rng = np.random.default_rng(3)
    problems = [noisy_pairs(rng, random_pose(rng), noise_px=1, outliers=0.4) for _ in range(8)]
    alone = [solve_released(pairs, K).T_cam_from_obj for pairs in problems]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pairs: solve_released(pairs, K).T_cam_from_obj, reversed(problems)))[::-1]
    np.testing.assert_array_equal(alone, together)
