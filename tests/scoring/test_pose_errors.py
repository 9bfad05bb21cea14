"""Pose errors against plain versions that follow the definitions word by word."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.fisheyes import QUEST3_GRAY1, cam_model
from helpers.meshes import make_ball, make_box
from helpers.poses import random_rotation
from hypothesis import example, given, settings
from hypothesis import strategies as st

from picopose_cli.base.cameras import Pinhole, parse_camera
from picopose_cli.base.geometry import make_T, project_points, transform_points
from picopose_cli.base.symmetries import symmetry_transforms
from picopose_cli.base.types import Mesh, ObjectInfo
from picopose_cli.rendering.software import render_depth
from picopose_cli.scoring.pose_errors import (
    add,
    adds,
    make_point_set,
    mspd,
    mssd,
    overlapping_sphere_images,
    overlapping_spheres,
)
from picopose_cli.scoring.thresholds import VSD_TAUS
from picopose_cli.scoring.vsd import GRID_PER_PX, make_distance_map, place_on_grid, vsd

K = np.array([[300.0, 0, 101.3], [0, 310.0, 74.8], [0, 0, 1]])
SIZE_HW = (150, 200)
NO_DISCRETE = np.empty((0, 4, 4))


def poses(rng, count, spread_m=0.05, depth_m=0.6):
    R = np.stack([random_rotation(rng) for _ in range(count)])
    return make_T(R, rng.normal(0, spread_m, (count, 3)) + np.array([0, 0, depth_m]))


def plain_symmetric_error(T_est, T_gt, points, symmetries, project):
    worst = []
    for symmetry in symmetries:
        difference = project(transform_points(T_est, points)) - project(transform_points(T_gt @ symmetry, points))
        worst.append(np.linalg.norm(difference, axis=1).max())
    return min(worst)


def round_object(axis=(0.0, 0.0, 1.0), offset=(0.0, 0.0, 0.0), discrete=NO_DISCRETE):
    return ObjectInfo(1, 0.1, discrete, ((np.array(axis), np.array(offset)),))


SYMMETRIES = {
    "none": ObjectInfo(1, 0.1, NO_DISCRETE, ()),
    "discrete": ObjectInfo(1, 0.1, make_T(np.diag([-1.0, -1, 1])[None], np.array([[0.001, 0, 0]])), ()),
    "continuous": round_object(offset=(0.002, 0.001, 0)),
    "both": round_object(discrete=make_T(np.diag([1.0, -1, -1])[None], np.zeros((1, 3)))),
}


@pytest.mark.parametrize("kind", SYMMETRIES)
@pytest.mark.parametrize("error", ["mssd", "mspd"])
def test_symmetric_errors_equal_the_full_search(kind, error):
    rng = np.random.default_rng(3)
    T_est, T_gt = poses(rng, 3), poses(rng, 2)
    points = rng.normal(0, 0.04, (60, 3))
    symmetries = symmetry_transforms(SYMMETRIES[kind])
    if error == "mssd":
        found = mssd(T_est, T_gt, points, symmetries)
        wanted = [[plain_symmetric_error(e, g, points, symmetries, lambda xyz: xyz) for g in T_gt] for e in T_est]
    else:
        found = mspd(T_est, T_gt, Pinhole(K), points, symmetries)
        wanted = [
            [plain_symmetric_error(e, g, points, symmetries, lambda xyz: project_points(K, xyz)) for g in T_gt]
            for e in T_est
        ]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", SYMMETRIES)
def test_errors_above_the_limit_are_infinite_and_the_others_as_without(kind):
    rng = np.random.default_rng(8)
    T_gt, points = poses(rng, 4), rng.normal(0, 0.04, (60, 3))
    T_est = np.concatenate([poses(rng, 4), T_gt @ make_T(np.eye(3), np.array([0.01, 0.0, 0.02]))])
    symmetries = symmetry_transforms(SYMMETRIES[kind])
    for limit, whole, cut in (
        (0.1, mssd(T_est, T_gt, points, symmetries), mssd(T_est, T_gt, points, symmetries, limit_m=0.1)),
        (
            30,
            mspd(T_est, T_gt, Pinhole(K), points, symmetries),
            mspd(T_est, T_gt, Pinhole(K), points, symmetries, limit_px=30),
        ),
    ):
        assert 0 < (whole <= limit).sum() < whole.size
        np.testing.assert_array_equal(cut, np.where(whole <= limit, whole, np.inf))


@pytest.mark.parametrize("kind", SYMMETRIES)
def test_one_pair_has_the_errors_that_it_has_among_others(kind):
    rng = np.random.default_rng(9)
    points, symmetries = rng.normal(0, 0.04, (60, 3)), symmetry_transforms(SYMMETRIES[kind])
    T_est, T_gt = poses(rng, 3), poses(rng, 2)
    T_est[0] = T_gt[0] @ make_T(np.eye(3), np.array([0.01, 0.0, 0.02]))
    T_est[2, 0, 3] = np.nan
    whole_m = mssd(T_est, T_gt, points, symmetries, limit_m=0.1)
    whole_px = mspd(T_est, T_gt, Pinhole(K), points, symmetries, limit_px=60)
    assert np.isinf(whole_m).any()
    assert np.isfinite(whole_m).any()
    for row, column in np.ndindex(3, 2):
        est, gt = T_est[[row]], T_gt[[column]]
        assert mssd(est, gt, make_point_set(points), symmetries, limit_m=0.1)[0, 0] == whole_m[row, column]
        assert mspd(est, gt, Pinhole(K), points, symmetries, limit_px=60)[0, 0] == whole_px[row, column]


def test_many_pairs_are_cut_into_parts(monkeypatch):
    rng = np.random.default_rng(4)
    T_est, T_gt, points = poses(rng, 5), poses(rng, 4), rng.normal(0, 0.04, (30, 3))
    symmetries = symmetry_transforms(SYMMETRIES["discrete"])
    whole = mssd(T_est, T_gt, points, symmetries)
    monkeypatch.setattr("picopose_cli.scoring.pose_errors.BATCH_POINTS", 100)
    np.testing.assert_array_equal(mssd(T_est, T_gt, points, symmetries), whole)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), step=st.integers(0, 314))
def test_a_turn_by_a_symmetry_is_no_error(seed, step):
    rng = np.random.default_rng(seed)
    info = round_object(rng.standard_normal(3), rng.normal(0, 0.03, 3))
    symmetries = symmetry_transforms(info)
    T_gt, points = poses(rng, 1), rng.normal(0, 0.04, (20, 3))
    T_est = T_gt @ symmetries[step]
    assert mssd(T_est, T_gt, points, symmetries)[0, 0] < 1e-12
    assert mspd(T_est, T_gt, Pinhole(K), points, symmetries)[0, 0] < 1e-8


def test_symmetries_hold_identity_discrete_and_continuous():
    identity = symmetry_transforms(SYMMETRIES["none"])
    np.testing.assert_array_equal(identity, np.eye(4)[None])
    assert len(symmetry_transforms(SYMMETRIES["discrete"])) == 2
    turns = symmetry_transforms(SYMMETRIES["continuous"])
    assert len(turns) == 315  # ceil(pi / 0.01)
    np.testing.assert_allclose(turns[0], np.eye(4), atol=1e-15)
    assert len(symmetry_transforms(SYMMETRIES["both"])) == 630
    axis_point = np.array([[0.002, 0.001, 0.7]])
    np.testing.assert_allclose(transform_points(turns, axis_point[None]), np.tile(axis_point, (315, 1, 1)), atol=1e-15)


def test_points_behind_the_camera_do_not_break_the_projection_error():
    T_gt = make_T(np.eye(3)[None], np.array([[0, 0, 0.5]]))
    T_est = make_T(np.eye(3)[None], np.array([[0, 0, 0.0]]))
    points = np.array([[0.0, 0, 0], [0.01, 0, 0]])  # the estimate puts them into the camera's centre
    assert mspd(T_est, T_gt, Pinhole(K), points, np.eye(4)[None])[0, 0] == np.inf


def test_no_estimates_or_no_instances_give_empty_errors():
    rng = np.random.default_rng(0)
    none, some, points = np.empty((0, 4, 4)), poses(rng, 2), rng.normal(0, 0.04, (5, 3))
    for error in (
        mssd(none, some, points, np.eye(4)[None]),
        mspd(none, some, Pinhole(K), points, np.eye(4)[None]),
        add(none, some, points),
        adds(none, some, points),
    ):
        assert error.shape == (0, 2)
    assert mssd(some, none, points, np.eye(4)[None]).shape == (2, 0)
    assert adds(some, none, points).shape == (2, 0)


def test_average_distances_equal_the_definition():
    rng = np.random.default_rng(5)
    T_est, T_gt, points = poses(rng, 3), poses(rng, 2), rng.normal(0, 0.04, (40, 3))
    for row, e in enumerate(T_est):
        for column, g in enumerate(T_gt):
            at_est, at_gt = transform_points(e, points), transform_points(g, points)
            distances = np.linalg.norm(at_gt[:, None] - at_est[None], axis=2)
            np.testing.assert_allclose(add(T_est, T_gt, points)[row, column], np.diag(distances).mean(), atol=1e-12)
            np.testing.assert_allclose(adds(T_est, T_gt, points)[row, column], distances.min(axis=1).mean(), atol=1e-12)


def test_sphere_rules():
    T_gt = make_T(np.eye(3)[None], np.array([[0.0, 0, 1]]))
    sides_m = np.array([0.0, 0.0999, 0.1, 0.3])
    T_est = make_T(np.tile(np.eye(3), (4, 1, 1)), np.stack([sides_m, np.zeros(4), np.ones(4)], axis=1))
    assert overlapping_spheres(T_est, T_gt, 0.1)[:, 0].tolist() == [True, True, False, False]
    assert overlapping_sphere_images(T_est, T_gt, 0.1)[:, 0].tolist() == [True, True, False, False]
    behind = T_est * np.array([[[1], [1], [-0.5], [1]]])
    assert not overlapping_sphere_images(behind, T_gt, 0.1).any()
    # in the image the spheres still meet when one is far behind the other
    far = make_T(np.eye(3)[None], np.array([[0.0, 0, 5]]))
    assert overlapping_sphere_images(far, T_gt, 0.1).all()
    assert not overlapping_spheres(far, T_gt, 0.1).any()


def plain_vsd(depth_est, depth_gt, depth_test, tolerance_m, diameter_m, taus):
    """The definition on whole images, as the toolkit writes it."""
    rows, cols = np.indices(depth_test.shape)
    rays = np.sqrt(((cols - K[0, 2]) / K[0, 0]) ** 2 + ((rows - K[1, 2]) / K[1, 1]) ** 2 + 1)
    est, gt, test = (depth * rays for depth in (depth_est, depth_gt, depth_test))

    def visible(model):
        behind = model.astype(np.float32) - test.astype(np.float32)
        return ((behind <= tolerance_m) | (test == 0)) & (model > 0)

    visible_gt = visible(gt)
    visible_est = visible(est) | (visible_gt & (est > 0))
    both, either = visible_gt & visible_est, visible_gt | visible_est
    if not either.any():
        return np.ones(len(taus))
    apart = np.abs(gt[both] - est[both]) / diameter_m
    return np.array([((apart >= tau).sum() + either.sum() - both.sum()) / either.sum() for tau in taus])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shift_m=st.sampled_from([0.0, 0.01, 0.04, 0.3]))
@example(seed=20673032, shift_m=0.01)  # an edge passes through the centre of a pixel
def test_vsd_in_boxes_equals_the_definition_on_whole_images(seed, shift_m):
    rng = np.random.default_rng(seed)
    mesh = make_box((0.08, 0.1, 0.06))
    T_gt = poses(rng, 1)[0]
    T_est = T_gt @ make_T(np.eye(3), rng.normal(0, shift_m, 3))
    measured = render_depth(mesh, K, T_gt, (0, 0, 200, 150)) * (1 + rng.normal(0, 0.004, SIZE_HW)).astype(np.float32)
    measured[rng.random(SIZE_HW) < 0.2] = 0
    measured[40:80, 60:110] = rng.choice([0.3, 2.0])  # something before or behind the object
    surfaces, whole = [], []
    for T in (T_est, T_gt):
        xyz_cam_m, box = place_on_grid(mesh.vertices_m, T, K, SIZE_HW)
        placed = Mesh(xyz_cam_m, mesh.faces)
        boxed = render_depth(placed, K, np.eye(4), box)
        surfaces.append(make_distance_map(boxed, box, measured, K, 0.015))
        of_image = render_depth(placed, K, np.eye(4), (0, 0, 200, 150))
        inside = slice(box[1], box[3]), slice(box[0], box[2])
        assert np.count_nonzero(of_image) == np.count_nonzero(of_image[inside])
        assert np.count_nonzero((of_image[inside] > 0) != (boxed > 0)) <= 2  # rounding decides on pixels at an edge
        of_image[inside] = boxed
        whole.append(of_image)
    found = vsd(*surfaces, 0.14, VSD_TAUS)
    np.testing.assert_allclose(found, plain_vsd(*whole, measured, 0.015, 0.14, VSD_TAUS), atol=1e-12)


def test_vsd_of_objects_that_are_not_seen_is_the_worst():
    mesh = make_ball((0.05, 0.05, 0.05))
    measured = np.full(SIZE_HW, 0.2, np.float32)  # a wall before everything
    T = make_T(np.eye(3), np.array([0.0, 0, 0.6]))
    xyz_cam_m, box = place_on_grid(mesh.vertices_m, T, K, SIZE_HW)
    depth_m = render_depth(Mesh(xyz_cam_m, mesh.faces), K, np.eye(4), box)
    hidden = make_distance_map(depth_m, box, measured, K, 0.015)
    assert not hidden.visible.any()
    np.testing.assert_array_equal(vsd(hidden, hidden, 0.1, VSD_TAUS), np.ones(10))


def test_vertices_move_to_the_grid_by_less_than_a_hundredth_pixel_and_stay_in_their_box():
    rng = np.random.default_rng(7)
    points = rng.normal(0, 0.03, (200, 3))
    for T in poses(rng, 20):
        xyz_cam_m, (x0, y0, x1, y1) = place_on_grid(points, T, K, SIZE_HW)
        uv = project_points(K, xyz_cam_m)
        assert np.abs(uv - project_points(K, transform_points(T, points))).max() <= 0.5 / GRID_PER_PX + 1e-9
        np.testing.assert_allclose(uv * GRID_PER_PX, np.round(uv * GRID_PER_PX), atol=1e-6)
        inside = (uv >= 0).all(axis=1) & (uv < [200, 150]).all(axis=1)
        assert ((uv[inside] >= [x0 - 0.01, y0 - 0.01]) & (uv[inside] <= [x1 + 0.01, y1 + 0.01])).all()


@pytest.mark.parametrize("t_m", [(5.0, 0, 0.6), (-5.0, 0, 0.6), (0, 5.0, 0.6), (0, -5.0, 0.6)])
def test_an_object_beside_the_image_has_an_empty_box_and_surface(t_m):
    mesh = make_box((0.08, 0.1, 0.06))
    xyz_cam_m, box = place_on_grid(mesh.vertices_m, make_T(np.eye(3), np.array(t_m)), K, SIZE_HW)
    depth_m = render_depth(Mesh(xyz_cam_m, mesh.faces), K, np.eye(4), box)
    surface = make_distance_map(depth_m, box, np.ones(SIZE_HW, np.float32), K, 0.015)
    assert surface.visible.size == 0
    np.testing.assert_array_equal(vsd(surface, surface, 0.1, VSD_TAUS), np.ones(10))


def test_an_object_around_the_camera_gets_the_whole_image():
    mesh = make_box((0.4, 0.4, 0.4))
    _, box = place_on_grid(mesh.vertices_m, np.eye(4), K, SIZE_HW)
    assert box == (0, 0, 200, 150)


def test_mspd_of_real_calibrations_equals_an_independent_implementation(shared_dir):
    golden = np.load(shared_dir / "golden/cameras/cameras.npz")
    for name, model in json.loads((shared_dir / "golden/cameras/cameras.json").read_text()).items():
        camera, points = parse_camera({"cam_model": model}).model, golden[f"{name}/points_mm"] / 1000
        T = golden[f"{name}/T_gt_est_mm"].copy()
        T[..., :3, 3] /= 1000
        found = [mspd(est[None], gt[None], camera, points, np.eye(4)[None])[0, 0] for gt, est in T]
        np.testing.assert_allclose(found, golden[f"{name}/mspd_px"], rtol=0, atol=1e-6)


def test_mspd_of_a_fisheye_is_the_smallest_over_symmetries_of_the_largest_distance():
    rng = np.random.default_rng(5)
    camera = parse_camera({"cam_model": cam_model(QUEST3_GRAY1)}).model
    points, symmetries = rng.normal(0, 0.05, (60, 3)), np.stack([np.eye(4), np.diag([-1.0, -1, 1, 1])])
    T_est, T_gt = (make_T(random_rotation(rng), np.array([x, 0.1, 0.5]))[None] for x in (0.4, 0.42))
    seen = [camera.project(transform_points(T, points)) for T in (T_est[0], *(T_gt[0] @ symmetries))]
    expected = min(np.linalg.norm(seen[0] - other, axis=1).max() for other in seen[1:])
    np.testing.assert_allclose(mspd(T_est, T_gt, camera, points, symmetries), [[expected]], rtol=0, atol=1e-9)
