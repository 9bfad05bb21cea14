"""Objects whose frame is far from their centre: the same templates, and the same poses in the mesh's own frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.meshes import make_box, write_ply
from helpers.poses import random_rotation

import picopose_cli
from picopose_cli.base.geometry import make_T, move_origin
from picopose_cli.bop.datasets import open_dataset, read_scene_cameras
from picopose_cli.bop.detections import read_detections
from picopose_cli.bop.images import read_image_rgb, read_mask
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.templates.bank import bank_path, read_bank

SHIFT_M = np.array([0.09, -0.02, 0.06])


def estimate(toy_dir, shift_m: np.ndarray, rules: str) -> np.ndarray:
    """The poses (N,4,4) of the toy data set's first image, with frames of the objects moved by -`shift_m`."""
    estimator = picopose_cli.PoseEstimator(
        device="cpu", rules=rules, refine=0
    )  # a trained network: its matches are no noise
    for obj_id in (1, 2):
        bank = read_bank(bank_path(toy_dir / "toy/templates", obj_id))
        estimator.add_object(
            replace(bank, T_tmpl_from_obj=move_origin(bank.T_tmpl_from_obj, -shift_m), centre_m=shift_m)
        )
    dataset = open_dataset("toy", toy_dir)
    image_rgb = read_image_rgb(dataset.image_path(1, 0))
    found = read_detections(toy_dir / "toy/detections.json").by_image[1, 0]
    masks = [(one.obj_id, read_mask(one.mask, image_rgb.shape[:2])) for one in found]
    poses = estimator.estimate(image_rgb, read_scene_cameras(dataset, 1)[0].K, masks)
    return np.stack([pose.T_cam_from_obj for pose in poses])


@pytest.mark.parametrize(("rules", "tolerance"), [("default", 2e-4), ("paper", 0.03)])
def test_poses_of_a_moved_frame_are_those_of_the_centred_one(toy_dir, rules, tolerance):
    """Up to the solvers: the robust one stops at a small step, and EPnP's samples depend on rounding."""
    centred, moved = (estimate(toy_dir, shift_m, rules) for shift_m in (np.zeros(3), SHIFT_M))
    np.testing.assert_allclose(move_origin(moved, SHIFT_M), centred, atol=tolerance)


def test_the_render_of_an_estimate_shows_the_same_picture(tmp_path):
    box = make_box((0.1, 0.06, 0.08))
    centred = write_ply(tmp_path / "a.ply", box)
    off = write_ply(tmp_path / "b.ply", replace(box, vertices_m=box.vertices_m + SHIFT_M))
    render = EstimateRenderer({1: (centred, "mm"), 2: (off, "mm")})
    rng = np.random.default_rng(5)
    for _ in range(5):
        T = make_T(random_rotation(rng), np.array([*rng.uniform(-0.2, 0.2, 2), 0.6]))
        K = np.array([[500.0, 0, 120], [0, 500, 110], [0, 0, 1]])
        one, two = render(1, T, K, 224), render(2, move_origin(T, -SHIFT_M), K, 224)
        assert np.abs(one.rgb.astype(int) - two.rgb).mean() < 0.1
        assert ((one.depth_m > 0) == (two.depth_m > 0)).mean() > 0.999


def test_an_origin_of_zeros_changes_no_bit():
    rng = np.random.default_rng(2)
    T = np.stack([make_T(random_rotation(rng), rng.normal(size=3)) for _ in range(20)])
    for origin in (np.zeros(3), -np.zeros(3)):
        np.testing.assert_array_equal(move_origin(T, origin), T)
