from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.plain_solver import solve_one
from helpers.toy_pairs import MESHES, make_sample
from scipy.spatial.transform import Rotation

from picopose_cli.base.geometry import (
    invert_T,
    make_T,
    project_points,
    ray_rotation,
    rotation_angle_rad,
    transform_points,
)
from picopose_cli.pose.correspondences import (
    CELL_PX,
    affine_poses,
    cell_centre_points,
    released_correspondences,
    rotate_to_ray,
    subcell_correspondences,
)
from picopose_cli.pose.residuals import PAIR_STD_PX
from picopose_cli.training.batches import collate
from picopose_cli.training.supervision import true_affine, true_flow

K = np.array([[600.0, 0, 320], [0, 610, 240], [0, 0, 1]])


@pytest.fixture(scope="module")
def golden(shared_dir):
    with np.load(shared_dir / "golden/network.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("hypothesis", [0, 1, 2])
@pytest.mark.parametrize("query", [0, 1, 2])
def test_released_correspondences_equal_the_released_network(golden, hypothesis, query):
    view = golden["out_template_id_topk"][query, hypothesis]
    object_index = golden["query_obj_index"][query]
    T = golden["template_in_pose"][object_index, view].astype(np.float64)
    xyz = transform_points(invert_T(T), golden["template_in_pts"][object_index, view].reshape(-1, 3)).reshape(64, 64, 3)
    flow = golden[f"out_hyp{hypothesis}_flow2"][query]
    logit = golden[f"out_hyp{hypothesis}_certainty_logit2"][query, 0]

    pairs = released_correspondences(flow, logit, xyz, golden["query_in_M"][query].astype(np.float64))

    np.testing.assert_allclose(pairs.uv_image, golden[f"out_hyp{hypothesis}_corr2d_{query}"], atol=1e-4)
    np.testing.assert_allclose(pairs.xyz_obj_m, golden[f"out_hyp{hypothesis}_corr3d_m_{query}"], atol=1e-6)


@pytest.mark.parametrize("hypothesis", [0, 1, 2])
def test_affine_poses_equal_the_released_stage_2(golden, hypothesis):
    index = golden["query_obj_index"]
    views = golden["out_template_id_topk"][:, hypothesis]

    poses = affine_poses(
        golden[f"out_hyp{hypothesis}_affine"].astype(np.float64),
        golden["query_in_M"].astype(np.float64),
        golden["template_in_M"][index, views].astype(np.float64),
        np.broadcast_to(golden["query_K"], (3, 3, 3)),
        np.broadcast_to(golden["K_template"], (3, 3, 3)),
        golden["template_in_pose"][index, views].astype(np.float64),
    )

    np.testing.assert_allclose(poses, golden[f"out_hyp{hypothesis}_pose_stage2_m"], rtol=1e-4, atol=2e-4)


def test_affine_pose_is_exact_for_a_pure_inplane_turn_and_zoom():
    """Rotated about the optical axis and moved along it, the pose follows exactly from the affine."""
    T_tmpl = make_T(np.eye(3), np.array([0.0, 0, 0.8]))
    angle = 0.7
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    K_square = np.diag([600.0, 600, 1]) + np.array([[0, 0, 320], [0, 0, 240], [0, 0, 0]])
    T_obs = make_T(rotation, np.array([0.0, 0, 0.5]))
    A_crop = np.array([[2.0, 0, -500], [0, 2, -300], [0, 0, 1]])
    zoom = 0.8 / 0.5
    to_centre, back = np.eye(3), np.eye(3)
    to_centre[:2, 2], back[:2, 2] = (-320, -240), (320, 240)
    full = back @ np.diag([zoom, zoom, 1]) @ rotation @ to_centre
    A_obs_from_tmpl = A_crop @ full @ np.linalg.inv(A_crop)

    pose = affine_poses(*(value[None] for value in (A_obs_from_tmpl, A_crop, A_crop, K_square, K_square, T_tmpl)))[0]

    np.testing.assert_allclose(pose, T_obs, atol=1e-12)


def test_targets_on_the_border_or_uncertain_are_not_used():
    flow = np.zeros((2, 64, 64), np.float32)
    logit = np.full((64, 64), 1.0, np.float32)
    logit[10, 20] = 0.0  # certainty .5 exactly: not used
    flow[0, 5, 5] = 58  # target x = 63
    flow[1, 6, 6] = -6  # target y = 0
    xyz = np.arange(64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)

    pairs = released_correspondences(flow, logit, xyz, np.eye(3))

    inner = 62 * 62
    assert len(pairs.uv_image) == inner - 3
    first = pairs.xyz_obj_m[0]
    np.testing.assert_array_equal(first, xyz[1, 1])
    np.testing.assert_array_equal(pairs.xyz_obj_m[1], xyz[2, 1])  # x-major: the next row of the same column
    np.testing.assert_allclose(pairs.uv_image[0], [1.5 * CELL_PX, 1.5 * CELL_PX])


def test_subcell_correspondences_keep_the_continuous_target_and_skip_cells_without_depth():
    flow = np.full((2, 64, 64), 0.3, np.float32)
    logit = np.full((64, 64), -1.0, np.float32)
    logit[3, 4] = logit[7, 8] = 2.0
    has_depth = np.zeros((64, 64), bool)
    has_depth[3, 4] = True
    A = np.array([[2.0, 0, 10], [0, 2, 20], [0, 0, 1]])

    pairs = subcell_correspondences(flow, logit, np.ones((64, 64, 3)), has_depth, A)

    expected = (np.array([[4.3, 3.3]]) * CELL_PX - [10, 20]) / 2
    np.testing.assert_allclose(pairs.uv_image, expected, atol=1e-5)
    np.testing.assert_allclose(pairs.certainty, 1 / (1 + np.exp(-2.0)))


def test_cell_centre_points_project_onto_the_cell_centres():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.4, 0.6, (64, 64))
    A = np.array([[1.4, 0, -280], [0, 1.4, -200], [0, 0, 1]])
    R, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    R *= np.linalg.det(R)
    T = make_T(R, np.array([0.01, 0.02, 0.5]))

    xyz = cell_centre_points(depth, K, A, T)

    uv = project_points(K, transform_points(T, xyz.reshape(-1, 3)))
    crop = (uv @ A[:2, :2].T + A[:2, 2]).reshape(64, 64, 2)
    np.testing.assert_allclose(crop[5, 9], [9.5 * CELL_PX, 5.5 * CELL_PX])
    np.testing.assert_allclose(transform_points(T, xyz.reshape(-1, 3))[:, 2], depth.ravel())
    assert rotation_angle_rad(R, R) == 0


def test_turned_to_its_ray_an_object_looks_as_it_did_straight_ahead():
    """Moved along a circle around the camera and rotated with its ray, it shows the camera the same side."""
    rng = np.random.default_rng(1)
    R = Rotation.random(30, random_state=rng).as_matrix()
    t = rng.uniform([-0.5, -0.5, 0.4], [0.5, 0.5, 1.0], (30, 3))
    rotated = rotate_to_ray(make_T(R, t))
    towards_camera = -(np.swapaxes(rotated[:, :3, :3], 1, 2) @ t[..., None])[..., 0]
    straight = -(np.swapaxes(R, 1, 2) @ np.array([0, 0, 1.0])) * np.linalg.norm(t, axis=1)[:, None]
    np.testing.assert_allclose(towards_camera, straight, atol=1e-12)
    np.testing.assert_allclose(rotated[:, :3, 3], t)
    rotations = ray_rotation(t)
    np.testing.assert_allclose(rotations @ np.swapaxes(rotations, 1, 2), np.tile(np.eye(3), (30, 1, 1)), atol=1e-12)
    least = np.arccos(t[:, 2] / np.linalg.norm(t, axis=1))
    np.testing.assert_allclose(rotation_angle_rad(rotations, np.eye(3)), least, atol=1e-9)


@pytest.mark.parametrize("key", MESHES)
def test_what_stage_2_is_taught_implies_the_true_position(key):
    rng = np.random.default_rng(3)
    batch = collate([make_sample(key, rng) for _ in range(8)])
    truth = true_affine(batch.observation, batch.template)
    views = [batch.observation, batch.template]
    crops, cameras, poses = (
        [getattr(view, name).double().numpy() for view in views]
        for name in ("A_crop_from_image", "K", "T_cam_from_obj")
    )
    T = affine_poses(truth.A_obs_from_tmpl.double().numpy(), *crops, *cameras, poses[1])
    # the template's two focal lengths are not quite equal
    np.testing.assert_allclose(T[:, 2, 3], poses[0][:, 2, 3], rtol=0.02)
    found, true = (project_points(cameras[0], t[:, None, :3, 3])[:, 0] for t in (T, poses[0]))
    assert np.abs(found - true).max() < 1


@pytest.mark.parametrize("key", ["box", "ball"])
def test_noise_free_flow_gives_the_true_image_to_a_tenth_of_a_crop_pixel(key):
    """What stage 3 is taught to say, read by the refined rule, puts every cell's point where the truth has it."""
    rng = np.random.default_rng(4)
    for sample in (make_sample(key, rng) for _ in range(5)):
        batch = collate([sample])
        target = true_flow(batch, (64,))[0]
        logit = torch.where(target.valid, 9.0, -9.0)[0].numpy()
        view, A_crop = sample.template, sample.observation.A_crop_from_image
        xyz = cell_centre_points(view.depth_centre_m, view.K, view.A_crop_from_image, view.T_cam_from_obj)
        pairs = subcell_correspondences(target.flow[0].numpy(), logit, xyz, view.depth_centre_m > 0, A_crop)
        T_true, crop_scale = sample.observation.T_cam_from_obj, A_crop[0, 0]
        uv = project_points(sample.observation.K, transform_points(T_true, pairs.xyz_obj_m))
        assert len(uv) > 300
        assert np.abs(uv - pairs.uv_image).max() * crop_scale < 0.1
        start = make_T(Rotation.from_rotvec([0.2, -0.15, 0.1]).as_matrix() @ T_true[:3, :3], T_true[:3, 3] * 1.05)
        found = solve_one(pairs, sample.observation.K, PAIR_STD_PX / crop_scale, start).T_cam_from_obj
        assert np.rad2deg(rotation_angle_rad(found[:3, :3], T_true[:3, :3])) < 0.05
        np.testing.assert_allclose(found[:3, 3], T_true[:3, 3], rtol=1e-3, atol=1e-4)
