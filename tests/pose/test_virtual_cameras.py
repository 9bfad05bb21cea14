"""Detections in fisheye images are cropped by virtual pinholes, and their poses are rotated back."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.fisheyes import ARIA_RGB, cam_model
from helpers.poses import random_rotation

from picopose_cli.base.cameras import Pinhole, parse_camera
from picopose_cli.base.geometry import apply_affine, invert_T, make_T, project_points, transform_points
from picopose_cli.base.tasks import ImageTask, LoadedImage
from picopose_cli.base.types import Detection
from picopose_cli.pose.queries import crop_queries
from picopose_cli.templates.crops import crop_affine, crop_colour, square_box

ARIA = parse_camera({"cam_model": cam_model(ARIA_RGB)}).model
PINHOLE = Pinhole(np.array([[600.0, 0, 704], [0, 600, 704], [0, 0, 1]]))
SIDE = 1408


def make_image(camera, mask, box=(0.0, 0.0, 0.0, 0.0)):
    image = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return ImageTask(1, 2, Path("a.jpg"), camera, (Detection(5, 0.5, box, None, 0.1),)), LoadedImage(image, (mask,))


def blob(x: float, y: float) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.ellipse(mask, (int(x), int(y)), (60, 40), 20, 0, 360, 1, -1)
    return mask.view(bool)


@pytest.mark.parametrize(("camera", "perspective"), [(ARIA, False), (ARIA, True), (PINHOLE, True)])
def test_a_pose_in_the_virtual_camera_is_that_pose_in_the_real_one(camera, perspective):
    """The true pose, seen by the virtual camera of the crop, projects into the crop where the object is."""
    rng = np.random.default_rng(0)
    points = rng.normal(0, 0.03, (50, 3))
    T = make_T(random_rotation(rng), np.array([0.5, 0.35, 0.6]))
    uv = camera.project(transform_points(T, points)) - camera.first_pixel_px
    task, image = make_image(camera, blob(*uv.mean(axis=0)))
    ((query,), skips) = crop_queries(task, image, {5}, perspective_crops=perspective)
    assert not skips
    R = query.R_cam_from_virtual
    T_virtual = invert_T(make_T(R, np.zeros(3))) @ T
    np.testing.assert_allclose(query.pose_in_camera(T_virtual), T, atol=1e-12)
    seen = apply_affine(query.A_crop_from_image, project_points(query.K, transform_points(T_virtual, points)))
    rows, cols = np.nonzero(query.mask)
    assert np.abs(seen.mean(axis=0) - (cols.mean(), rows.mean())).max() < 8
    assert np.abs(T_virtual[:2, 3]).max() < 0.05  # the object is near the axis


def test_a_box_without_a_mask_is_cropped_too_and_one_outside_of_the_image_is_skipped():
    task, image = make_image(ARIA, None, (1000.0, 900.0, 120.0, 80.0))
    ((query,), _) = crop_queries(task, image, {5})
    assert query.mask.any(axis=0).mean() > 0.97
    assert 0.5 < query.mask.mean() < 0.8
    _, skips = crop_queries(*make_image(ARIA, None, (3000.0, 900.0, 120.0, 80.0)), {5})
    assert "covers any of the image" in skips[0].reason


def test_virtual_cameras_crop_a_pinholes_image_only_far_off_its_axis():
    for x, is_virtual in ((704, False), (704 + 240, False), (704 + 320, True)):  # 22 and 28 degrees
        ((query,), _) = crop_queries(*make_image(PINHOLE, blob(x, 704)), {5}, perspective_crops=True)
        assert (query.R_cam_from_virtual is not None) == is_virtual


def test_plain_crops_of_a_pinhole_are_the_released_ones_to_the_bit():
    mask = blob(900, 600)
    task, image = make_image(PINHOLE, mask)
    ((query,), _) = crop_queries(task, image, {5})
    box = square_box(mask)
    assert query.R_cam_from_virtual is None
    np.testing.assert_array_equal(query.crop_rgb, crop_colour(image.image_rgb, box))
    np.testing.assert_array_equal(query.A_crop_from_image, crop_affine(box))
    T = make_T(np.eye(3), np.array([0.1, 0.2, 0.3]))
    assert query.pose_in_camera(T) is T
