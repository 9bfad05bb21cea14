"""Cameras of images: pinholes and HOT3D's fisheyes, projection and its inverse, and the entries of scene_camera.json.

Axes are OpenCV's. Positions in an image are those of the file's own calibration: whole numbers are the centres of
pixels for a fisheye (`first_pixel_px` 0), their outer corners for a pinhole (0.5), as everywhere in this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from picopose_cli.base.geometry import PIXEL_CENTRE_PX, project_points
from picopose_cli.base.json_numbers import finite_number, finite_numbers
from picopose_cli.base.types import Array

_PINHOLE_MODEL, _FISHEYE_MODEL = "PinholePlane", "FISHEYE624"
_WIDEST_RAD = np.deg2rad(120.0)
"""Largest angle to the axis that a fisheye is searched for; calibrations are made for less than 80 degrees."""
_TABLE_ROWS = 512
_MAX_STEPS = 12
"""Newton steps of a fisheye's inverse; from its table three are enough."""
_STOP_PX, _ACCEPTED_PX = 1e-11, 1e-9
"""Errors at which the inverse stops, and up to which it is accepted."""
_RADIAL, _NUMBERS = 6, 16


@dataclass(frozen=True, eq=False)
class Pinhole:
    """A pinhole camera with matrix `K` (3,3) f64, px."""

    K: Array
    first_pixel_px: ClassVar[float] = PIXEL_CENTRE_PX
    """Position of the centre of the first pixel, along both axes."""

    @property
    def pinhole_numbers(self) -> tuple[float, ...]:
        """Focal lengths and principal point: fx, fy, cx, cy, px."""
        (fx, _, cx), (_, fy, cy) = self.K[:2].tolist()
        return fx, fy, cx, cy

    def project(self, xyz_cam: Array) -> Array:
        """Return the image positions (..., 2), (x, y) px, of points (..., 3) in the camera frame."""
        return project_points(self.K, xyz_cam)

    def unproject(self, uv: Array) -> Array:
        """Return the directions (..., 3), of length 1, seen at image positions (..., 2)."""
        rays = np.concatenate([uv, np.ones_like(uv[..., :1])], axis=-1) @ np.linalg.inv(self.K).T
        return np.asarray(rays / np.linalg.norm(rays, axis=-1, keepdims=True))


@dataclass(frozen=True)
class Fisheye624:
    """A fisheye camera with six radial, two tangential and four thin-prism coefficients, as HOT3D's devices have.

    `numbers`: fx, fy, cx, cy, k1..k6, p1, p2, s1..s4. The angle theta to the axis gives the position
    (a, b) = (x, y) theta / sqrt(x^2 + y^2), which the coefficients then move. Source: Project Aria's calibration
    (toolkit: hand_tracking_toolkit's FISHEYE624).
    """

    numbers: tuple[float, ...]
    first_pixel_px: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if len(self.numbers) != _NUMBERS:
            raise ValueError(f"has {len(self.numbers)} numbers, must have {_NUMBERS}")

    @property
    def pinhole_numbers(self) -> tuple[float, ...]:
        """Focal lengths and principal point: fx, fy, cx, cy, px."""
        return self.numbers[:4]

    def project(self, xyz_cam: Array) -> Array:
        """Return the image positions (..., 2), (x, y) px, of points (..., 3) in the camera frame."""
        x, y, z = np.moveaxis(xyz_cam, -1, 0)
        return np.stack(self.project_axes(x, y, z), axis=-1)

    def project_axes(self, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
        """Return the image positions (x px, y px) of points with coordinates `x`, `y`, `z`, all of one shape (...)."""
        r = np.hypot(x, y)
        scale = np.arctan2(r, z) / np.where(r > 0, r, 1.0)
        u, v = self._distort(x * scale, y * scale)
        fx, fy, cx, cy = self.numbers[:4]
        return fx * u + cx, fy * v + cy

    def unproject(self, uv: Array) -> Array:
        """Return the directions (..., 3), of length 1, seen at image positions (..., 2); NaN where there is none.

        Newton's method in at most 12 steps, from a table of the radial part; exact to 1e-9 px within the field of view.
        """
        fx, fy, cx, cy = self.numbers[:4]
        goal = np.stack([(uv[..., 0] - cx) / fx, (uv[..., 1] - cy) / fy], axis=-1).astype(np.float64)
        a, b = np.moveaxis(self._first_guess(goal), -1, 0)
        with np.errstate(all="ignore"):  # beyond the field of view there is nothing to converge to
            for _ in range(_MAX_STEPS):
                u, v = self._distort(a, b)
                error_u, error_v = u - goal[..., 0], v - goal[..., 1]
                if not (np.hypot(error_u, error_v) * max(fx, fy) > _STOP_PX).any():
                    break
                du_da, du_db, dv_da, dv_db = self._derivatives(a, b)
                determinant = du_da * dv_db - du_db * dv_da
                a = a - (dv_db * error_u - du_db * error_v) / determinant
                b = b - (du_da * error_v - dv_da * error_u) / determinant
            else:
                u, v = self._distort(a, b)
            theta = np.hypot(a, b)
            close = np.hypot(u - goal[..., 0], v - goal[..., 1]) * max(fx, fy) <= _ACCEPTED_PX
            valid = close & (theta <= self.max_angle_rad)
            sine = np.sinc(theta / np.pi)  # sin(theta) / theta
            rays = np.stack([a * sine, b * sine, np.cos(theta)], axis=-1)
        return np.where(valid[..., None], rays, np.nan)

    @property
    def max_angle_rad(self) -> float:
        """Largest angle to the axis up to which the image grows with the angle, at most 120 degrees."""
        return float(self._table[0][-1])

    @property
    def _table(self) -> tuple[Array, Array]:
        """Angles (R,) and their radii (R,) in units of the focal length, as far as both grow."""
        return _radial_table(self.numbers[4 : 4 + _RADIAL])

    def _first_guess(self, goal: Array) -> Array:
        """Return (a, b) (..., 2) of the radial part alone for distorted positions (..., 2)."""
        radius = np.linalg.norm(goal, axis=-1, keepdims=True)
        theta = np.interp(radius, self._table[1], self._table[0])
        return np.asarray(goal * np.where(radius > 0, theta / np.where(radius > 0, radius, 1.0), 1.0))

    def _distort(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Return the distorted positions (u, v)."""
        p1, p2, s1, s2, s3, s4 = self.numbers[4 + _RADIAL :]
        radial = _radial_factor(self.numbers[4 : 4 + _RADIAL], a * a + b * b)
        u, v = radial * a, radial * b
        rho = u * u + v * v
        moved_u = u + 2 * p2 * u * v + p1 * (rho + 2 * u * u) + (s1 + s2 * rho) * rho
        moved_v = v + 2 * p1 * u * v + p2 * (rho + 2 * v * v) + (s3 + s4 * rho) * rho
        return moved_u, moved_v

    def _derivatives(self, a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
        """Return the derivatives du/da, du/db, dv/da, dv/db of the distorted positions."""
        p1, p2, s1, s2, s3, s4 = self.numbers[4 + _RADIAL :]
        q = a * a + b * b
        radial, slope = _radial_factor(self.numbers[4 : 4 + _RADIAL], q), self._radial_slope(q)
        u, v = radial * a, radial * b
        rho = u * u + v * v
        cross = 2 * slope * a * b
        du_da, dv_db = radial + 2 * slope * a * a, radial + 2 * slope * b * b
        prism_u, prism_v = s1 + 2 * s2 * rho, s3 + 2 * s4 * rho
        u_u, u_v = 1 + 2 * p2 * v + 6 * p1 * u + 2 * u * prism_u, 2 * p2 * u + 2 * p1 * v + 2 * v * prism_u
        v_u, v_v = 2 * p1 * v + 2 * p2 * u + 2 * u * prism_v, 1 + 2 * p1 * u + 6 * p2 * v + 2 * v * prism_v
        return (
            u_u * du_da + u_v * cross,
            u_u * cross + u_v * dv_db,
            v_u * du_da + v_v * cross,
            v_u * cross + v_v * dv_db,
        )

    def _radial_slope(self, q: Array) -> Array:
        """Return the derivative of the radial factor by the squared angle q (...)."""
        slope = np.zeros_like(q)
        for power, k in reversed(list(enumerate(self.numbers[4 : 4 + _RADIAL], start=1))):
            slope = slope * q + power * k
        return slope


def _radial_factor(coefficients: tuple[float, ...], q: Array) -> Array:
    """Return 1 + k1 q + k2 q^2 + ... of squared angles q (...)."""
    value = np.zeros_like(q)
    for k in reversed(coefficients):
        value = (value + k) * q
    return 1 + value


@lru_cache(maxsize=64)
def _radial_table(coefficients: tuple[float, ...]) -> tuple[Array, Array]:
    """Return the angles (R,) and their radii (R,) of Fisheye624; images of a clip share their calibration."""
    theta = np.linspace(0, _WIDEST_RAD, _TABLE_ROWS)
    radius = theta * _radial_factor(coefficients, theta**2)
    falling = np.flatnonzero(np.diff(radius) <= 0)
    rows = falling[0] + 1 if len(falling) else len(theta)
    return theta[:rows], radius[:rows]


CameraModel = Pinhole | Fisheye624
"""How a camera maps directions to its image."""


@dataclass(frozen=True)
class Camera:
    """The camera of one image.

    `model` is None with `problem` set; depth image value * `depth_scale` = mm, unless there is a `depth_problem`.
    """

    model: CameraModel | None
    depth_scale: float = 1.0
    problem: str | None = None
    depth_problem: str | None = None

    @property
    def K(self) -> Array | None:
        """Matrix (3,3) f64, px, of a pinhole; None for other cameras."""
        return self.model.K if isinstance(self.model, Pinhole) else None


def parse_camera(entry: Any) -> Camera:
    """Return the camera of one image's entry in scene_camera.json; its model is None where the entry has no valid one.

    `cam_model` (PinholePlane or FISHEYE624) takes the place of `cam_K`.
    """
    if not isinstance(entry, dict):
        return Camera(None, problem="the camera entry is not an object")
    model, problem = _parse_model(entry)
    scale = finite_number(entry.get("depth_scale", 1.0))  # an image without depth has none
    if scale is None or scale <= 0:
        return Camera(model, problem=problem, depth_problem="depth_scale is not a positive number")
    return Camera(model, scale, problem)


def _parse_model(entry: dict[str, Any]) -> tuple[CameraModel | None, str | None]:
    """Return the camera's model, or None and what is wrong with it."""
    try:
        return _read_model(entry), None
    except ValueError as error:
        return None, str(error)


def _read_model(entry: dict[str, Any]) -> CameraModel:
    model = entry.get("cam_model")
    if entry.get("cam_K") is None:
        if model is None:
            raise ValueError("cam_K is missing")
        return _model_of(model)
    if model is not None:
        raise ValueError("has both cam_K and cam_model, of which BOP allows one")
    numbers = finite_numbers(entry["cam_K"], 9)
    if numbers is None:
        raise ValueError("cam_K is not nine finite numbers")
    K = numbers.reshape(3, 3)
    if K[0, 0] <= 0 or K[1, 1] <= 0 or not np.array_equal(K[2], [0, 0, 1]):
        raise ValueError("cam_K is not a pinhole matrix (fx 0 cx; 0 fy cy; 0 0 1)")
    return Pinhole(K)


def _model_of(model: Any) -> CameraModel:
    kind = model.get("projection_model_type") if isinstance(model, dict) else None
    if not isinstance(kind, str):
        raise ValueError("cam_K is missing, and cam_model has no projection_model_type")
    name = kind.rpartition(".")[2]
    numbers = model.get("projection_params")
    if name == _PINHOLE_MODEL:
        fx, fy, cx, cy = _checked(model, finite_numbers(numbers, 4), "fx, fy, cx, cy")
        return Pinhole(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
    if name != _FISHEYE_MODEL:
        raise ValueError(f"the camera model {kind[:40]!r} is not known, only {_PINHOLE_MODEL} and {_FISHEYE_MODEL}")
    found = finite_numbers(numbers, _NUMBERS)
    one_focal = finite_numbers(numbers, _NUMBERS - 1)  # one focal length for both axes
    if one_focal is not None:
        found = np.concatenate([one_focal[:1], one_focal])
    fisheye = Fisheye624(tuple(_checked(model, found, "15 or 16 (f or fx, fy; cx, cy; k1-k6; p1, p2; s1-s4)").tolist()))
    if not fisheye.max_angle_rad > 0:
        raise ValueError("projection_params of cam_model describe no image: its radius falls with the angle")
    return fisheye


def _checked(model: dict[str, Any], numbers: Array | None, needed: str) -> Array:
    """Return fx, fy, cx, cy, ... (N,); raises ValueError when they are no camera of the image that the model names."""
    if numbers is None:
        listed = model.get("projection_params")
        count = f" (there are {len(listed)})" if isinstance(listed, list) else ""
        raise ValueError(f"projection_params of cam_model are not {needed}{count}")
    if (numbers[:2] <= 0).any():
        raise ValueError("the focal length in projection_params of cam_model is not positive")
    for position, name in zip(numbers[2:4], ("image_width", "image_height"), strict=True):
        size = finite_number(model.get(name))
        if size is not None and not 0 <= position <= size:
            raise ValueError(
                f"the principal point of cam_model is outside of the image ({position:g}, {name} {size:g})"
            )
    return numbers
