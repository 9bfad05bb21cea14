"""Whether the numbers of a template bank are such as a renderer writes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from picopose_cli.base.geometry import move_origin, rotation_deviation
from picopose_cli.base.types import CROP_PX, Array

_LARGEST_PX = 1e5
_LARGEST_M = 1e4


def find_problem(stored: Mapping[str, Array], centre_m: Array) -> str | None:
    """Return what is wrong with the arrays of a bank, by their names in `TemplateBank`; None for a sound bank.

    `centre_m` (3,) is the point that the template cameras point at.
    """
    for name, array in stored.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{name} holds NaN or infinity"
    if not is_camera(stored["K"]):
        return "K is not a camera matrix"
    if not _are_crops(stored["A_crop_from_image"]):
        return "A_crop_from_image is not the transform of a square crop"
    T = stored["T_tmpl_from_obj"]
    if not _are_rigid(T):
        return "a template's pose is not a rigid transform"
    z_m = move_origin(T, centre_m)[:, 2, 3]
    if (z_m <= 0).any() or np.abs(T[:, :3, 3]).max() > _LARGEST_M:
        return "a template's object is not in front of its camera"
    return _picture_problem(stored)


def is_camera(K: Array) -> bool:
    """Return whether K (3,3) is the matrix of a pinhole camera with plausible numbers of pixels."""
    focal = K[[0, 1], [0, 1]]
    form = np.array_equal(K[2], [0, 0, 1]) and K[1, 0] == 0 and abs(K[0, 1]) < focal[0]
    return bool(form and (focal > 1).all() and (np.abs(K) < _LARGEST_PX).all())


def _are_crops(A: Array) -> bool:
    """Return whether all A (V,3,3) scale a square of 2 to 100,000 px to the crop and move it, without a rotation."""
    scale = A[:, [0, 1], [0, 1]]
    rest = A * (1 - np.eye(3))
    rest[:, :2, 2] = 0
    in_range = (scale >= CROP_PX / _LARGEST_PX).all() and (scale <= CROP_PX / 2).all()
    is_square = np.abs(scale[:, 0] - scale[:, 1]).max() <= 1e-3 * scale.max()
    return bool(in_range and is_square and not rest.any() and (A[:, 2, 2] == 1).all() and _offsets_in_range(A, scale))


def _offsets_in_range(A: Array, scale: Array) -> bool:
    return bool((np.abs(A[:, :2, 2]) <= scale * _LARGEST_PX).all())


def _are_rigid(T: Array) -> bool:
    R = T[:, :3, :3]
    is_orthonormal = np.abs(R).max() < 2 and rotation_deviation(R).max() <= 1e-3
    return bool(is_orthonormal and (np.linalg.det(R) > 0).all() and (T[:, 3] == [0, 0, 0, 1]).all())


def _picture_problem(stored: Mapping[str, Array]) -> str | None:
    if stored["masks"].max() > 1:
        return "masks holds other values than 0 and 1"
    if not stored["masks"].any():
        return "its masks are empty"
    for name in ("depth_corner_m", "depth_centre_m"):
        if (stored[name] < 0).any() or stored[name].max() > _LARGEST_M:
            return f"{name} holds depths that are impossible"
        if not stored[name].any():
            return f"{name} is empty"
    return None
