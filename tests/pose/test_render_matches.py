from __future__ import annotations

import numpy as np
import torch
from helpers.poses import random_rotation

from picopose_cli.base.geometry import make_T, project_points, transform_points
from picopose_cli.pose.render_matches import lift_matches, solve_matches, support_of_poses

CPU = torch.device("cpu")
K = np.array([[500.0, 0, 100], [0, 500, 100], [0, 0, 1]])


def problem(seed: int):
    """A bumpy surface seen at a pose, and matches with a photograph that shows it at another."""
    rng = np.random.default_rng(seed)
    T, T_true = (make_T(random_rotation(rng), np.array([0.0, 0, 0.5])) for _ in range(2))
    T_true[:3, :3] = make_T(np.eye(3), np.zeros(3))[:3, :3] @ T[:3, :3]
    T_true[:3, 3] += [0.004, -0.003, 0.01]
    depth = np.zeros((200, 200), np.float32)
    depth[40:160, 50:150] = rng.uniform(0.47, 0.53, (120, 100))
    start = rng.uniform([52, 42], [148, 158], (300, 2))
    rows, cols = np.floor(start[:, 1]).astype(int), np.floor(start[:, 0]).astype(int)
    xyz_cam = np.concatenate([start, np.ones((300, 1))], axis=1) @ np.linalg.inv(K).T * depth[rows, cols, None]
    xyz_obj = (xyz_cam - T[:3, 3]) @ T[:3, :3]
    return T, T_true, depth, start, project_points(K, transform_points(T_true, xyz_obj))


def test_lifted_matches_are_on_the_rendered_surface():
    T, _, depth, start, target = problem(0)
    outside = np.array([[5.0, 5.0], [-3, 250]])
    matches = (np.concatenate([start, outside]), np.concatenate([target, outside]), np.ones(302))
    lifted = lift_matches(matches, depth, K, T, 2.0).correspondences
    assert len(lifted.certainty) == 300
    np.testing.assert_allclose(project_points(K, transform_points(T, lifted.xyz_obj_m)), start, atol=1e-6)
    np.testing.assert_array_equal(lifted.uv_image, target)


def test_the_true_pose_is_solved_and_has_all_support():
    problems = [problem(seed) for seed in range(3)]
    matches = [
        lift_matches((start, target, np.full(300, 0.5)), depth, K, T, 1.0) for T, _, depth, start, target in problems
    ]
    assert solve_matches([], CPU) == []
    truths = [T_true for _, T_true, *_ in problems]
    for found, T_true in zip(solve_matches(matches, CPU), truths, strict=True):
        assert found is not None
        np.testing.assert_allclose(found.T_cam_from_obj, T_true, atol=1e-4)
    poses = [[T_true, T] for (T, *_), T_true in zip(problems, truths, strict=True)]
    poses[1].append(np.full((4, 4), np.nan))
    supports = support_of_poses([[one] for one in matches], poses, [1.0] * 3, CPU)
    assert [len(support) for support in supports] == [2, 3, 2]
    for support in supports:
        np.testing.assert_allclose(support[0], 150)
        assert support[1] < 75
    assert supports[1][2] == 0
    assert support_of_poses([], [], [], CPU) == []


def test_support_does_not_depend_on_how_many_poses_other_detections_have():
    rng = np.random.default_rng(5)
    T, T_true, depth, start, target = problem(0)
    noisy = target + rng.normal(0, 1, target.shape)
    matches = [lift_matches((start, noisy, rng.uniform(0, 1, 300)), depth, K, T, 1.0)]
    poses = [make_T(T_true[:3, :3], T_true[:3, 3] + rng.normal(0, 5e-4, 3)) for _ in range(12)]
    for count in (1, 2, 5, 9, 10):
        (alone,) = support_of_poses([matches], [poses[:count]], [1.0], CPU)
        beside, _ = support_of_poses([matches, matches], [poses[:count], poses], [1.0] * 2, CPU)
        np.testing.assert_array_equal(beside, alone)
