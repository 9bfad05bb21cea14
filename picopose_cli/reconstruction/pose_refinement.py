"""Refine the cameras' poses: photographs are aligned with the mean colours of the surface in all the others.

Gauss-Newton on the vertices that a view sees clearly. What all poses have in common would move the object's frame, so
their mean motion is taken out, as is a common change of their distance.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from picopose_cli.base.geometry import invert_T, make_T
from picopose_cli.base.types import Array
from picopose_cli.reconstruction.hull import sample
from picopose_cli.reconstruction.photometry import clear_sights, relative_colours
from picopose_cli.reconstruction.surface import Surface
from picopose_cli.reconstruction.views import ReferenceView

_STEPS = 3
_LEAST_VERTICES, _MOST_VERTICES = 60, 2000
_PRIOR_RAD, _PRIOR_PX = np.deg2rad(0.3), 1.0
"""Standard deviations of a pose's error that is still likely."""
_NOISE = 0.35
"""Of relative colours between views that are aligned; neighbouring vertices are not independent."""
_INDEPENDENT_SHARE = 0.02


def refine_poses(
    surface: Surface, views: Sequence[ReferenceView], rounds: int, start: Sequence[ReferenceView] | None = None
) -> list[ReferenceView]:
    """Return the views with refined poses, from those of `start` if given; those without texture keep their own."""
    refined, given = list(start or views), [view.T_cam_from_obj for view in views]
    images: list[Array] = []
    centre = surface.vertices.mean(axis=0)
    for _ in range(rounds):
        sights = clear_sights(surface, refined)
        # the surroundings change too little between rounds to be looked at again
        images = images or [
            relative_colours(view, one.depth_m > 0) for view, (one, _) in zip(refined, sights, strict=True)
        ]
        colours = [sample(image, one.x, one.y) for image, (one, _) in zip(images, sights, strict=True)]
        total, weight = np.zeros_like(colours[0]), np.zeros(len(colours[0]), np.float32)
        for c, (_, w) in zip(colours, sights, strict=True):
            total += w[:, None] * c
            weight += w
        moved = []
        for view, T_given, image, c, (_, w) in zip(refined, given, images, colours, sights, strict=True):
            others = weight - w
            use = np.flatnonzero((w > 0) & (others > 0.5))
            use = use[:: max(len(use) // _MOST_VERTICES, 1)]
            mean = (total[use] - w[use, None] * c[use]) / others[use, None]
            moved.append(_align(view, T_given, image, surface.vertices[use], mean, w[use], centre))
        refined = _without_common_motion(views, moved, centre)
    return refined


def _align(
    view: ReferenceView, T_given: Array, image: Array, points: Array, target: Array, weight: Array, centre: Array
) -> Array:
    """Return the pose (4,4) at which the view's relative colours (h,w,3) at points (N,3) meet their `target` (N,3)."""
    T = view.T_cam_from_obj
    if len(points) < _LEAST_VERTICES:
        return T
    gradients = np.concatenate(
        [cv2.Sobel(image, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(image, cv2.CV_32F, 0, 1, scale=1 / 8)], axis=2
    )
    z_centre = float((T[:3, :3] @ centre + T[:3, 3])[2])
    unit = z_centre / view.focal_px  # metres of a pixel
    prior = np.diag(1 / np.array([_PRIOR_RAD] * 3 + [_PRIOR_PX] * 2 + [5 * _PRIOR_PX]) ** 2)
    for _ in range(_STEPS):
        x, y, _ = view.at(T).project(points)
        residual = sample(image, x, y) - target
        slope = np.concatenate([sample(np.ascontiguousarray(gradients[..., i : i + 3]), x, y) for i in (0, 3)], axis=1)
        arm = points @ T[:3, :3].T + T[:3, 3]
        J = _projection_jacobian(view.K, arm, arm - (T[:3, :3] @ centre + T[:3, 3]), unit)  # (N,2,6)
        rows = slope[:, :3, None] * J[:, None, 0] + slope[:, 3:, None] * J[:, None, 1]  # (N,3,6)
        robust = (
            weight / (1 + (np.linalg.norm(residual, axis=1) / (2 * _NOISE)) ** 2) * (_INDEPENDENT_SHARE / _NOISE**2)
        )
        A = np.einsum("nci,n,ncj->ij", rows, robust, rows) + prior
        b = np.einsum("nci,n,nc->i", rows, robust, residual) + prior @ _motion(T_given, T, centre, unit)
        step = -np.linalg.solve(A, b)
        T = _moved(T, step, centre, unit)
    return T


def _projection_jacobian(K: Array, xyz_cam: Array, arm: Array, unit: float) -> Array:
    """Return the derivatives (N,2,6) of the positions of points (N,3) by a rotation in radians and a motion.

    The rotation is about the middle of the object, from which points are `arm` (N,3) away; the motion is in pixels of
    `unit` metres.
    """
    x, y, z = xyz_cam.T
    zero = np.zeros_like(x)
    by_point = np.stack([K[0, 0] / z, zero, -K[0, 0] * x / z**2, zero, K[1, 1] / z, -K[1, 1] * y / z**2], axis=1)
    a, b, c = arm.T
    by_rotation = np.stack([zero, c, -b, -c, zero, a, b, -a, zero], axis=1).reshape(-1, 3, 3)
    by_motion = np.concatenate([by_rotation, np.broadcast_to(unit * np.eye(3), (len(x), 3, 3))], axis=2)
    return np.asarray(by_point.reshape(-1, 2, 3) @ by_motion)


def _moved(T: Array, step: Array, centre: Array, unit: float) -> Array:
    R = np.asarray(cv2.Rodrigues(step[:3])[0])
    middle = T[:3, :3] @ centre + T[:3, 3]
    return make_T(R @ T[:3, :3], R @ (T[:3, 3] - middle) + middle + unit * step[3:])


def _motion(T_from: Array, T_to: Array, centre: Array, unit: float) -> Array:
    """Return the step (6,) of `_moved` that leads from one pose to another."""
    rotation = cv2.Rodrigues(T_to[:3, :3] @ T_from[:3, :3].T)[0][:, 0]
    shift = (T_to[:3, :3] @ centre + T_to[:3, 3]) - (T_from[:3, :3] @ centre + T_from[:3, 3])
    return np.concatenate([rotation, shift / unit])


def _without_common_motion(
    given: Sequence[ReferenceView], poses: Sequence[Array], centre: Array
) -> list[ReferenceView]:
    """Return the views at their new poses after the mean motion of the object against its given frame is undone."""
    motions = [invert_T(view.T_cam_from_obj) @ T for view, T in zip(given, poses, strict=True)]  # given from new frame
    vector = np.mean([cv2.Rodrigues(motion[:3, :3])[0][:, 0] for motion in motions], axis=0)
    shift = np.mean([motion[:3, :3] @ centre + motion[:3, 3] for motion in motions], axis=0)
    R = np.asarray(cv2.Rodrigues(vector)[0])
    undo = invert_T(make_T(R, shift - R @ centre))
    shared = [T @ undo for T in poses]
    # nor can colours tell cameras that all go away from an object that grows
    before, after = (
        [(T[:3, :3] @ centre + T[:3, 3])[2] for T in each] for each in ([view.T_cam_from_obj for view in given], shared)
    )
    ratio = float(np.exp(np.mean(np.log(after) - np.log(before))))
    return [view.at(_nearer(T, centre, ratio)) for view, T in zip(given, shared, strict=True)]


def _nearer(T: Array, centre: Array, ratio: float) -> Array:
    """Return a pose whose camera is nearer to a point by a ratio, along the ray to it."""
    middle = T[:3, :3] @ centre + T[:3, 3]
    return make_T(T[:3, :3], T[:3, 3] + middle * (1 / ratio - 1))
