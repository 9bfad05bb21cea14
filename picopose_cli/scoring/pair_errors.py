"""All errors of one object in one image: estimates against ground truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.cameras import CameraModel
from picopose_cli.base.types import MM_PER_M, Array
from picopose_cli.scoring.pose_errors import (
    PointSet,
    add,
    adds,
    make_point_set,
    mspd,
    mssd,
    overlapping_sphere_images,
    overlapping_spheres,
)
from picopose_cli.scoring.thresholds import (
    MSPD_THRESHOLDS_PX,
    MSPD_WIDTH_PX,
    MSSD_THRESHOLDS,
    MSSD_THRESHOLDS_MM,
    VSD_TAUS,
)
from picopose_cli.scoring.vsd import BoxXyxy, DistanceMap, make_distance_map, place_on_grid, vsd

_LIMIT_MARGIN = 1 + 1e-6
"""Errors are computed up to the largest threshold, times this; larger ones do not change a score."""


@dataclass(frozen=True)
class ObjectModel:
    """The model of an object, for its errors.

    `xyz_obj_m` (N,3) f64 vertices, `symmetries` (S,4,4) f64 with the identity.
    """

    obj_id: int
    xyz_obj_m: Array
    diameter_m: float
    symmetries: Array

    @cached_property
    def points(self) -> PointSet:
        """The vertices, prepared for MSSD and MSPD."""
        return make_point_set(self.xyz_obj_m)


@dataclass(frozen=True)
class ObjectInImage:
    """One object in one image: estimates, best score first, and the annotated instances they may be matched to.

    `scores` (E,), `T_est` (E,4,4), `T_gt` (G,4,4) metres; `is_target` (G,) bool: False for an instance that is not to
    be found: estimates matched to it are not counted.
    """

    obj_id: int
    scores: Array
    T_est: Array
    T_gt: Array
    is_target: NDArray[np.bool_]


@dataclass(frozen=True)
class PairErrors:
    """Errors of the estimates (E) of one object in one image against its instances (G).

    `mssd_m` (E,G) metres, infinite where the bounding spheres do not overlap; `mspd_px` (E,G) in an image 640 px wide
    (both infinite above every threshold); `vsd` (T,E,G) for the tolerances VSD_TAUS; `add_m`, `adds_m` (E,G) metres.
    None: not computed.
    """

    obj_id: int
    diameter_m: float
    scores: Array
    is_target: NDArray[np.bool_]
    mssd_m: Array
    mspd_px: Array
    vsd: Array | None = None
    add_m: Array | None = None
    adds_m: Array | None = None


class RenderDepth(Protocol):
    """Renders the depth (h,w) in metres of an object inside a box of the image, 0 outside the object.

    The object's vertices (N,3) are in the camera frame, in the order of its model, where the pose (4,4) places them.
    """

    def __call__(self, obj_id: int, T_cam_from_obj: Array, xyz_cam_m: Array, K: Array, box_xyxy: BoxXyxy, /) -> Array:
        """Return the depth (h,w) of the pixels of `box_xyxy`, rendered with camera matrix `K` (3,3)."""
        ...


@dataclass(frozen=True)
class DepthView:
    """The measured depth of an image (H,W) in metres (0: unknown), its camera `K` (3,3) and a renderer, for VSD."""

    measured_m: Array
    K: Array
    tolerance_m: float
    render: RenderDepth

    def distance_map(self, model: ObjectModel, T_cam_from_obj: Array) -> DistanceMap:
        """Return an object rendered at a pose, inside the box of its projection, with its visible pixels."""
        height, width = self.measured_m.shape
        xyz_cam_m, box_xyxy = place_on_grid(model.xyz_obj_m, T_cam_from_obj, self.K, (height, width))
        depth_m = self.render(model.obj_id, T_cam_from_obj, xyz_cam_m, self.K, box_xyxy)
        return make_distance_map(depth_m, box_xyxy, self.measured_m, self.K, self.tolerance_m)


def compute_pair_errors(
    item: ObjectInImage,
    model: ObjectModel,
    camera: CameraModel,
    width_px: int,
    *,
    view: DepthView | None = None,
    with_averages: bool = False,
) -> PairErrors:
    """Return the errors of all pairs of estimate and instance of one object in one image.

    `camera` and `width_px` are those of the sensor; VSD is computed with a `view`; `with_averages` adds ADD and ADD-S.
    """
    T_est, T_gt, points = item.T_est, item.T_gt, model.xyz_obj_m
    widest_m = max(MSSD_THRESHOLDS[-1] * model.diameter_m, MSSD_THRESHOLDS_MM[-1] / MM_PER_M) * _LIMIT_MARGIN
    mssd_m = mssd(T_est, T_gt, model.points, model.symmetries, limit_m=widest_m)
    mssd_m[~overlapping_spheres(T_est, T_gt, model.diameter_m)] = np.inf
    scale = MSPD_WIDTH_PX / width_px
    widest_px = MSPD_THRESHOLDS_PX[-1] / scale * _LIMIT_MARGIN
    return PairErrors(
        item.obj_id,
        model.diameter_m,
        item.scores,
        item.is_target,
        mssd_m,
        mspd(T_est, T_gt, camera, model.points, model.symmetries, limit_px=widest_px) * scale,
        None if view is None else _vsd_errors(item, model, view),
        add(T_est, T_gt, points) if with_averages else None,
        adds(T_est, T_gt, points) if with_averages else None,
    )


def _vsd_errors(item: ObjectInImage, model: ObjectModel, view: DepthView) -> Array:
    """Return VSD (T,E,G); each pose is rendered once, and not at all when its sphere overlaps no other."""
    T_est, T_gt = item.T_est, item.T_gt
    errors = np.ones((len(VSD_TAUS), len(T_est), len(T_gt)))
    overlapping = overlapping_sphere_images(T_est, T_gt, model.diameter_m)
    rendered: dict[bytes, DistanceMap] = {}
    for row, column in zip(*overlapping.nonzero(), strict=True):
        est, gt = (_once(rendered, T, lambda T: view.distance_map(model, T)) for T in (T_est[row], T_gt[column]))
        errors[:, row, column] = vsd(est, gt, model.diameter_m, VSD_TAUS)
    return errors


def _once(known: dict[bytes, DistanceMap], T: Array, make: Callable[[Array], DistanceMap]) -> DistanceMap:
    key = T.tobytes()
    if key not in known:
        known[key] = make(T)
    return known[key]
