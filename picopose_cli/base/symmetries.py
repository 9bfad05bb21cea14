"""The symmetries of an object: the transformations that leave its look unchanged, and the views that look alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Array, ObjectInfo

MAX_SYMMETRY_STEP = 0.01
"""Largest step of a continuous symmetry, as a share of the object's diameter (toolkit: max_sym_disc_step)."""


def symmetry_transforms(info: ObjectInfo, max_step: float = MAX_SYMMETRY_STEP) -> Array:
    """Return every T_obj_from_obj (S,4,4) f64, metres, that leaves the object's look unchanged.

    The identity is the first. A continuous symmetry is turned in equal steps of at most `max_step` diameters at the
    surface; discrete and continuous ones are combined. Source: toolkit, misc.get_symmetry_transformations.
    """
    discrete = np.concatenate([np.eye(4)[None], np.asarray(info.symmetries_discrete, np.float64).reshape(-1, 4, 4)])
    if not info.symmetries_continuous:
        return discrete
    steps = int(np.ceil(np.pi / max_step))
    angles_rad = np.arange(steps) * (2 * np.pi / steps)
    turns = [_turns(np.asarray(axis), np.asarray(offset), angles_rad) for axis, offset in info.symmetries_continuous]
    continuous = np.concatenate(turns)
    combined: Array = (continuous[None] @ discrete[:, None]).reshape(-1, 4, 4)
    return combined


def views_alike(T_tmpl_from_obj: Array, symmetries: Array) -> NDArray[np.bool_]:
    """Return which views (V,4,4) show the same side of an object, (V,V): all but a turn in the image.

    A view looks like another one where one of the `symmetries` (S,4,4) takes its viewing direction nearer to the other
    one's than half of the smallest angle between any two views. Without a symmetry each view looks like itself alone.
    """
    R = T_tmpl_from_obj[:, :3, :3]
    directions = np.einsum("vji,vj->vi", R, T_tmpl_from_obj[:, :3, 3])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    apart = np.arccos(np.clip(directions @ directions.T, -1, 1)) + np.pi * np.eye(len(directions))
    turned = directions @ symmetries[:, :3, :3].transpose(0, 2, 1)  # (S,V,3)
    alike = (turned @ directions.T > np.cos(apart.min() / 2)).any(axis=0)
    both: NDArray[np.bool_] = alike | alike.T | np.eye(len(directions), dtype=bool)
    return both


def first_of_alike(views: Sequence[int], alike: NDArray[np.bool_]) -> list[int]:
    """Return the places in `views` of those that look like none before them; `alike` (V,V) is from `views_alike`."""
    seen = np.zeros(len(alike), bool)
    places = []
    for place, view in enumerate(views):
        if not seen[view]:
            seen |= alike[view]
            places.append(place)
    return places


def _turns(axis: Array, offset_m: Array, angles_rad: Array) -> Array:
    """Return rotations (A,4,4) by `angles_rad` (A,) about the line through `offset_m` (3,) along `axis` (3,)."""
    x, y, z = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    along = np.outer([x, y, z], [x, y, z])
    cos, sin = np.cos(angles_rad)[:, None, None], np.sin(angles_rad)[:, None, None]
    R = cos * np.eye(3) + (1 - cos) * along + sin * skew
    offset = np.asarray(offset_m, np.float64)
    return make_T(R, offset - R @ offset)
