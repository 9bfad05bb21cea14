"""Pinhole cameras of images: the intrinsic matrix K and the unit of the depth image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from picopose_cli.base.json_numbers import finite_number, finite_numbers
from picopose_cli.base.types import Array


@dataclass(frozen=True)
class Camera:
    """The camera of one image.

    `K` (3,3) f64 in pixels, or None with `problem` set; depth image value * `depth_scale` = mm, unless there is a
    `depth_problem`.
    """

    K: Array | None
    depth_scale: float = 1.0
    problem: str | None = None
    depth_problem: str | None = None


def parse_camera(entry: Any) -> Camera:
    """Return the camera of one image's entry in scene_camera.json; K is None where `cam_K` is missing or invalid."""
    if not isinstance(entry, dict):
        return Camera(None, problem="the camera entry is not an object")
    K, problem = _parse_K(entry)
    scale = finite_number(entry.get("depth_scale", 1.0))  # an image without depth has none
    if scale is None or scale <= 0:
        return Camera(K, problem=problem, depth_problem="depth_scale is not a positive number")
    return Camera(K, scale, problem)


def _parse_K(entry: dict[str, Any]) -> tuple[Array | None, str | None]:
    """Return K (3,3), or None and what is wrong with it."""
    if entry.get("cam_K") is None:
        return None, _missing_K_problem(entry)
    numbers = finite_numbers(entry["cam_K"], 9)
    if numbers is None:
        return None, "cam_K is not nine finite numbers"
    K = numbers.reshape(3, 3)
    if K[0, 0] <= 0 or K[1, 1] <= 0 or not np.array_equal(K[2], [0, 0, 1]):
        return None, "cam_K is not a pinhole matrix (fx 0 cx; 0 fy cy; 0 0 1)"
    return K, None


def _missing_K_problem(entry: dict[str, Any]) -> str:
    model = entry.get("cam_model")
    kind = model.get("projection_model_type", "cam_model") if isinstance(model, dict) else None
    return "cam_K is missing" if kind is None else f"cam_K is missing (camera model {kind}, not a pinhole)"
