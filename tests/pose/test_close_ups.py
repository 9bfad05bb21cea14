from __future__ import annotations

import cv2
import numpy as np
import pytest

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.geometry import apply_affine, project_points
from picopose_cli.base.types import CROP_PX
from picopose_cli.pose.close_ups import (
    MAX_SIDE_PX,
    SIDE_STEP_PX,
    close_up_affine,
    cut_close_up,
    cut_virtual_close_up,
    shrink,
)
from picopose_cli.templates.crops import crop_affine
from picopose_cli.templates.perspective_crops import aim_camera, mask_outline

K = np.array([[700.0, 0, 330], [0, 690, 250], [0, 0, 1]])


def scene(side_px: int = 60) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]]:
    """A smooth picture (480,640,3), the mask of a square, and its box (r0, r1, c0, c1)."""
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    box = (200, 200 + side_px, 300, 300 + side_px)
    mask = np.zeros((480, 640), bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    return cv2.GaussianBlur(noise, (0, 0), 4), mask, box


@pytest.mark.parametrize(("crop_px", "expected"), [(20, 64), (60, 224), (120, 448), (300, 448)])
def test_small_crops_are_magnified_up_to_a_limit(crop_px, expected):
    A, side_px = close_up_affine(crop_affine((100, 100 + crop_px, 50, 50 + crop_px)))
    assert side_px == expected <= MAX_SIDE_PX
    assert side_px % SIDE_STEP_PX == 0
    centre = apply_affine(A, np.array([[50 + crop_px / 2, 100 + crop_px / 2]]))
    np.testing.assert_allclose(centre, [[side_px / 2, side_px / 2]], atol=1e-3)


@pytest.mark.parametrize("side_px", [60, 220])
def test_a_close_up_shows_the_image_where_its_camera_says(side_px):
    image, mask, box = scene(side_px)
    close_up = cut_close_up(image, mask, crop_affine(box), K)
    rays = np.random.default_rng(1).uniform([-0.01, -0.02, 1], [0.05, 0.04, 1], (200, 3))
    in_image, in_close_up = project_points(K, rays), project_points(close_up.K, rays)
    shown = ((in_close_up > 3) & (in_close_up < close_up.side_px - 3)).all(axis=1)
    assert shown.sum() > 50
    expected, found = (
        cv2.remap(picture, *(uv[shown].T[:, :, None].astype(np.float32) - 0.5), cv2.INTER_LINEAR).astype(float)
        for picture, uv in ((image, in_image), (close_up.rgb, in_close_up))
    )
    assert np.abs(expected - found).mean() < 3
    assert close_up.mask.mean() == pytest.approx(1 / 1.25**2, abs=0.03)


def test_outside_of_the_image_its_edge_is_repeated():
    image, mask = np.full((100, 100, 3), 77, np.uint8), np.zeros((100, 100), bool)
    mask[:40, :40] = True
    close_up = cut_close_up(image, mask, crop_affine((0, 40, 0, 40)), K)
    assert (close_up.rgb == 77).all()


def test_a_virtual_camera_sees_what_the_image_shows():
    image, mask, _ = scene(80)
    virtual = aim_camera(Pinhole(K), mask_outline(mask))
    close_up = cut_virtual_close_up(image, mask, Pinhole(K), virtual)
    rays = np.random.default_rng(1).uniform([-0.02, -0.04, 1], [0.03, 0.0, 1], (100, 3))
    uv = project_points(close_up.K, rays @ virtual.R_cam_from_virtual)
    shown = ((uv > 3) & (uv < close_up.side_px - 3)).all(axis=1)
    assert shown.sum() > 30
    expected, found = (
        cv2.remap(picture, *(at[shown].T[:, :, None].astype(np.float32) - 0.5), cv2.INTER_LINEAR).astype(float)
        for picture, at in ((image, project_points(K, rays)), (close_up.rgb, uv))
    )
    assert np.abs(expected - found).mean() < 4


@pytest.mark.parametrize("virtual", [False, True])
def test_what_is_behind_other_objects_is_not_shown(virtual):
    image, mask, box = scene(80)
    hidden = np.zeros_like(mask)
    hidden[:, box[3] - 10 :] = True
    if virtual:
        aimed = aim_camera(Pinhole(K), mask_outline(mask))
        full, part = (cut_virtual_close_up(image, mask, Pinhole(K), aimed, one) for one in (None, hidden))
    else:
        full, part = (cut_close_up(image, mask, crop_affine(box), K, one) for one in (None, hidden))
    assert full.shown.all()
    np.testing.assert_array_equal(part.rgb, full.rgb)
    share_of_mask = (part.mask & ~part.shown).sum() / part.mask.sum()
    assert share_of_mask == pytest.approx(10 / 80, abs=0.03)


def test_a_shrunk_close_up_has_the_same_camera():
    image, mask, box = scene(150)
    large = cut_close_up(image, mask, crop_affine(box), K)
    small = shrink(large, 128)
    assert small.rgb.shape == (128, 128, 3)
    assert small.mask.shape == (128, 128)
    np.testing.assert_allclose(small.K[:2] / 128, large.K[:2] / large.side_px)
    assert shrink(small, CROP_PX) is small
