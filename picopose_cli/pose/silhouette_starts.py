"""Poses to start from, found by the silhouettes of an object's templates alone.

A mask and the silhouettes of all views are brought to one size and one centre; the mask also to many in-plane angles.
Their overlaps are one product of matrices. For objects without texture the views of the largest overlaps have more
right ones among them than those that the network prefers.

A mask that ends where another detection begins may be a part of the object's silhouette. Then larger sizes, with
centres in that direction, are tried too, and what a silhouette covers of the other detection hardly counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from picopose_cli.base.geometry import distinct_rotations, move_origin, pixel_index_affine
from picopose_cli.base.types import CROP_PX, GRID_CELLS, Array
from picopose_cli.pose.correspondences import affine_poses, rotate_to_ray

CELLS = 32
"""Side of the grid on which silhouettes are compared."""
EXTENT = 1.9
"""Its side in square roots of the silhouette's area."""
ANGLES, PART_ANGLES = 36, 24
"""In-plane rotations of the mask, and of one that is a part."""
PART_SIZES = ((1.1, 2), (1.32, 4), (1.6, 6))
"""Sizes of a silhouette in those of a mask that is a part of it, and how many cells its centre may be off."""
HIDDEN_COUNTS = 0.2
"""How much of a pixel of the background a pixel counts in which the object may be hidden."""
MIN_HIDDEN_SHARE = 0.1
"""Share of a mask's rim that is hidden, from which on the mask may be a part."""
DISTINCT_DEG = 12.0
"""Of starts that differ by less, the one of the largest overlap is returned alone."""
_CONSIDERED = 400
"""Pairs of view and similarity, of the largest overlaps, that starts are chosen from."""


@dataclass(frozen=True)
class Silhouettes:
    """The silhouettes of an object's V views.

    `shares` (V,CELLS^2) f32 covered shares of cells; `A_cells_from_crop` (V,3,3); cameras as in `TemplateBank`.
    """

    shares: Array
    A_cells_from_crop: Array
    K: Array
    A_crop_from_image: Array
    T_tmpl_from_obj: Array
    centre_m: Array


def make_silhouettes(
    depth_centre_m: Array, K: Array, A_crop_from_image: Array, T_tmpl_from_obj: Array, centre_m: Array
) -> Silhouettes:
    """Return the silhouettes of a bank's views; arguments as the fields of `TemplateBank`."""
    scale = GRID_CELLS / CROP_PX
    grid_from_crop = np.diag([scale, scale, 1.0])
    cells_from_grid = [_to_cells(depth > 0, 0.0) for depth in depth_centre_m]
    shares = [_warp(_smoothed(depth > 0, A), A) for depth, A in zip(depth_centre_m, cells_from_grid, strict=True)]
    return Silhouettes(
        np.stack(shares).reshape(len(shares), -1),
        np.stack(cells_from_grid) @ grid_from_crop,
        K,
        A_crop_from_image.astype(np.float64),
        T_tmpl_from_obj,
        centre_m,
    )


def silhouette_starts(silhouettes: Silhouettes, mask: Array, shown: Array, K: Array, count: int) -> Array:
    """Return up to `count` poses (H,4,4), metres, whose silhouettes overlap with a mask (S,S) bool.

    `shown` (S,S) bool: where the object would be seen; `K` (3,3) of the mask's camera. The poses are best first and
    their rotations distinct. Of a mask that may be a part of a silhouette, the first half are for the whole, the others
    for a part. There are none for an empty mask.
    """
    if not mask.any():
        return np.zeros((0, 4, 4))
    A = np.stack([_to_cells(mask, angle) for angle in _angles(ANGLES)])
    smoothed = _smoothed(mask, A[0])
    shares = np.stack([_warp(smoothed, one) for one in A]).reshape(ANGLES, -1)
    common = shares @ silhouettes.shares.T
    overlap = common / (shares.sum(axis=1)[:, None] + silhouettes.shares.sum(axis=1) - common)
    towards = _hidden_direction(mask, shown)
    if towards is None:
        return _best(silhouettes, overlap, A, K, count)
    parts = [_part_overlaps(silhouettes, mask, ~mask & ~shown, towards, *how) for how in PART_SIZES]
    overlaps, A_parts = (np.concatenate(of_sizes) for of_sizes in zip(*parts, strict=True))
    return np.concatenate(
        [_best(silhouettes, overlap, A, K, count // 2), _best(silhouettes, overlaps, A_parts, K, count - count // 2)]
    )


def _hidden_direction(mask: Array, shown: Array) -> Array | None:
    """Return the direction (2,) px from a mask to what may hide a part of its object; None if nothing does."""
    rim = (cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & ~mask
    hidden = np.argwhere(rim & ~shown)
    if len(hidden) <= MIN_HIDDEN_SHARE * np.count_nonzero(rim):
        return None
    return np.asarray((hidden.mean(axis=0) - np.argwhere(mask).mean(axis=0))[::-1])


def _part_overlaps(
    silhouettes: Silhouettes, mask: Array, hidden: Array, towards: Array, size: float, most_off: int
) -> tuple[Array, Array]:
    """Return the overlaps (N,V) of a mask that is a part, under similarities A_cells_from_photo (N,3,3), and these.

    The object may go on in `hidden` (S,S) bool, in the direction `towards` (2,). `size`, `most_off`: see `PART_SIZES`.
    """
    steps = np.arange(2 * most_off + 1)
    offsets = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)  # x, y
    affines = []
    windows: tuple[list[Array], list[Array]] = [], []  # of the mask, and of what is hidden
    smoothed = [_smoothed(image, _to_cells(mask, 0.0, size, most_off)) for image in (mask, hidden)]
    for angle in _angles(PART_ANGLES):
        A = _to_cells(mask, angle, size, most_off)
        used = offsets[(offsets - most_off) @ (A[:2, :2] @ towards) >= 0]
        for image, of_image in zip(smoothed, windows, strict=True):
            placed = sliding_window_view(_warp(image, A, CELLS + 2 * most_off), (CELLS, CELLS))
            of_image.append(placed[used[:, 1], used[:, 0]].reshape(len(used), -1))
        shifted = np.tile(A, (len(used), 1, 1))
        shifted[:, :2, 2] -= used
        affines.append(shifted)
    area = np.float32(np.count_nonzero(mask) * np.linalg.det(affines[0][0, :2, :2]))
    common, behind = (np.concatenate(of_image) @ silhouettes.shares.T for of_image in windows)
    overlap = common / (area + silhouettes.shares.sum(axis=1) - common - np.float32(1 - HIDDEN_COUNTS) * behind)
    return overlap, np.concatenate(affines)


def _best(silhouettes: Silhouettes, overlap: Array, A_cells_from_photo: Array, K: Array, count: int) -> Array:
    """Return up to `count` poses (H,4,4) of the largest overlaps (N,V), best first, of N similarities (N,3,3)."""
    considered = min(_CONSIDERED, overlap.size)
    best = np.argpartition(-overlap, considered - 1, axis=None)[:considered]
    best = best[np.lexsort((best, -overlap.ravel()[best]))]
    similarity, view = np.unravel_index(best, overlap.shape)
    A = np.linalg.solve(A_cells_from_photo[similarity], silhouettes.A_cells_from_crop[view])
    T = _poses(silhouettes, view, A, K)
    return T[distinct_rotations(T[:, :3, :3], np.deg2rad(DISTINCT_DEG), count)]


def _angles(count: int) -> Array:
    return np.arange(count) * 2 * np.pi / count


def _to_cells(mask: Array, angle_rad: float, size: float = 1.0, margin: int = 0) -> Array:
    """Return the similarity (3,3) that brings a mask to the middle of the grid and a margin, rotated by minus an angle.

    The grid is as large as for a silhouette of `size` times the mask's.
    """
    moments = cv2.moments(mask.astype(np.uint8), binaryImage=True)
    area = max(moments["m00"], 1.0)
    centre = np.array([moments["m10"], moments["m01"]]) / area + 0.5
    scale = CELLS / (EXTENT * np.sqrt(area) * size)
    A = np.eye(3)
    A[:2, :2] = scale * np.array([[np.cos(angle_rad), np.sin(angle_rad)], [-np.sin(angle_rad), np.cos(angle_rad)]])
    A[:2, 2] = CELLS / 2 + margin - A[:2, :2] @ centre
    return A


def _smoothed(mask: Array, A: Array) -> Array:
    """Return a mask as f32 without the detail that is lost under a similarity that scales it down."""
    image: Array = mask.astype(np.float32)
    scale = float(np.sqrt(np.linalg.det(A[:2, :2])))
    return image if scale >= 0.7 else np.asarray(cv2.GaussianBlur(image, (0, 0), 0.45 / scale), np.float32)


def _warp(smoothed: Array, A: Array, cells: int = CELLS) -> Array:
    """Return the share (cells,cells) f32 of each cell that a smoothed mask covers."""
    return np.asarray(cv2.warpAffine(smoothed, pixel_index_affine(A), (cells, cells), flags=cv2.INTER_LINEAR))


def _poses(silhouettes: Silhouettes, views: Array, A_photo_from_crop: Array, K: Array) -> Array:
    """Return the poses (N,4,4) at which views appear in the photograph under similarities (N,3,3)."""
    count = len(views)
    T = affine_poses(
        A_photo_from_crop,
        np.tile(np.eye(3), (count, 1, 1)),
        silhouettes.A_crop_from_image[views],
        np.tile(K, (count, 1, 1)),
        np.tile(silhouettes.K, (count, 1, 1)),
        move_origin(silhouettes.T_tmpl_from_obj[views], silhouettes.centre_m),
    )
    return move_origin(rotate_to_ray(T), -silhouettes.centre_m)
