"""Whether views can be reconstructed at all: their number and spread, the scale, and whether masks and poses agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Array
from picopose_cli.reconstruction.hull import view_directions
from picopose_cli.reconstruction.views import ReferenceView
from picopose_cli.rendering.mesh_size import LARGEST_MM, SMALLEST_MM

LEAST_VIEWS = 8
_LEAST_SPREAD_DEG = 40.0
"""Largest angle of a view from the views' mean direction, from which on silhouettes bound an object on all sides."""
LARGEST_MISS = 1.0
"""Angle by which a mask's middle misses the object, in half sides of the mask, beyond which its pose must be wrong."""
_MOST_WRONG_SHARE = 1 / 3
_NAMES_SHOWN = 3


def check_count(views: Sequence[ReferenceView], problems: Mapping[str, str], where: str) -> None:
    """Raise PicoPoseError when there are fewer than 8 views, with the reasons why others cannot be used."""
    if len(views) >= LEAST_VIEWS:
        return
    reasons = "; ".join(f"{name}: {reason}" for name, reason in list(problems.items())[:_NAMES_SHOWN])
    unusable = f" ({len(problems)} more cannot be used: {reasons})" if problems else ""
    what = f"there are {len(views)} usable photographs, at least {LEAST_VIEWS} are needed{unusable}"
    raise PicoPoseError(what, where=where, fix="add photographs from all around the object")


def check_agreement(views: Sequence[ReferenceView], misses: Array, where: str) -> None:
    """Raise PicoPoseError when too many views do not look at the object: `misses` (V,) as in `LARGEST_MISS`."""
    wrong = np.flatnonzero(~(misses <= LARGEST_MISS))
    if len(wrong) > _MOST_WRONG_SHARE * len(views):
        raise disagreement([views[i].name for i in wrong[np.argsort(-misses[wrong])]], len(views), where)


def disagreement(names: Sequence[str], count: int, where: str) -> PicoPoseError:
    """Return the error of poses that contradict the masks, worst first."""
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    what = f"the poses do not agree with the masks in {len(names)} of {count} photographs ({shown})"
    return PicoPoseError(what, where=where, fix="T must map the object's points to the camera (OpenCV axes, mm)")


def check_geometry(views: Sequence[ReferenceView], centre_m: Array, radius_m: float, where: str) -> None:
    """Raise PicoPoseError when the object's size is implausible or all views are from one side."""
    size_mm = 2000 * radius_m
    if not SMALLEST_MM <= size_mm <= LARGEST_MM:
        what = f"the object would be about {size_mm:.3g} mm large, not {SMALLEST_MM:g} to {LARGEST_MM:g} mm"
        raise PicoPoseError(what, where=where, fix="give translations in millimetres")
    directions = view_directions(views, centre_m)
    mean = directions.mean(axis=0)
    length = float(np.linalg.norm(mean))
    cosine = (directions @ mean) / max(length, 1e-9)
    spread_deg = float(np.rad2deg(np.arccos(np.clip(cosine.min(), -1, 1))))
    if length > 0.3 and spread_deg < _LEAST_SPREAD_DEG:
        what = f"all photographs are from one side, within {spread_deg:.0f} degrees of their mean direction"
        raise PicoPoseError(what, where=where, fix="add photographs from all around the object")
