"""The symmetry transformations of an object, continuous ones cut into steps."""

from __future__ import annotations

import numpy as np

from picopose_cli.geometry import Floats, make_T
from picopose_cli.scoring.thresholds import MAX_SYMMETRY_STEP
from picopose_cli.structs import ObjectInfo


def symmetry_transforms(info: ObjectInfo, max_step: float = MAX_SYMMETRY_STEP) -> Floats:
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
    combined: Floats = (continuous[None] @ discrete[:, None]).reshape(-1, 4, 4)
    return combined


def _turns(axis: Floats, offset_m: Floats, angles_rad: Floats) -> Floats:
    """Return rotations (A,4,4) by `angles_rad` (A,) about the line through `offset_m` (3,) along `axis` (3,)."""
    x, y, z = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    along = np.outer([x, y, z], [x, y, z])
    cos, sin = np.cos(angles_rad)[:, None, None], np.sin(angles_rad)[:, None, None]
    R = cos * np.eye(3) + (1 - cos) * along + sin * skew
    offset = np.asarray(offset_m, np.float64)
    return make_T(R, offset - R @ offset)
