"""The hull of silhouettes on a grid, robust to masks that are rough or wrong.

A point's value for a view is its distance, in metres, to the edge of the view's mask, positive inside. On exact masks
the hull is where the smallest value of all views is positive. Rough masks would carve it to pieces; so a small share of
the views is overruled: the value of a point is that quantile over the views that know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.geometry import mask_iou
from picopose_cli.base.types import Array
from picopose_cli.reconstruction.views import ReferenceView

OVERRULED_SHARES = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2)
"""Shares of the views that may contradict a point of the object; the one whose hull fits the masks best is taken."""
_CHUNK_POINTS = 60_000
_UNKNOWN = np.float32(1e6)
"""Distance, px, where a photograph ends: it contradicts nothing."""
_RADIUS_MARGIN = 1.1


@dataclass(frozen=True)
class Grid:
    """A grid of cubes in the object frame: the centre of the first one `origin_m` (3,), `step_m`, `shape` (x, y, z)."""

    origin_m: Array
    step_m: float
    shape: tuple[int, int, int]

    def points(self, index: Array) -> Array:
        """Return the points (N,3) f32 m of flat indices (N,)."""
        return np.asarray(
            self.origin_m + self.step_m * np.stack(np.unravel_index(index, self.shape), axis=-1), np.float32
        )

    @staticmethod
    def around(low_m: Array, high_m: Array, cells: int) -> Grid:
        """Return a grid of `cells` cubes along the longest side of a box, with two more beyond each of its sides."""
        step = float((high_m - low_m).max()) / cells
        shape = np.ceil((high_m - low_m) / step).astype(int) + 5
        origin = (low_m + high_m) / 2 - step * (shape - 1) / 2
        return Grid(origin, step, (int(shape[0]), int(shape[1]), int(shape[2])))


def mask_distances(view: ReferenceView) -> Array:
    """Return the distance (h,w) f32 px of a view's pixels to the edge of its mask, positive inside."""
    inside = view.silhouette.astype(np.uint8)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    distance -= np.where(view.silhouette, np.float32(0.5), np.float32(-0.5))
    distance[~view.known] = _UNKNOWN
    return np.asarray(distance, np.float32)


def sample(image: Array, x: Array, y: Array, outside: float = 0.0) -> Array:
    """Return the values (N,...) of an image (h,w,...) f32 at positions x, y (N,) f32, as pixel indices, bilinear."""
    if not len(x):
        return np.zeros((0, *image.shape[2:]), np.float32)
    rows = 16_384  # OpenCV's limit is 32,767 for a side of the result
    padded = -(-len(x) // rows) * rows if len(x) > rows else len(x)
    shape = (-1, min(padded, rows))
    map_x, map_y = (np.pad(axis, (0, padded - len(axis)), constant_values=-9).reshape(shape) for axis in (x, y))
    values = cv2.remap(
        image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(outside,) * 4
    )
    return np.asarray(values.reshape(padded, *image.shape[2:])[: len(x)])


def view_values(views: Sequence[ReferenceView], distances: Sequence[Array], points: Array) -> Array:
    """Return the distances (V,N) f32 m of points (N,3) to the edges of the masks, seen at the points' depths."""
    values = np.empty((len(views), len(points)), np.float32)
    for row, view, distance in zip(values, views, distances, strict=True):
        x, y, z = view.project(points)
        np.multiply(sample(distance, x, y, -max(view.size_hw) / 8), z / np.float32(view.focal_px), out=row)
    return values


def hull_values(
    views: Sequence[ReferenceView], distances: Sequence[Array], points: Array, shares: Sequence[float]
) -> Array:
    """Return the values (len(shares), N) f32 m of points (N,3) if those shares of the views are overruled."""
    ranks = [min(int(share * len(views)), len(views) - 1) for share in shares]
    found = np.empty((len(ranks), len(points)), np.float32)
    for start in range(0, len(points), _CHUNK_POINTS):
        part = slice(start, start + _CHUNK_POINTS)
        values = view_values(views, distances, points[part])
        values.partition(sorted(set(ranks)), axis=0)
        found[:, part] = values[ranks]
    return found


def enclosing_sphere(views: Sequence[ReferenceView]) -> tuple[Array, float, Array]:
    """Return the point (3,) nearest to the rays through the masks' middles, and a radius in metres around the object.

    Third is the angle (V,) by which each view's ray misses the point, in units of half the angle that its mask spans.
    The point is found by least squares with the weight of rays that miss it reduced.
    """
    rays, origins, spans = [], [], []
    for view in views:
        rows, cols = np.nonzero(view.silhouette)
        middle = np.array([(cols.min() + cols.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2, 1.0])
        ray = view.T_cam_from_obj[:3, :3].T @ np.linalg.inv(view.K) @ middle
        rays.append(ray / np.linalg.norm(ray))
        origins.append(view.centre_m)
        spans.append(max(np.ptp(cols), np.ptp(rows)) / 2 / view.focal_px)
    d, o, span = np.array(rays), np.array(origins), np.array(spans)
    across = np.eye(3) - d[:, :, None] * d[:, None]
    weight = np.ones(len(views))
    for _ in range(20):
        A = (weight[:, None, None] * across).sum(axis=0) + 1e-9 * np.eye(3)
        centre = np.linalg.solve(A, (weight[:, None, None] * across @ o[..., None]).sum(axis=0)[:, 0])
        distance = np.maximum(np.linalg.norm(centre - o, axis=1), 1e-9)
        miss = np.linalg.norm((across @ (centre - o)[..., None])[..., 0], axis=1) / distance / span
        weight = 1 / (0.05 + miss) ** 2
    radius = np.quantile(_RADIUS_MARGIN * (span * np.sqrt(2)) * distance, 0.9)
    behind = ((centre - o) * d).sum(axis=1) <= 0
    return np.asarray(centre), float(radius), np.where(behind, np.inf, miss)


def silhouette_ious(views: Sequence[ReferenceView], points: Array, step_m: float) -> Array:
    """Return the IoU (V,) of each mask with the silhouette of cubes at points (N,3) with sides of `step_m`."""
    ious = np.zeros(len(views))
    for i, view in enumerate(views):
        drawn = splat(view, points, step_m)
        drawn &= view.known
        mask = view.silhouette
        ious[i] = mask_iou(drawn, mask)
    return ious


def splat(view: ReferenceView, points: Array, step_m: float) -> Array:
    """Return the silhouette (h,w) bool of cubes at points (N,3): their centres, closed by a cube's size."""
    x, y, z = view.project(points)
    cell_px = max(view.focal_px * step_m / float(np.median(np.asarray(z))), 1.0)
    scale = 2.0 / max(cell_px, 2.0)  # a cube covers two pixels of the reduced image
    size_wh = (max(int(view.size_hw[1] * scale), 1), max(int(view.size_hw[0] * scale), 1))
    image = np.zeros(size_wh[::-1], np.uint8)
    col, row = np.rint((x + 0.5) * scale - 0.5).astype(int), np.rint((y + 0.5) * scale - 0.5).astype(int)
    inside = (col >= 0) & (row >= 0) & (col < size_wh[0]) & (row < size_wh[1])
    image[row[inside], col[inside]] = 1
    image = np.asarray(cv2.morphologyEx(image, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)))
    return np.asarray(cv2.resize(image, view.size_hw[::-1], interpolation=cv2.INTER_LINEAR)) > 0


def view_directions(views: Sequence[ReferenceView], centre_m: Array) -> Array:
    """Return the unit directions (V,3) from a point (3,) of the object frame to the cameras."""
    to_camera = np.array([view.centre_m for view in views]) - centre_m
    return np.asarray(to_camera / np.linalg.norm(to_camera, axis=1, keepdims=True))
