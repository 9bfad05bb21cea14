"""All errors of one image: estimates against ground truth, object by object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.types import Array
from picopose_cli.scoring.pose_errors import add, adds, mspd, mssd, overlapping_sphere_images, overlapping_spheres
from picopose_cli.scoring.surfaces import BoxXyxy, Surface, make_surface, place_on_grid, vsd
from picopose_cli.scoring.thresholds import (
    MSPD_THRESHOLDS_PX,
    MSPD_WIDTH_PX,
    MSSD_THRESHOLDS,
    MSSD_THRESHOLDS_MM,
    VSD_TAUS,
)

_A_LITTLE_MORE = 1 + 1e-6
"""Errors are computed up to the last threshold; what lies beyond has no say."""


@dataclass(frozen=True)
class ScoredObject:
    """The model of an object as errors need it.

    `xyz_obj_m` (N,3) f64 vertices, `symmetries` (S,4,4) f64 with the identity.
    """

    obj_id: int
    xyz_obj_m: Array
    diameter_m: float
    symmetries: Array


@dataclass(frozen=True)
class Candidates:
    """One object in one image: estimates, best score first, and the annotated instances they may be matched with.

    `scores` (E,), `T_est` (E,4,4), `T_gt` (G,4,4) metres; `asked` (G,) bool: False for an instance that need not be
    found, and whose estimates are neither right nor wrong.
    """

    obj_id: int
    scores: Array
    T_est: Array
    T_gt: Array
    asked: NDArray[np.bool_]


@dataclass(frozen=True)
class PairErrors:
    """Errors of the estimates (E) of one object in one image against its instances (G).

    `mssd_m` (E,G) metres, infinite where the bounding spheres don't meet; `mspd_px` (E,G) in an image 640 px wide
    (both infinite beyond every threshold);
    `vsd` (T,E,G) for the tolerances VSD_TAUS; `add_m`, `adds_m` (E,G) metres; None: not asked for.
    """

    obj_id: int
    diameter_m: float
    scores: Array
    asked: NDArray[np.bool_]
    mssd_m: Array
    mspd_px: Array
    vsd: Array | None = None
    add_m: Array | None = None
    adds_m: Array | None = None


class RenderDepth(Protocol):
    """Renders the depth (h,w) in metres of an object inside a box of the image, 0 where it isn't.

    The object's vertices (N,3) come in the camera frame, in the order of its model.
    """

    def __call__(self, obj_id: int, xyz_cam_m: Array, K: Array, box: BoxXyxy, /) -> Array:
        """Return the depth (h,w) of the pixels of `box` = (x0, y0, x1, y1) seen by camera `K` (3,3)."""
        ...


@dataclass(frozen=True)
class DepthView:
    """What VSD needs of an image: the measured depth (H,W) in metres (0 unknown), the camera, and a renderer."""

    measured_m: Array
    K: Array
    tolerance_m: float
    render: RenderDepth

    def surface(self, scored: ScoredObject, T_cam_from_obj: Array) -> Surface:
        """Render an object at a pose, only inside its own box, and see what of it is visible."""
        height, width = self.measured_m.shape
        xyz_cam_m, box = place_on_grid(scored.xyz_obj_m, T_cam_from_obj, self.K, (height, width))
        depth_m = self.render(scored.obj_id, xyz_cam_m, self.K, box)
        return make_surface(depth_m, box, self.measured_m, self.K, self.tolerance_m)


def compute_pair_errors(
    candidates: Candidates,
    scored: ScoredObject,
    K: Array,
    width_px: int,
    *,
    view: DepthView | None = None,
    with_averages: bool = False,
) -> PairErrors:
    """Return the errors of all pairs of estimate and instance of one object in one image.

    `K` (3,3) and `width_px` are the image's; VSD needs a `view`; `with_averages` adds ADD and ADD-S.
    """
    T_est, T_gt, points = candidates.T_est, candidates.T_gt, scored.xyz_obj_m
    widest_m = max(MSSD_THRESHOLDS[-1] * scored.diameter_m, MSSD_THRESHOLDS_MM[-1] / 1000) * _A_LITTLE_MORE
    mssd_m = mssd(T_est, T_gt, points, scored.symmetries, limit_m=widest_m)
    mssd_m[~overlapping_spheres(T_est, T_gt, scored.diameter_m)] = np.inf
    scale = MSPD_WIDTH_PX / width_px
    widest_px = MSPD_THRESHOLDS_PX[-1] / scale * _A_LITTLE_MORE
    return PairErrors(
        candidates.obj_id,
        scored.diameter_m,
        candidates.scores,
        candidates.asked,
        mssd_m,
        mspd(T_est, T_gt, K, points, scored.symmetries, limit_px=widest_px) * scale,
        None if view is None else _surface_errors(candidates, scored, view),
        add(T_est, T_gt, points) if with_averages else None,
        adds(T_est, T_gt, points) if with_averages else None,
    )


def _surface_errors(candidates: Candidates, scored: ScoredObject, view: DepthView) -> Array:
    """Return VSD (T,E,G); each pose is rendered once, and not at all when its sphere meets no other."""
    T_est, T_gt = candidates.T_est, candidates.T_gt
    errors = np.ones((len(VSD_TAUS), len(T_est), len(T_gt)))
    meeting = overlapping_sphere_images(T_est, T_gt, scored.diameter_m)
    surfaces: dict[bytes, Surface] = {}
    for row, column in zip(*meeting.nonzero(), strict=True):
        est, gt = (_once(surfaces, T, lambda T: view.surface(scored, T)) for T in (T_est[row], T_gt[column]))
        errors[:, row, column] = vsd(est, gt, scored.diameter_m, VSD_TAUS)
    return errors


def _once(known: dict[bytes, Surface], T: Array, make: Callable[[Array], Surface]) -> Surface:
    key = T.tobytes()
    if key not in known:
        known[key] = make(T)
    return known[key]
