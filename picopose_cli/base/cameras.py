"""Pinhole cameras of images: the intrinsic matrix K and the unit of the depth image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from picopose_cli.base.json_numbers import finite_number, finite_numbers
from picopose_cli.base.types import Array

_PINHOLE_MODEL = "PinholePlane"


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
    """Return the camera of one image's entry in scene_camera.json; K is None where the entry has no valid one.

    `cam_model` takes the place of `cam_K` where its projection is a plane's (PinholePlane).
    """
    if not isinstance(entry, dict):
        return Camera(None, problem="the camera entry is not an object")
    K, problem = _parse_K(entry)
    scale = finite_number(entry.get("depth_scale", 1.0))  # an image without depth has none
    if scale is None or scale <= 0:
        return Camera(K, problem=problem, depth_problem="depth_scale is not a positive number")
    return Camera(K, scale, problem)


def _parse_K(entry: dict[str, Any]) -> tuple[Array | None, str | None]:
    """Return K (3,3), or None and what is wrong with it."""
    try:
        return _read_K(entry), None
    except ValueError as error:
        return None, str(error)


def _read_K(entry: dict[str, Any]) -> Array:
    model = entry.get("cam_model")
    if entry.get("cam_K") is None:
        if model is None:
            raise ValueError("cam_K is missing")
        return _K_of_model(model)
    if model is not None:
        raise ValueError("has both cam_K and cam_model, of which BOP allows one")
    numbers = finite_numbers(entry["cam_K"], 9)
    if numbers is None:
        raise ValueError("cam_K is not nine finite numbers")
    K = numbers.reshape(3, 3)
    if K[0, 0] <= 0 or K[1, 1] <= 0 or not np.array_equal(K[2], [0, 0, 1]):
        raise ValueError("cam_K is not a pinhole matrix (fx 0 cx; 0 fy cy; 0 0 1)")
    return K


def _K_of_model(model: Any) -> Array:
    kind = model.get("projection_model_type") if isinstance(model, dict) else None
    if not isinstance(kind, str):
        raise ValueError("cam_K is missing, and cam_model has no projection_model_type")
    if kind.rpartition(".")[2] != _PINHOLE_MODEL:
        raise ValueError(f"cam_K is missing (camera model {kind[:40]}, not a pinhole)")
    numbers = finite_numbers(model.get("projection_params"), 4)
    if numbers is None or (numbers[:2] <= 0).any():
        raise ValueError("projection_params of cam_model are not fx, fy, cx, cy")
    fx, fy, cx, cy = numbers
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
