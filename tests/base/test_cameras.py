"""Camera models: projection against a plain formula and real calibrations, its inverse, and invalid entries."""

from __future__ import annotations

import json
from math import atan2, hypot, pi

import numpy as np
import pytest
from helpers.fisheyes import ARIA_RGB, QUEST3_GRAY1, cam_model

from picopose_cli.base.cameras import Fisheye624, Pinhole, parse_camera

PINHOLE = {"cam_K": [500.0, 0, 320, 0, 510, 240, 0, 0, 1]}


def model_of(numbers) -> Fisheye624:
    return parse_camera({"cam_model": cam_model(numbers)}).model


def plain_projection(numbers, point):
    """The model as it is published, one point at a time."""
    fx, fy, cx, cy, *k = numbers
    x, y, z = point
    r = hypot(x, y)
    theta = atan2(r, z)
    a, b = (x * theta / r, y * theta / r) if r else (0.0, 0.0)
    q = min(theta**2, pi**2)
    radial = 1 + sum(k[i] * q ** (i + 1) for i in range(6))
    p1, p2, s1, s2, s3, s4 = k[6:]
    u, v = radial * a, radial * b
    rho = u * u + v * v
    u, v = (
        u + 2 * p2 * u * v + p1 * (rho + 2 * u * u) + s1 * rho + s2 * rho**2,
        v + 2 * p1 * u * v + p2 * (rho + 2 * v * v) + s3 * rho + s4 * rho**2,
    )
    return fx * u + cx, fy * v + cy


def directions(limit_deg: float, count: int = 400) -> np.ndarray:
    rng = np.random.default_rng(0)
    theta, phi = np.deg2rad(rng.uniform(0, limit_deg, count)), rng.uniform(0, 2 * np.pi, count)
    rays = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=1)
    return np.concatenate([rays, [[0, 0, 1]]])


@pytest.mark.parametrize("numbers", [ARIA_RGB, QUEST3_GRAY1])
def test_fisheye_equals_the_plain_formula_and_is_inverted(numbers):
    model, rays = model_of(numbers), directions(70)
    points = rays * np.random.default_rng(1).uniform(0.2, 3, (len(rays), 1))
    uv = model.project(points)
    two_focals = numbers if len(numbers) == 16 else [numbers[0], *numbers]
    np.testing.assert_allclose(uv, [plain_projection(two_focals, point) for point in points], rtol=0, atol=1e-9)
    found = model.unproject(uv.reshape(1, -1, 2))[0]
    np.testing.assert_allclose(found, rays, rtol=0, atol=1e-9)
    np.testing.assert_allclose(model.project(found), uv, rtol=0, atol=1e-6)


def test_every_pixel_of_the_aria_image_has_a_direction_and_far_positions_have_none():
    model = model_of(ARIA_RGB)
    pixels = np.stack(np.meshgrid(np.arange(0, 1408, 64.0), np.arange(0, 1408, 64.0)), axis=-1)
    np.testing.assert_allclose(model.project(model.unproject(pixels)), pixels, rtol=0, atol=1e-6)
    with np.errstate(all="raise"):
        assert np.isnan(model.unproject(np.array([[1e7, 0.0]]))).all()


def test_pinhole_is_inverted():
    camera = parse_camera(PINHOLE)
    rays = directions(40)
    np.testing.assert_allclose(camera.model.unproject(camera.model.project(2 * rays)), rays, rtol=0, atol=1e-12)
    plane = parse_camera({"cam_model": cam_model([500.0, 510, 320, 240], "PinholePlane")})
    assert isinstance(plane.model, Pinhole)
    np.testing.assert_array_equal(plane.K, camera.K)


def test_real_calibrations_equal_an_independent_implementation(shared_dir):
    golden = np.load(shared_dir / "golden/cameras/cameras.npz")
    for name, model in json.loads((shared_dir / "golden/cameras/cameras.json").read_text()).items():
        camera, points = parse_camera({"cam_model": model}).model, golden[f"{name}/xyz_cam_m"]
        np.testing.assert_allclose(camera.project(points), golden[f"{name}/uv_toolkit"], rtol=0, atol=1e-6)
        rays = points / np.linalg.norm(points, axis=1, keepdims=True)
        np.testing.assert_allclose(camera.unproject(camera.project(points)), rays, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"cam_model": cam_model(ARIA_RGB, "CameraModelType.KANNALA")}, "KANNALA' is not known"),
        ({"cam_model": cam_model(ARIA_RGB[:14])}, "are not 15 or 16 .* \\(there are 14\\)"),
        ({"cam_model": cam_model(["a", *ARIA_RGB[1:]])}, "are not 15 or 16"),
        ({"cam_model": cam_model([*ARIA_RGB[:1], 1500.0, *ARIA_RGB[2:]])}, "principal point .* outside .*1500"),
        ({"cam_model": cam_model([-600.0, *ARIA_RGB[1:]])}, "focal length .* not positive"),
        ({"cam_model": cam_model([500.0, 510, 320], "PinholePlane")}, "are not fx, fy, cx, cy \\(there are 3\\)"),
        ({"cam_model": cam_model([500.0, 510, 320, 1e9], "PinholePlane")}, "principal point"),
        ({"cam_model": cam_model([1.0, 1, 1, -1e3, *[0.0] * 12])}, "principal point"),
        ({"cam_model": cam_model([1.0, 1, 1, *[0.0] * 12]), **PINHOLE}, "both cam_K and cam_model"),
        ({"cam_model": cam_model([600.0, 704, 704, -1e9, *[0.0] * 11])}, "describe no image"),
        ({"cam_model": {}}, "no projection_model_type"),
        ({}, "cam_K is missing"),
    ],
)
def test_invalid_entries_have_a_problem(entry, problem):
    camera = parse_camera(entry)
    assert camera.model is None
    with pytest.raises(ValueError, match=problem):
        raise ValueError(camera.problem)
