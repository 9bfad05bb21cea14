"""Supervision against analytic geometry, and the rotation of observations against the supervision."""

from __future__ import annotations

from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import torch
from helpers.poses import random_rotation
from helpers.toy_pairs import make_sample
from scipy.spatial.transform import Rotation

from picopose_cli.base.geometry import apply_affine, invert_T, make_T, project_points, transform_points
from picopose_cli.pose.correspondences import affine_poses
from picopose_cli.synthesis.samples import CropView, Sample
from picopose_cli.templates.crops import crop_affine, normalise_bgr
from picopose_cli.training import augment
from picopose_cli.training.augment import rotate_observations
from picopose_cli.training.batches import PairBatch, collate, network_inputs
from picopose_cli.training.losses import perturbed_affine, sample_draws
from picopose_cli.training.supervision import DEPTH_TOLERANCE, depth_on_grid, true_affine, true_flow

GRIDS = (16, 32, 64)
K_TMPL = np.array([[572.4, 0, 320], [0, 572.4, 240], [0, 0, 1.0]])
K_OBS = np.array([[650.0, 0, 300], [0, 650.0, 260], [0, 0, 1]])
BOX_TMPL, BOX_OBS = (140, 340, 220, 420), (160, 360, 200, 400)


def cell_centres(grid: int) -> np.ndarray:
    """Crop px (g*g,2) of the cells' centres, row-major."""
    centre = (np.arange(grid) + 0.5) * 224 / grid
    return np.stack(np.meshgrid(centre, centre), axis=-1).reshape(-1, 2)


def rays(K: np.ndarray, A: np.ndarray, crop_px: np.ndarray) -> np.ndarray:
    uv = apply_affine(np.linalg.inv(A), crop_px)
    return np.concatenate([uv, np.ones((len(uv), 1))], axis=1) @ np.linalg.inv(K).T


def plane_depth(K: np.ndarray, A: np.ndarray, T: np.ndarray, grid: int = 64) -> np.ndarray:
    """Depth (g,g) of the object's plane z = 0 at the cells' centres."""
    normal, origin = T[:3, 2], T[:3, 3]
    return ((normal @ origin) / (rays(K, A, cell_centres(grid)) @ normal)).reshape(grid, grid)


def plane_view(K: np.ndarray, box: tuple[int, int, int, int], T: np.ndarray) -> CropView:
    A = crop_affine(box).astype(np.float64)
    depth = plane_depth(K, A, T).astype(np.float32)
    return CropView(np.zeros((224, 224, 3), np.uint8), np.ones((224, 224), bool), depth, K, A, T)


def plane_batch(T_obs: np.ndarray, T_tmpl: np.ndarray) -> PairBatch:
    sample = Sample("plane", 0.2, plane_view(K_OBS, BOX_OBS, T_obs), plane_view(K_TMPL, BOX_TMPL, T_tmpl))
    return collate([sample])


def poses_of(batch: PairBatch, A: torch.Tensor) -> np.ndarray:
    observation, template = batch.observation, batch.template
    return affine_poses(
        A.double().numpy(), observation.A_crop_from_image.numpy(), template.A_crop_from_image.numpy(),
        observation.K.numpy(), template.K.numpy(), template.T_cam_from_obj.numpy(),
    )  # fmt: skip


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.5, np.pi])
def test_a_turn_and_a_zoom_come_back_exactly(angle: float) -> None:
    R_tmpl = random_rotation(np.random.default_rng(1))
    T_tmpl = make_T(R_tmpl, np.array([0, 0, 0.5]))
    rotation = Rotation.from_rotvec([0, 0, angle]).as_matrix()
    T_obs = make_T(rotation @ R_tmpl, np.array([0.03, -0.02, 0.8]))
    batch = plane_batch(T_obs, T_tmpl)
    truth = true_affine(batch.observation, batch.template)
    np.testing.assert_allclose(poses_of(batch, truth.A_obs_from_tmpl)[0], T_obs, atol=2e-6)
    assert np.cos(truth.angle_rad.item() - angle) == pytest.approx(1, abs=1e-6)


def test_the_angle_is_the_first_of_the_released_euler_angles() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        R_obs, R_tmpl = random_rotation(rng), random_rotation(rng)
        batch = plane_batch(make_T(R_obs, np.array([0.01, 0, 0.6])), make_T(R_tmpl, np.array([0, 0, 0.5])))
        expected = Rotation.from_matrix(R_obs @ R_tmpl.T).as_euler("zxy")[0]
        assert true_affine(batch.observation, batch.template).angle_rad.item() == pytest.approx(expected, abs=1e-5)


def test_the_similarity_takes_the_origin_where_it_is() -> None:
    batch = collate([make_sample("box", np.random.default_rng(seed)) for seed in range(4)])
    truth = true_affine(batch.observation, batch.template)
    for i in range(4):
        origins = []
        for view in (batch.observation, batch.template):
            uv = project_points(view.K[i].numpy(), view.T_cam_from_obj[i, None, :3, 3].numpy())
            origins.append(apply_affine(view.A_crop_from_image[i].numpy(), uv)[0])
        np.testing.assert_allclose(
            apply_affine(truth.A_obs_from_tmpl[i].numpy(), origins[1][None])[0], origins[0], atol=1e-3
        )
        np.testing.assert_allclose(
            poses_of(batch, truth.A_obs_from_tmpl)[i, :3, 3], batch.observation.T_cam_from_obj[i, :3, 3], atol=1e-6
        )


@pytest.mark.parametrize("grid", GRIDS)
def test_flow_of_a_flat_object_is_the_similarity(grid: int) -> None:
    """A plane facing both cameras: every cell moves by the 2D similarity, in the convention of stage 3's input."""
    rotation = Rotation.from_rotvec([0, 0, 0.3]).as_matrix()
    flip = np.diag([1.0, -1, -1])
    batch = plane_batch(make_T(rotation @ flip, np.array([-0.005, 0.01, 0.55])), make_T(flip, np.array([0, 0, 0.5])))
    A = true_affine(batch.observation, batch.template).A_obs_from_tmpl[0].double().numpy()
    [level] = true_flow(batch, (grid,))
    cell_px = 224 / grid
    expected = (apply_affine(A, cell_centres(grid)) / cell_px).reshape(grid, grid, 2)
    col, row = np.meshgrid(np.arange(grid), np.arange(grid))
    expected = np.stack([expected[..., 0] - col, expected[..., 1] - row])
    inside = (expected + np.stack([col, row]) > 0.1).all(0) & (expected + np.stack([col, row]) < grid - 0.1).all(0)
    valid = level.valid[0].numpy()
    assert valid[inside].all()
    assert 0.3 < valid.mean() < 1
    np.testing.assert_allclose(level.flow[0].numpy()[:, valid], expected[:, valid], atol=1e-3)


@pytest.mark.parametrize("grid", GRIDS)
def test_flow_of_a_slanted_plane_is_exact(grid: int) -> None:
    R_tmpl = Rotation.from_euler("xyz", [150, 25, 10], degrees=True).as_matrix()
    R_obs = Rotation.from_euler("xyz", [170, -10, 70], degrees=True).as_matrix()
    T_tmpl, T_obs = make_T(R_tmpl, np.array([0, 0, 0.5])), make_T(R_obs, np.array([0.01, 0.0, 0.6]))
    batch = plane_batch(T_obs, T_tmpl)
    A_tmpl, A_obs = batch.template.A_crop_from_image[0].numpy(), batch.observation.A_crop_from_image[0].numpy()
    depth = plane_depth(K_TMPL, A_tmpl, T_tmpl, grid)  # on the very centres of this grid
    coarse = depth_on_grid(batch.template.depth_centre_m, grid)[0].numpy()
    np.testing.assert_allclose(coarse, depth, rtol=1e-5)
    xyz_obj = transform_points(invert_T(T_tmpl), rays(K_TMPL, A_tmpl, cell_centres(grid)) * depth.reshape(-1, 1))
    np.testing.assert_allclose(xyz_obj[:, 2], 0, atol=1e-9)
    target = apply_affine(A_obs, project_points(K_OBS, transform_points(T_obs, xyz_obj))) / (224 / grid)
    [level] = true_flow(batch, (grid,))
    col, row = np.meshgrid(np.arange(grid), np.arange(grid))
    expected = target.T.reshape(2, grid, grid) - np.stack([col, row])
    valid = level.valid[0].numpy()
    assert valid.mean() > 0.5
    np.testing.assert_allclose(level.flow[0].numpy()[:, valid], expected[:, valid], atol=2e-3)


def test_a_coarse_cell_needs_two_of_its_four_corners() -> None:
    depth = torch.zeros(1, 64, 64)
    depth[0, 1, 1] = depth[0, 1, 2] = 0.5  # of the four cells around the centre of cell (0, 0) of 16
    depth[0, 1, 5] = 0.5
    coarse = depth_on_grid(depth, 16)[0]
    assert coarse[0, 0] == pytest.approx(0.5)
    assert coarse[0, 1] == 0
    assert (depth_on_grid(depth, 64) == depth).all()


def sphere_view(T: np.ndarray, K: np.ndarray, box: tuple[int, int, int, int], radius: float) -> CropView:
    A = crop_affine(box).astype(np.float64)

    def depth_at(crop_px: np.ndarray) -> np.ndarray:
        ray, centre = rays(K, A, crop_px), T[:3, 3]
        a, b, c = (ray**2).sum(1), ray @ centre, centre @ centre - radius**2
        root = b**2 - a * c
        return np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, 0)

    depth = depth_at(cell_centres(64)).reshape(64, 64).astype(np.float32)
    mask = depth_at(cell_centres(224)).reshape(224, 224) > 0
    return CropView(np.zeros((224, 224, 3), np.uint8), mask, depth, K, A, T)


@pytest.mark.parametrize("grid", GRIDS)
def test_what_the_object_itself_hides_is_not_valid(grid: int) -> None:
    """A ball seen from two sides 60 degrees apart: a point is valid where its surface faces both cameras."""
    radius = 0.06
    T_tmpl = make_T(np.eye(3), np.array([0, 0, 0.5]))
    T_obs = make_T(Rotation.from_euler("y", 60, degrees=True).as_matrix(), np.array([0, 0, 0.55]))
    observation = sphere_view(T_obs, K_TMPL, (160, 320, 240, 400), radius)
    template = sphere_view(T_tmpl, K_TMPL, (160, 320, 240, 400), radius)
    batch = collate([Sample("ball", 2 * radius * 3**0.5, observation, template)])
    [level] = true_flow(batch, (grid,))
    depth = depth_on_grid(batch.template.depth_centre_m, grid)[0].numpy().reshape(-1)
    xyz = rays(K_TMPL, template.A_crop_from_image, cell_centres(grid)) * depth[:, None]
    xyz_obs = transform_points(T_obs @ invert_T(T_tmpl), xyz)
    normal = (xyz_obs - T_obs[:3, 3]) / radius
    facing = -(normal * xyz_obs).sum(1) / np.linalg.norm(xyz_obs, axis=1)
    seen, hidden = (depth > 0) & (facing > 0.35), (depth > 0) & (facing < -0.35)
    valid = level.valid[0].numpy().reshape(-1)
    assert seen.sum() > 0.2 * (depth > 0).sum()
    assert hidden.sum() > 0.05 * (depth > 0).sum()
    assert valid[seen].mean() > 0.98
    assert valid[hidden].mean() < 0.02
    assert not valid[depth == 0].any()


def test_what_another_object_hides_is_not_valid() -> None:
    sample = make_sample("ball", np.random.default_rng(3))
    mask = sample.observation.mask.copy()
    mask[:, :112] = False
    covered = replace(sample, observation=replace(sample.observation, mask=mask))
    [whole] = true_flow(collate([sample]), (64,))
    [half] = true_flow(collate([covered]), (64,))
    target_x = (half.flow[0, 0] + torch.arange(64)) * 3.5
    assert 0 < half.valid.sum() < whole.valid.sum()
    assert (target_x[half.valid[0]] >= 112).all()
    assert (half.valid <= whole.valid).all()


def test_a_front_before_the_object_is_told_by_its_depth() -> None:
    sample = make_sample("ball", np.random.default_rng(4))
    nearer = sample.observation.depth_centre_m - 2 * DEPTH_TOLERANCE * np.float32(sample.diameter_m)
    moved = replace(
        sample.observation, depth_centre_m=np.where(sample.observation.depth_centre_m > 0, nearer, 0).astype(np.float32)
    )
    [level] = true_flow(collate([replace(sample, observation=moved)]), (64,))
    assert level.valid.float().mean() < 0.02


def test_inputs_are_normalised_as_for_inference() -> None:
    crops = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8)
    np.testing.assert_allclose(network_inputs(torch.from_numpy(crops)).numpy(), normalise_bgr(crops), atol=1e-6)


def test_turned_observations_keep_their_geometry() -> None:
    """The true flow of a rotated view connects the same colours, and the mask fills its crop."""
    samples = [make_sample(key, np.random.default_rng(seed)) for seed, key in enumerate(("ball", "egg", "ball"))]
    batch = collate(samples)
    rotation = torch.tensor([1.0, -2.0, 0.0])
    rotated = PairBatch(rotate_observations(batch.observation, rotation), batch.template, batch.diameter_m)
    before, after = (true_affine(b.observation, b.template) for b in (batch, rotated))
    difference = after.angle_rad - before.angle_rad - rotation
    assert torch.cos(difference).min() > 1 - 1e-6
    for mask in rotated.observation.masks:
        rows, cols = torch.nonzero(mask, as_tuple=True)
        extent = max(int(rows.max() - rows.min()), int(cols.max() - cols.min()))
        assert 218 <= extent <= 224
    for b, other in ((batch, rotated), (rotated, batch)):
        [mine], [theirs] = true_flow(b, (64,)), true_flow(other, (64,))
        both = mine.valid & theirs.valid
        assert both.sum() > 0.9 * theirs.valid.sum()
    [flow_before], [flow_after] = true_flow(batch, (64,)), true_flow(rotated, (64,))
    both = flow_before.valid & flow_after.valid
    colours = [colour_at(b, flow.flow, both) for b, flow in ((batch, flow_before), (rotated, flow_after))]
    assert np.median(np.abs(colours[0] - colours[1])) < 4
    assert np.abs(colours[0] - colours[1]).mean() < 8


def test_augmentation_and_truth_are_exact_under_autocast():
    """With its sampling grid in bf16, which autocast makes of a product, an image is displaced by up to 0.66 px."""
    samples = [make_sample(key, np.random.default_rng(seed)) for seed, key in enumerate(("ball", "egg"))]
    batch, rotation = collate(samples), torch.tensor([1.0, -2.0])
    x = torch.arange(224.0).expand(2, 1, 224, 224)
    S = augment._rotate_and_crop(batch.observation.masks, rotation)
    draws = sample_draws(2, 64, 1.0, torch.Generator().manual_seed(0))

    def geometry() -> list[torch.Tensor]:
        rotated = replace(batch, observation=rotate_observations(batch.observation, rotation))
        affine = true_affine(rotated.observation, rotated.template)
        flows = true_flow(rotated, GRIDS)
        found = [augment._warp(x, S, 224, "bilinear"), perturbed_affine(affine, draws)]
        found += [getattr(rotated.observation, field.name) for field in fields(rotated.observation)]
        return found + [level.flow for level in flows] + [level.valid for level in flows]

    expected = geometry()
    with torch.autocast("cpu", torch.bfloat16):
        found = geometry()
    displacement_px = (found[0] - expected[0]).abs().max().item()
    assert displacement_px == 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def colour_at(batch: PairBatch, flow: torch.Tensor, chosen: torch.Tensor) -> np.ndarray:
    col, row = np.meshgrid(np.arange(64), np.arange(64))
    found = []
    for crop, field, valid in zip(batch.observation.crops_rgb.numpy(), flow.numpy(), chosen.numpy(), strict=True):
        x = ((field[0] + col) * 3.5 - 0.5).astype(np.float32)
        y = ((field[1] + row) * 3.5 - 0.5).astype(np.float32)
        found.append(cv2.remap(crop, x, y, cv2.INTER_LINEAR)[valid])
    return np.concatenate(found).astype(np.float64)
