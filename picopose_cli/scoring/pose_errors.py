"""Pose errors between estimates and ground truth, for all pairs at once: MSSD, MSPD, ADD, ADD-S.

E estimates, G ground-truth poses, S symmetries, N model points. Poses are T_cam_from_obj in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.cameras import CameraModel, Pinhole
from picopose_cli.base.geometry import project_points, rotation_deviation, transform_points
from picopose_cli.base.types import Array

BATCH_POINTS = 400_000
"""Points transformed at once: keeps the temporary arrays small enough for the cache."""

_MAX_DEVIATION = 1e-3
"""Of R R^T from the identity, up to which inverting a pose keeps distances."""
_DIRECTIONS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]], np.float64)


@dataclass(frozen=True)
class PointSet:
    """Points of a model for many poses: `points` (4,N) homogeneous, and of them the outermost ones, `probes` (4,P)."""

    points: Array
    probes: Array


def make_point_set(xyz_obj_m: Array) -> PointSet:
    """Return the point set of model points (N,3)."""
    points = np.concatenate([xyz_obj_m.T, np.ones((1, len(xyz_obj_m)))])
    heights = _DIRECTIONS @ points[:3]
    return PointSet(points, points[:, np.concatenate([heights.argmin(axis=1), heights.argmax(axis=1)])])


def mssd(
    T_est: Array, T_gt: Array, xyz_obj_m: Array | PointSet, symmetries: Array, *, limit_m: float = np.inf
) -> Array:
    """Return the maximum symmetry-aware surface distances (E,G) in metres, infinite above `limit_m`.

    `T_est` (E,4,4), `T_gt` (G,4,4), `xyz_obj_m` (N,3) or their set, `symmetries` (S,4,4): the smallest over the
    symmetries of the largest distance of a model point. Source: Hodan et al., BOP Challenge 2020 (toolkit:
    pose_error.mssd).
    """
    return _pairwise(T_est[:, :3], T_gt[:, :3], xyz_obj_m, symmetries, limit_m, None)


def mspd(
    T_est: Array,
    T_gt: Array,
    camera: CameraModel,
    xyz_obj_m: Array | PointSet,
    symmetries: Array,
    *,
    limit_px: float = np.inf,
) -> Array:
    """Return the maximum symmetry-aware projection distances (E,G) in pixels, infinite above `limit_px`.

    Points are projected by the image's own `camera`; the other shapes are as in `mssd`. Source: Hodan et al., BOP
    Challenge 2020 (toolkit: pose_error.mspd).
    """
    if isinstance(camera, Pinhole):
        return _pairwise(camera.K @ T_est[:, :3], camera.K @ T_gt[:, :3], xyz_obj_m, symmetries, limit_px, _divide)

    def project(xyz_cam: Array) -> Array:
        return np.stack(camera.project_axes(xyz_cam[..., 0, :], xyz_cam[..., 1, :], xyz_cam[..., 2, :]), axis=-2)

    return _pairwise(T_est[:, :3], T_gt[:, :3], xyz_obj_m, symmetries, limit_px, project)


Project = Callable[[Array], Array]
"""Maps placed points (..., 3, N) to pixels (..., 2, N)."""


def _divide(homogeneous: Array) -> Array:
    pixels: Array = homogeneous[..., :2, :] / homogeneous[..., 2:, :]
    return pixels


def _pairwise(
    M_est: Array, M_gt: Array, model: Array | PointSet, symmetries: Array, limit: float, project: Project | None
) -> Array:
    """Return (E,G) smallest largest distances for the 3x4 maps (E,3,4) and (G,3,4) of the two sides; None: in space."""
    model = model if isinstance(model, PointSet) else make_point_set(model)
    distances = np.full((len(M_est), len(M_gt)), np.inf)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if distances.size == len(symmetries) == 1:  # nothing to choose from: bounds would only cost time
            found = _largest(M_est, M_gt @ symmetries, model.points, project)
            distances[0, 0] = found[0]
        else:
            _fill_near(distances, M_est, M_gt, model, symmetries, limit, project)
    distances[distances > limit] = np.inf
    return distances


def _fill_near(
    distances: Array,
    M_est: Array,
    M_gt: Array,
    model: PointSet,
    symmetries: Array,
    limit: float,
    project: Project | None,
) -> None:
    """Set those of `distances` (E,G) that the bounds of the outermost points do not place beyond `limit`."""
    pairs = np.indices(distances.shape).reshape(2, -1).T
    for rows, columns in _batches(pairs, len(symmetries) * model.probes.shape[1]):
        M_symmetric = M_gt[columns, None] @ symmetries  # (P,S,3,4)
        bounds = _symmetric_squares(M_est[rows], M_symmetric, model.probes, project).max(axis=1)  # (P,S)
        bounds[np.isnan(bounds)] = np.inf
        near = np.flatnonzero(bounds.min(axis=1) <= limit**2)
        for (chosen,) in _batches(near[:, None], model.points.shape[1]):
            found = _smallest_largest(M_est[rows[chosen]], M_symmetric[chosen], model.points, bounds[chosen], project)
            distances[rows[chosen], columns[chosen]] = found


def _largest(M_est: Array, M_gt: Array, points: Array, project: Project | None) -> Array:
    """Return for P pairs of maps (P,3,4) the largest distance (P,) over `points` (4,N), infinite where one is NaN."""
    largest: Array = np.sqrt(np.fmin(np.inf, _squared_distances(M_est, M_gt, points, project).max(axis=-1)))
    return largest


def _batches(items: NDArray[np.intp], points_each: int) -> Iterator[NDArray[np.intp]]:
    """Yield the columns (C,B) of `items` (I,C) in batches of at most BATCH_POINTS points, or of one item."""
    step = max(1, BATCH_POINTS // max(1, points_each))
    for start in range(0, len(items), step):
        yield items[start : start + step].T


def _smallest_largest(M_est: Array, M_gt: Array, points: Array, bounds: Array, project: Project | None) -> Array:
    """Return for P pairs the smallest over S symmetries of the largest distance over `points` (4,N).

    Not every symmetry is tried on every point. The distance of any one point bounds a symmetry's largest distance
    from below, `bounds` (P,S) at the start. So take the symmetry of the lowest bound, compute the distances of all its
    points, raise the bounds of the others with its worst point, and stop when no bound is below the best value found.
    The result equals that of the full search.
    """
    if M_gt.shape[1] == 1:
        return _largest(M_est, M_gt[:, 0], points, project)
    best = np.full(len(M_est), np.inf)
    placed_est = _place(M_est, points, project)  # (P,3 or 2,N)
    pending: NDArray[np.intp] = np.arange(len(M_est))
    while pending.size:
        each = np.arange(len(pending))
        chosen = bounds[pending].argmin(axis=1)
        squared = _summed_squares(_place(M_gt[pending, chosen], points, project) - placed_est[pending])  # (P,N)
        worst = squared.argmax(axis=1)
        best[pending] = np.fmin(best[pending], squared[each, worst])
        at_worst = _symmetric_squares(M_est[pending], M_gt[pending], points[:, worst].T[:, :, None], project)[:, 0]
        at_worst[np.isnan(at_worst)] = np.inf
        bounds[pending] = np.fmax(bounds[pending], at_worst)
        bounds[pending, chosen] = np.inf  # done
        pending = pending[bounds[pending].min(axis=1) < best[pending]]
    distances: Array = np.sqrt(best)
    return distances


def _symmetric_squares(M_est: Array, M_gt: Array, points: Array, project: Project | None) -> Array:
    """Return the squared distances (P,N,S) of `points` (4,N) or (P,4,N) between maps (P,3,4) and symmetric (P,S,3,4).

    The symmetries are the last axis: it is the longest, and loops over short axes are slow.
    """
    pairs, symmetries = M_gt.shape[:2]
    placed = (M_gt.reshape(pairs, -1, 4) @ points).reshape(pairs, symmetries, 3, -1)
    at_gt: Array = np.ascontiguousarray(placed.transpose(0, 2, 3, 1)).reshape(pairs, 3, -1)  # (P,3,N*S)
    if project is not None:
        at_gt = project(at_gt)
    at_est = _place(M_est, points, project)[..., None]
    return _summed_squares(at_gt.reshape(*at_est.shape[:-1], symmetries) - at_est)


def _squared_distances(M_est: Array, M_gt: Array, points: Array, project: Project | None) -> Array:
    """Return the squared distances (P,N) between `points` (4,N) placed by two maps (P,3,4)."""
    return _summed_squares(_place(M_gt, points, project) - _place(M_est, points, project))


def _summed_squares(differences: Array) -> Array:
    """Return the sums of squares over the second axis of (P,C,...), which is overwritten."""
    differences *= differences
    total: Array = differences[:, 0] + differences[:, 1]
    for axis in range(2, differences.shape[1]):
        total += differences[:, axis]
    return total


def _place(M: Array, points: Array, project: Project | None) -> Array:
    """Map homogeneous points (..., 4, N) by (..., 3, 4): to camera space (..., 3, N) or to pixels (..., 2, N)."""
    placed: Array = M @ points
    return placed if project is None else project(placed)


def add(T_est: Array, T_gt: Array, xyz_obj_m: Array) -> Array:
    """Return the average distances (E,G) in metres of the model points between two poses.

    Source: Hinterstoisser et al., ACCV 2012 (toolkit: pose_error.add).
    """
    distances = np.empty((len(T_est), len(T_gt)))
    for column, T in enumerate(T_gt):
        for row, difference in enumerate(T_est - T):
            moved = xyz_obj_m @ difference[:3, :3].T + difference[:3, 3]
            distances[row, column] = np.linalg.norm(moved, axis=1).mean()
    return distances


def adds(T_est: Array, T_gt: Array, xyz_obj_m: Array) -> Array:
    """Return the average distances (E,G) in metres from each point at the GT to the nearest one at the estimate.

    Source: Hinterstoisser et al., ACCV 2012 (toolkit: pose_error.adi).
    """
    from scipy.spatial import cKDTree  # slow to import, and needed by this error only

    tree = cKDTree(xyz_obj_m)
    distances = np.full((len(T_est), len(T_gt)), np.inf)
    for row in np.flatnonzero(np.isfinite(T_est).all(axis=(1, 2))):
        T = T_est[row]
        if _is_rigid(T):
            # in the estimate's object frame the searched points stay where they are, so one tree serves all pairs
            at_gt, searched = transform_points(np.linalg.inv(T) @ T_gt, xyz_obj_m), tree  # (G,N,3)
        else:
            placed = transform_points(T, xyz_obj_m)
            if not np.isfinite(placed).all():
                continue
            at_gt, searched = transform_points(T_gt, xyz_obj_m), cKDTree(placed)
        distances[row] = np.asarray(searched.query(at_gt)[0]).mean(axis=1)
    return distances


def _is_rigid(T: Array) -> bool:
    """Return whether (4,4) keeps distances, to the digits of result files; estimates may have any nine numbers as R."""
    return bool(rotation_deviation(T[:3, :3]) <= _MAX_DEVIATION)


def overlapping_spheres(T_est: Array, T_gt: Array, diameter_m: float) -> NDArray[np.bool_]:
    """Return whether the origins of two poses are nearer than the object's diameter, (E,G) bool.

    Other pairs get an infinite MSSD (toolkit: eval_calc_errors, spheres_overlap).
    """
    offsets = T_est[:, None, :3, 3] - T_gt[None, :, :3, 3]
    near: NDArray[np.bool_] = np.linalg.norm(offsets, axis=-1) < diameter_m
    return near


def overlapping_sphere_images(T_est: Array, T_gt: Array, diameter_m: float) -> NDArray[np.bool_]:
    """Return whether the projected bounding spheres overlap, by the toolkit's approximation, (E,G) bool.

    Other pairs get the worst VSD (toolkit: misc.overlapping_sphere_projections).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        xy_est, xy_gt = (project_points(np.eye(3), T[:, :3, 3]) for T in (T_est, T_gt))
        apart = np.linalg.norm(xy_est[:, None] - xy_gt[None], axis=-1)
        reach = 0.5 * diameter_m * (1 / T_est[:, None, 2, 3] + 1 / T_gt[None, :, 2, 3])
    overlap: NDArray[np.bool_] = apart < reach
    return overlap
