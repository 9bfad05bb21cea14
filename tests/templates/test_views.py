"""The computed viewpoints against the released list, and what they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from picopose_cli.base.geometry import invert_T
from picopose_cli.templates.views import place_views, template_camera, view_poses


def test_the_released_list_in_order(shared_dir: Path):
    released = np.load(shared_dir / "golden" / "view_poses_162.npy")
    computed = view_poses()
    computed[:, :3, 3] *= 1000
    np.testing.assert_allclose(computed[:, :3, :3], released[:, :3, :3], atol=2e-7)
    np.testing.assert_allclose(computed[:, :3, 3], released[:, :3, 3], atol=1e-4)  # mm of 1000


def test_views_look_at_the_origin_from_all_sides():
    poses = view_poses()
    R = poses[:, :3, :3]
    assert poses.shape == (162, 4, 4)
    np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (162, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(R), 1)
    centres = invert_T(poses)[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1)
    np.testing.assert_allclose(centres.sum(axis=0), 0, atol=1e-9)
    nearest = np.sort(np.linalg.norm(centres[:, None] - centres[None], axis=-1), axis=1)[:, 1]
    assert nearest.min() > 0.27
    assert nearest.max() < 0.33


def test_the_objects_up_axis_points_up_in_the_image():
    poses = view_poses()
    up = poses[:, :3, :3] @ np.array([0.0, 0.0, 1.0])
    assert (up[1:-1, 1] < 0).all()
    np.testing.assert_allclose(up[1:-1, 0], 0, atol=1e-12)


def test_distance_and_camera():
    poses = place_views(0.25)
    np.testing.assert_allclose(poses[:, :3, 3], np.tile([0, 0, 0.5], (162, 1)))
    np.testing.assert_array_equal(template_camera(), [[572.4114, 0, 320], [0, 573.57043, 240], [0, 0, 1]])
