"""Refinement against exact geometry: with a stage 3 that is right, what it ends at is the truth."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers.matchers import make_matcher
from helpers.meshes import make_box, write_ply
from helpers.networks import random_network
from helpers.toy_pairs import K_OBS, MESHES, toy_bank
from scipy.spatial.transform import Rotation

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import apply_affine, make_T, project_points, rotation_angle_rad, transform_points
from picopose_cli.base.types import CROP_PX, GRID_CELLS, QueryBatch
from picopose_cli.network.offsets import start_offsets
from picopose_cli.pose.correspondences import cell_centre_points
from picopose_cli.pose.estimate_renderer import EstimateRenderer, template_pose
from picopose_cli.pose.refine import Refiner, mask_iou, view_affines
from picopose_cli.pose.solve import RobustPose
from picopose_cli.rendering.mesh_size import mesh_diameter_m

CROP = np.array([[1.4, 0, -300], [0, 1.4, -190], [0, 0, 1]])


@pytest.fixture(scope="module")
def render(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "obj_000001.ply"
    write_ply(path, MESHES["box"])
    return EstimateRenderer({1: (path, "mm")})


def batch_of(count: int) -> QueryBatch:
    return QueryBatch(
        np.zeros((count, 3, CROP_PX, CROP_PX), np.float32),
        np.ones((count, CROP_PX, CROP_PX), bool),
        np.stack([CROP] * count),
        np.stack([K_OBS] * count),
        np.ones(count, int),
    )


def true_poses(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    R = Rotation.random(count, random_state=rng).as_matrix()
    return make_T(R, rng.uniform([-0.06, -0.06, 0.5], [0.06, 0.06, 0.7], (count, 3)))


def shaken(T: np.ndarray, angle_deg: float) -> np.ndarray:
    rotation = Rotation.from_rotvec(np.deg2rad(angle_deg) * np.array([0.6, -0.64, 0.48])).as_matrix()
    return make_T(rotation @ T[:, :3, :3], T[:, :3, 3] * [1.03, 1.03, 1.05])


class Exact:
    """In place of the matcher: a stage 3 that knows the true poses (N,4,4), and is off by `error` of its start."""

    def __init__(self, T_true: np.ndarray, error: float = 0.0) -> None:
        self.T_true, self.error, self.calls = T_true, error, 0
        self.device = torch.device("cpu")

    def match_views(self, _, queries, views, A_obs_from_tmpl):
        self.calls += 1
        rows, cols = np.indices((GRID_CELLS, GRID_CELLS), float)
        flows, logits = [], []
        for query, view, A in zip(queries, views, A_obs_from_tmpl, strict=True):
            xyz = cell_centre_points(view.depth_centre_m, view.K, view.A_crop_from_image, view.T_tmpl_from_obj)
            uv = project_points(K_OBS, transform_points(self.T_true[query], xyz.reshape(-1, 3)))
            target = apply_affine(CROP, uv).reshape(GRID_CELLS, GRID_CELLS, 2) / 3.5
            start = apply_affine(A, (np.stack([cols, rows], -1).reshape(-1, 2) + 0.5) * 3.5).reshape(target.shape) / 3.5
            target += self.error * (start - target)
            flows.append(np.stack([target[..., 0] - cols, target[..., 1] - rows]))
            logits.append(np.where(view.depth_centre_m > 0, 9.0, -9.0))
        return np.stack(flows), np.stack(logits)


def errors_deg(found, T_true: np.ndarray) -> np.ndarray:
    T = np.stack([poses[0].T_cam_from_obj for poses in found])
    return np.rad2deg(rotation_angle_rad(T[:, :3, :3], T_true[:, :3, :3]))


def refine(matcher, render, rounds, candidates, batch=None, query_features=()):
    batch = batch or batch_of(len(candidates))
    with ThreadPoolExecutor(2) as threads:
        return Refiner(matcher, render, rounds).refine(batch, query_features, candidates, threads)


def test_a_right_stage_3_ends_at_the_truth(render):
    T_true = true_poses(20)
    starts = [[RobustPose(T, 1.0)] for T in shaken(T_true, 15)]
    found = refine(Exact(T_true), render, 1, starts)
    assert errors_deg(found, T_true).max() < 0.1
    T = np.stack([poses[0].T_cam_from_obj for poses in found])
    np.testing.assert_allclose(T[:, :3, 3], T_true[:, :3, 3], rtol=1e-3, atol=2e-4)


def test_each_round_starts_where_the_last_one_ended(render):
    """A stage 3 that goes half of the way from its start gets further in two rounds than in one."""
    T_true = true_poses(12)
    starts = [[RobustPose(T, 1.0)] for T in shaken(T_true, 8)]
    once, twice = (errors_deg(refine(Exact(T_true, 0.5), render, n, starts), T_true) for n in (1, 2))
    assert np.median(once) < 0.75 * 8
    assert np.median(twice) < 0.75 * np.median(once)


def test_a_converged_pose_is_not_rendered_again(render):
    T_true = true_poses(3)
    exact = Exact(T_true)
    found = refine(exact, render, 5, [[RobustPose(T, 1.0)] for T in shaken(T_true, 8)])
    assert exact.calls <= 3  # converged after the first round, unchanged in the second or third
    assert errors_deg(found, T_true).max() < 0.1


def test_renders_that_do_not_fit_are_halved(render):
    T = true_poses(5)
    views = [render(1, pose) for pose in T]
    matcher, batch = make_matcher(random_network(), rules="default", obj_ids=()), batch_of(5)
    A = view_affines(T, batch, range(5), views)
    features = matcher._network.extract_offset_features(batch.inputs)
    whole = matcher.match_views(features, range(5), views, A)
    network = matcher._network.network
    extract = network.extract

    def small(inputs):
        if len(inputs) > 2:
            raise torch.cuda.OutOfMemoryError("full")
        return extract(inputs)

    network.extract = small
    for part, expected in zip(matcher.match_views(features, range(5), views, A), whole, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-4)
    network.extract = lambda _: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("full"))
    with pytest.raises(PicoPoseError, match="does not fit"):
        matcher.match_views(features, range(5), views, A)


def test_the_start_is_where_the_pose_puts_the_template(render):
    """Seen as it is, every cell of a render begins at the image of its point, to a few crop px over a whole object."""
    T = true_poses(12)
    views = [render(1, pose) for pose in T]
    A = view_affines(T, batch_of(12), range(12), views)
    exact, _ = Exact(T).match_views(None, range(12), views, A)
    start, _ = Exact(T, 1.0).match_views(None, range(12), views, A)
    seen = np.stack([view.depth_centre_m > 0 for view in views])
    off_px = np.linalg.norm(exact - start, axis=1)[seen] * 3.5
    assert np.sqrt((off_px**2).mean()) < 4
    masks = torch.from_numpy(seen)
    flow, _ = start_offsets(torch.from_numpy(A).float(), masks, 3.5)
    inside = flow.numpy().transpose(1, 0, 2, 3)[:, seen]
    np.testing.assert_allclose(inside, start.transpose(1, 0, 2, 3)[:, seen], atol=1e-3)


def test_the_candidate_that_agrees_with_its_render_wins(render):
    T_true = true_poses(4)

    class Fooled(Exact):
        def match_views(self, _, queries, views, A):
            flow, logit = super().match_views(_, queries, views, A)
            for i, (query, view) in enumerate(zip(queries, views, strict=True)):
                rotation = view.T_tmpl_from_obj[:3, :3] @ self.T_true[query][:3, :3].T
                if np.trace(rotation) < 2:  # a render of another side matches nothing
                    flow[i] = np.random.default_rng(i).uniform(0, 20, flow[i].shape)
            return flow, logit

    near, wrong = shaken(T_true, 5), shaken(T_true, 120)
    candidates = [[RobustPose(w, 9.0), RobustPose(n, 1.0)] for w, n in zip(wrong, near, strict=True)]
    found = refine(Fooled(T_true), render, 1, candidates)
    assert errors_deg(found, T_true).max() < 0.5
    assert all(len(poses) == 2 and poses[0].soft_inliers > poses[1].soft_inliers for poses in found)


def plain_mask_iou(template_mask: np.ndarray, observed_mask: np.ndarray, A: np.ndarray) -> float:
    """Pixel by pixel: is the template's pixel, from which an observation's pixel comes, inside?"""
    rows, cols = np.indices(observed_mask.shape)
    centres = np.stack([cols.ravel(), rows.ravel()], 1) + 0.5
    x, y = np.floor(apply_affine(np.linalg.inv(A), centres)).astype(int).T
    known = (x >= 0) & (x < template_mask.shape[1]) & (y >= 0) & (y < template_mask.shape[0])
    moved = np.zeros(observed_mask.size, bool)
    moved[known] = template_mask[y[known], x[known]]
    return (moved & observed_mask.ravel()).sum() / (moved | observed_mask.ravel()).sum()


def test_mask_iou_is_that_of_the_moved_mask():
    rows, cols = np.indices((CROP_PX, CROP_PX))
    disc = np.hypot(cols + 0.5 - 90, rows + 0.5 - 120) < 60
    half = disc & (cols < 90)
    assert mask_iou(disc, disc, np.eye(3)) == 1
    assert mask_iou(disc, half, np.eye(3)) == pytest.approx(0.5, abs=0.01)
    assert mask_iou(disc, np.zeros_like(disc), np.eye(3)) == 0
    cos, sin = 0.9 * np.cos(0.7), 0.9 * np.sin(0.7)
    for A in (
        np.array([[1, 0, 31], [0, 1, -22], [0, 0, 1.0]]),
        np.array([[cos, -sin, 80], [sin, cos, -20], [0, 0, 1]]),
    ):
        assert 0.1 < mask_iou(disc, half, A) < 0.9
        assert mask_iou(disc, half, A) == pytest.approx(plain_mask_iou(disc, half, A), abs=0.005)


def test_of_equal_soft_inliers_the_better_silhouette_wins(render):
    """Both candidates agree with their renders, but only one with the mask."""
    T_true = true_poses(2)
    small = T_true.copy()
    small[:, :3, 3] *= 1.6

    class Contented(Exact):
        def match_views(self, _, queries, views, A):
            flow, logit = super().match_views(_, queries, views, A)
            rows, cols = np.indices((GRID_CELLS, GRID_CELLS), float)
            for i in range(len(queries)):  # every target is where the start puts it
                at = (
                    apply_affine(A[i], (np.stack([cols, rows], -1).reshape(-1, 2) + 0.5) * 3.5).reshape(64, 64, 2) / 3.5
                )
                flow[i] = at[..., 0] - cols, at[..., 1] - rows
            return flow, logit

    masks = []
    for T in T_true:
        view = render(1, T)
        A = view_affines(T[None], batch_of(1), [0], [view])[0]
        masks.append(cv2.warpAffine(view.mask.astype(np.uint8), A[:2], (CROP_PX, CROP_PX)) > 0)
    batch = replace(batch_of(2), masks=np.stack(masks))
    candidates = [[RobustPose(s, 5.0), RobustPose(T, 5.0)] for s, T in zip(small, T_true, strict=True)]
    found = refine(Contented(T_true), render, 1, candidates, batch)
    for (best, other), T in zip(found, T_true, strict=True):
        assert abs(best.T_cam_from_obj[2, 3] / T[2, 3] - 1) < 0.1  # the other one is 1.6 times as far
        assert best.mask_iou > 0.9 > other.mask_iou > 0
        assert best.soft_inliers < 1.2 * other.soft_inliers


def test_no_round_and_no_render_leave_a_pose_as_it_is(render):
    T_true = true_poses(2)
    candidates = [[RobustPose(T, 2.0)] for T in shaken(T_true, 10)]
    exact = Exact(T_true)
    for drawn, rounds in ((render, 0), (EstimateRenderer({}), 2)):
        assert refine(exact, drawn, rounds, candidates) == [tuple(poses) for poses in candidates]
    lost = [[RobustPose(np.full((4, 4), np.nan), 0.0)]] * 2
    assert np.isnan(refine(exact, render, 1, lost)[0][0].T_cam_from_obj).all()
    assert exact.calls == 0


def test_the_render_at_a_templates_pose_is_the_template():
    mesh = make_box((0.08, 0.1, 0.06))
    bank, diameter_m = toy_bank("box", every=30), mesh_diameter_m(mesh)
    T = make_T(bank.T_tmpl_from_obj[2, :3, :3], np.array([0.0, 0, 0.37]))  # straight ahead at another distance
    np.testing.assert_allclose(template_pose(T, diameter_m, np.zeros(3)), bank.T_tmpl_from_obj[2], atol=1e-9)


def test_a_template_pose_shows_the_side_that_the_camera_sees():
    for T in true_poses(10):
        T_tmpl = template_pose(T, 0.1, np.zeros(3))
        for pose in (T, T_tmpl):
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9)
        towards = [-pose[:3, :3].T @ pose[:3, 3] / np.linalg.norm(pose[:3, 3]) for pose in (T, T_tmpl)]
        np.testing.assert_allclose(*towards, atol=1e-9)
        assert T_tmpl[2, 3] == pytest.approx(0.2)


def test_renders_equal_a_banks(render):
    bank = toy_bank("box", every=40)
    views = [render(1, T) for T in bank.T_tmpl_from_obj]
    for i, view in enumerate(views):
        np.testing.assert_array_equal(view.mask, bank.masks[i])
        np.testing.assert_allclose(view.depth_centre_m, bank.depth_centre_m[i], atol=2e-6)
        assert np.abs(view.crop_rgb.astype(int) - bank.crops_rgb[i]).mean() < 0.5


def test_without_a_mesh_nothing_is_rendered():
    with pytest.raises(PicoPoseError, match="object 3 has no mesh"):
        EstimateRenderer({})(3, np.eye(4))


def test_the_network_runs_and_no_detection_depends_on_its_neighbours(render):
    matcher = make_matcher(random_network(), rules="default", obj_ids=())
    T = true_poses(3)
    rng = np.random.default_rng(1)
    batch = batch_of(3)
    batch.inputs[:] = rng.standard_normal(batch.inputs.shape)
    candidates = [[RobustPose(pose, 1.0), RobustPose(other, 0.5)] for pose, other in zip(T, shaken(T, 20), strict=True)]
    together = refine(matcher, render, 2, candidates, batch, matcher._network.extract_offset_features(batch.inputs))
    names = ("inputs", "masks", "A_crop_from_image", "K", "obj_ids")
    for i in range(3):
        part = QueryBatch(*(getattr(batch, name)[i : i + 1] for name in names))
        features = matcher._network.extract_offset_features(part.inputs)
        (alone,) = refine(matcher, render, 2, candidates[i : i + 1], part, features)
        for a, b in zip(alone, together[i], strict=True):
            np.testing.assert_allclose(a.T_cam_from_obj, b.T_cam_from_obj, atol=1e-2)
