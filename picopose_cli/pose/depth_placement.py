"""Poses by RGB are moved along their rays to the distance that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Array
from picopose_cli.pose.close_ups import CloseUp
from picopose_cli.pose.depth_rows import Touching, touching_planes
from picopose_cli.pose.depth_samples import DepthSamples
from picopose_cli.pose.rules import RankedPose
from picopose_cli.pose.solve import is_possible

CANDIDATES = 4
"""Poses of a detection, the most confident ones, that are finished on depth."""
SHIFTS = 2
"""Times that a candidate is moved along its ray, at most."""
SMALL_SHIFT = 0.01
"""A shift of less than this share of the distance needs no further one."""
MIN_SAMPLES = 30
"""Depths in the mask with which a detection is finished on depth."""
MIN_MEASURED_SHARE = 0.1
"""Likewise, of the mask."""
MAX_RATIO = 2.0
"""Ratio of measured and expected distance, or its inverse, above which depth and pose are of different things."""
TRUSTED = 0.2
"""Confidence by the picture from which on a pose may say that the scale of the depth is wrong."""
SHIFT_SPREAD, SHIFT_PRIOR = 0.02, 0.15
"""Of distances: differences that are of one surface, and the standard deviation of the error of a pose by RGB."""
SHIFT_QUANTILES = 41


class DepthRenderer(Protocol):
    """Renders the depth of objects in square images, from any thread."""

    def depth(self, obj_id: int, T_cam_from_obj: Array, K: Array, side_px: int) -> Array:
        """Return the depth (S,S) f32, metres, 0 outside of the object; raises PicoPoseError if it cannot."""


@dataclass(frozen=True)
class DepthSubject:
    """A detection to be finished: its object, its picture and depth, and its candidate poses, most confident first."""

    obj_id: int
    close_up: CloseUp
    samples: DepthSamples
    candidates: Sequence[RankedPose]


@dataclass(frozen=True)
class Placed:
    """Why a detection cannot be finished on depth, or the poses (4,4) by depth of some candidates.

    `ratio` of measured and expected distance of the best candidate, None where nothing can be compared or the picture
    gives that candidate little confidence.
    """

    problem: str | None
    ratio: float | None = None
    starts: Sequence[tuple[Array, RankedPose]] = ()


def touch(render: DepthRenderer, subject: DepthSubject, T_cam_from_obj: Array) -> Touching:
    """Return where the samples of a detection touch the render of a pose (4,4)."""
    samples = subject.samples
    return touching_planes(samples, render.depth(subject.obj_id, T_cam_from_obj, samples.K, samples.side_px))


def place_candidates(render: DepthRenderer, subject: DepthSubject) -> Placed:
    """Return the best candidates of a detection at the measured distance."""
    samples = subject.samples
    if (samples.in_mask & samples.measured).sum() < MIN_SAMPLES or samples.measured_share < MIN_MEASURED_SHARE:
        return Placed(f"{samples.measured_share:.0%} of its mask have a depth")
    finite = [one for one in subject.candidates if is_possible(one.T_cam_from_obj)][:CANDIDATES]
    try:
        moved = [(one, *_move_along_ray(render, subject, one.T_cam_from_obj)) for one in finite]
    except PicoPoseError as error:  # no mesh
        return Placed(str(error))
    known = [(one, T, ratio) for one, T, ratio in moved if ratio is not None]
    if not known:
        return Placed("no pose is where depth was measured")
    best, _, ratio = known[0]
    trusted = ratio if best.confidence >= TRUSTED else None
    starts = [(T, one) for one, T, of_pose in known if 1 / MAX_RATIO < of_pose < MAX_RATIO]
    problem = None if starts else f"the measured distance is {ratio:.3g} of the expected one"
    return Placed(problem, trusted, starts)


def _move_along_ray(render: DepthRenderer, subject: DepthSubject, T: Array) -> tuple[Array, float | None]:
    """Return a pose at the measured distance, and the ratio of this distance to that before; None without any."""
    samples, first_ratio = subject.samples, None
    for _ in range(SHIFTS):
        touching = touch(render, subject, T)
        on_mask = samples.in_mask[touching.sample]
        if np.count_nonzero(on_mask) < MIN_SAMPLES:
            break
        measured, rendered = samples.xyz_m[touching.sample[on_mask], 2], touching.xyz_cam_m[on_mask, 2]
        ratio = float(np.median(measured / rendered))
        first_ratio = ratio if first_ratio is None else first_ratio
        if not 1 / MAX_RATIO < ratio < MAX_RATIO:
            break
        distance_m = float(np.median(rendered))
        shift_m = robust_shift(measured - rendered, distance_m)
        T = moved_along_ray(T, touching.xyz_cam_m[on_mask], shift_m)
        if abs(shift_m) < SMALL_SHIFT * distance_m:
            break
    return T, first_ratio


def moved_along_ray(T_cam_from_obj: Array, xyz_cam_m: Array, shift_m: float) -> Array:
    """Return a pose (4,4) moved by a depth along the ray of its seen surface (N,3), whose place in the image stays."""
    seen = xyz_cam_m.mean(axis=0)
    moved = T_cam_from_obj.copy()
    moved[:3, 3] += shift_m * seen / seen[2]
    return moved


def robust_shift(differences_m: Array, distance_m: float) -> float:
    """Return by how much a surface at a distance is too near, from measured minus rendered depth (N,) of its pixels.

    It is the median of the differences around the most frequent one: rough masks show the background, and occluders.
    That near the pose by RGB is preferred.
    """
    spread_m, prior_m = SHIFT_SPREAD * distance_m, SHIFT_PRIOR * distance_m
    tried = np.quantile(differences_m, np.linspace(0, 1, SHIFT_QUANTILES))
    near = 1 / (1 + ((differences_m - tried[:, None]) / spread_m) ** 2) ** 2
    best = tried[np.argmax(near.sum(axis=1) * np.exp(-0.5 * (tried / prior_m) ** 2))]
    return float(np.median(differences_m[np.abs(differences_m - best) <= 2 * spread_m]))
