"""Crops of virtual cameras: what they show is where camera model and virtual pinhole say that it is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers.fisheyes import ARIA_RGB, QUEST3_GRAY1, cam_model

from picopose_cli.base.cameras import Pinhole, parse_camera
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import project_points
from picopose_cli.templates.perspective_crops import aim_camera, make_crop, mask_outline

SIZE_HW = (1024, 1280)
CAMERAS = {
    "aria": parse_camera({"cam_model": cam_model(ARIA_RGB)}).model,
    "quest3": parse_camera({"cam_model": cam_model(QUEST3_GRAY1, size_wh=(1280, 1024))}).model,
    "pinhole": Pinhole(np.array([[700.0, 0, 640], [0, 690, 512], [0, 0, 1]])),
}


def disc(x: float, y: float, radius: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    mask = np.zeros(size_hw, np.uint8)
    cv2.circle(mask, (int(x), int(y)), radius, 1, -1)
    return mask.view(bool)


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize(("x", "y", "radius"), [(640, 500, 60), (1100, 850, 90), (250, 200, 150)])
def test_positions_are_those_of_the_camera_model(name, x, y, radius):
    camera, mask = CAMERAS[name], disc(x, y, radius)
    virtual = aim_camera(camera, mask_outline(mask))
    crop = make_crop(camera, virtual)
    centres = np.stack(np.meshgrid(np.arange(224) + 0.5, np.arange(224) + 0.5), axis=-1)
    uv = camera.project(virtual.directions(centres)) - camera.first_pixel_px
    np.testing.assert_allclose(np.stack([crop.map_x, crop.map_y], axis=-1), uv, rtol=0, atol=1e-3)
    np.testing.assert_allclose(np.linalg.det(virtual.R_cam_from_virtual), 1)
    shown = crop.mask(mask)  # the square is tight around the mask
    rows, cols = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    assert 218 <= max(len(rows), len(cols)) <= 224
    assert max(rows[0] + rows[-1] - 223, cols[0] + cols[-1] - 223) <= 4  # and centred on it


@pytest.mark.parametrize("name", CAMERAS)
def test_projections_of_the_virtual_pinhole_are_where_the_crop_shows_the_point(name):
    """A dot painted at a point's position in the image appears where K, A and R say that the point is."""
    camera = CAMERAS[name]
    mask = disc(1000, 700, 80)
    virtual = aim_camera(camera, mask_outline(mask))
    for x, y in ((1000, 700), (960, 660), (1040, 735)):
        image = np.zeros((*SIZE_HW, 3), np.uint8)
        image[y, x] = 255
        ray = camera.unproject(np.array([[x, y]], float) + camera.first_pixel_px)
        A, K, R = virtual.A_crop_from_image, virtual.K, virtual.R_cam_from_virtual
        expected = project_points(A @ K, 2 * ray @ R)[0]
        seen = make_crop(camera, virtual).colour(image)[..., 0]
        rows, cols = np.indices(seen.shape) + 0.5
        found = np.array([(seen * cols).sum(), (seen * rows).sum()]) / seen.sum()
        np.testing.assert_allclose(found, expected, atol=0.1)


def test_central_crop_of_a_pinhole_is_the_plain_crop():
    """On the axis, where nothing is rotated, the virtual camera is the real one, and its crop the part of the image."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (64, 80, 3), np.uint8), (1280, 1024), interpolation=cv2.INTER_CUBIC)
    camera = Pinhole(np.array([[700.0, 0, 640], [0, 700, 512], [0, 0, 1]]))
    mask = np.zeros(SIZE_HW, bool)
    mask[512 - 56 : 512 + 56, 640 - 56 : 640 + 56] = True
    virtual = aim_camera(camera, mask_outline(mask))
    np.testing.assert_allclose(virtual.R_cam_from_virtual, np.eye(3), atol=1e-12)
    assert virtual.side_px == pytest.approx(112, abs=1e-3)
    plain = cv2.resize(image[456:568, 584:696].astype(np.float32) / 255, (224, 224), interpolation=cv2.INTER_LINEAR)
    found = make_crop(camera, virtual).colour(image)
    np.testing.assert_allclose(found[2:-2, 2:-2], plain[2:-2, 2:-2], atol=0.02)


def test_shrunk_crops_do_not_alias():
    """Stripes of two pixels become grey where five pixels of the image are one of the crop."""
    camera, mask = CAMERAS["aria"], disc(704, 704, 560, (1408, 1408))
    image = np.zeros((1408, 1408, 3), np.uint8)
    image[:, (np.arange(1408) // 2) % 2 == 0] = 255
    seen = make_crop(camera, aim_camera(camera, mask_outline(mask))).colour(image)[60:160, 60:160]
    assert np.abs(seen - 0.5).max() < 0.15


def test_outside_of_the_image_is_black():
    camera, mask = CAMERAS["quest3"], disc(1279, 500, 100)
    crop = make_crop(camera, aim_camera(camera, mask_outline(mask)))
    white = crop.colour(np.full((*SIZE_HW, 3), 255, np.uint8))
    assert (white.max(axis=2) < 0.01).mean() > 0.05
    assert white.max() == 1


def test_outline_has_the_outermost_pixels():
    mask = disc(300, 200, 41) | disc(390, 260, 9)
    outline = mask_outline(mask)
    assert mask[outline[:, 1].astype(int), outline[:, 0].astype(int)].all()
    np.testing.assert_array_equal([outline.min(axis=0), outline.max(axis=0)], [[259, 159], [399, 269]])


@pytest.mark.parametrize(
    ("name", "pixels", "words"),
    [
        ("aria", [[1e6, 1e6], [2e6, 1e6]], "outside of the camera's field of view"),
        ("quest3", [[1.0, 512.0], [1278.0, 512.0]], "too wide an angle"),
        ("aria", [[500.0, 500.0], [500.1, 500.0]], "less than two pixels"),
    ],
)
def test_what_no_pinhole_can_see_is_refused(name, pixels, words):
    with pytest.raises(PicoPoseError, match=words):
        aim_camera(CAMERAS[name], np.array(pixels))
