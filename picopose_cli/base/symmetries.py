"""Symmetry transformations of an object, and the template views that are equivalent under them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Array, ObjectInfo

MAX_SYMMETRY_STEP = 0.01
"""Largest step of a continuous symmetry, as a share of the object's diameter (toolkit: max_sym_disc_step)."""


_SYMMETRIES_AT_ONCE = 256
"""Keeps the arrays of `equivalent_views` small: at 162 views each takes 0.2 MB."""
MAX_SYMMETRIES = 10_000
"""Most transformations of an object: 31 axes, or one axis with 30 discrete symmetries; a sphere needs three axes."""


SAME_DIRECTION_RAD = 1e-3
"""Views whose directions differ by less are from the same direction: a bank from images may have an image twice."""


def symmetry_count(discrete: int, axes: int, max_step: float = MAX_SYMMETRY_STEP) -> int:
    """Return the number of transformations that `symmetry_transforms` returns, the identity included."""
    return (1 + discrete) * (axes * _steps(max_step) if axes else 1)


def symmetry_transforms(info: ObjectInfo, max_step: float = MAX_SYMMETRY_STEP) -> Array:
    """Return every T_obj_from_obj (S,4,4) f64, metres, that leaves the object's appearance unchanged.

    The identity is the first. A continuous symmetry is sampled in equal steps of at most `max_step` diameters at the
    surface; discrete and continuous ones are combined. Source: toolkit, misc.get_symmetry_transformations.
    """
    discrete = np.concatenate([np.eye(4)[None], np.asarray(info.symmetries_discrete, np.float64).reshape(-1, 4, 4)])
    if not info.symmetries_continuous:
        return discrete
    steps = _steps(max_step)
    angles_rad = np.arange(steps) * (2 * np.pi / steps)
    continuous = np.concatenate(
        [
            _axis_rotations(np.asarray(axis), np.asarray(offset), angles_rad)
            for axis, offset in info.symmetries_continuous
        ]
    )
    combined: Array = (continuous[None] @ discrete[:, None]).reshape(-1, 4, 4)
    return combined


def equivalent_views(T_tmpl_from_obj: Array, symmetries: Array) -> NDArray[np.bool_]:
    """Return which views (V,4,4) show the same side of an object up to an in-plane rotation, (V,V) bool.

    Two views are equivalent if one of the `symmetries` (S,4,4) takes the viewing direction of one to within half of
    the smallest angle between different directions of the other's. Without symmetries only views from the same
    direction are equivalent.
    """
    R = T_tmpl_from_obj[:, :3, :3]
    directions = np.einsum("vji,vj->vi", R, T_tmpl_from_obj[:, :3, 3])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    angles_rad = np.arccos(np.clip(directions @ directions.T, -1, 1))
    min_angle_rad = np.min(angles_rad, where=angles_rad > SAME_DIRECTION_RAD, initial=np.pi)
    near = np.zeros(angles_rad.shape, bool)
    for start in range(0, len(symmetries), _SYMMETRIES_AT_ONCE):
        R_symmetry = symmetries[start : start + _SYMMETRIES_AT_ONCE, :3, :3]
        transformed = directions @ R_symmetry.transpose(0, 2, 1)  # (S,V,3)
        near |= (transformed @ directions.T > np.cos(min_angle_rad / 2)).any(axis=0)
    equivalent: NDArray[np.bool_] = near | near.T | np.eye(len(directions), dtype=bool)
    return equivalent


def drop_equivalent_views(views: Sequence[int], equivalent: NDArray[np.bool_]) -> list[int]:
    """Return the positions in `views` of those that are equivalent to none before them.

    `equivalent` (V,V) bool as `equivalent_views` returns it.
    """
    covered = np.zeros(len(equivalent), bool)
    positions = []
    for position, view in enumerate(views):
        if not covered[view]:
            covered |= equivalent[view]
            positions.append(position)
    return positions


def _steps(max_step: float) -> int:
    return int(np.ceil(np.pi / max_step))


def _axis_rotations(axis: Array, offset_m: Array, angles_rad: Array) -> Array:
    """Return rotations (A,4,4) by `angles_rad` (A,) about the line through `offset_m` (3,) along `axis` (3,)."""
    x, y, z = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    along = np.outer([x, y, z], [x, y, z])
    cos, sin = np.cos(angles_rad)[:, None, None], np.sin(angles_rad)[:, None, None]
    R = cos * np.eye(3) + (1 - cos) * along + sin * skew
    offset = np.asarray(offset_m, np.float64)
    return make_T(R, offset - R @ offset)
