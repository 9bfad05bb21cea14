"""Poses to start from, found by the silhouettes of an object's templates alone.

A mask and the silhouettes of all views are brought to one size and one centre; the mask also to many in-plane angles.
Their overlaps are one product of matrices. For objects without texture the views of the largest overlaps have more
right ones among them than those that the network prefers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.geometry import move_origin, pixel_index_affine
from picopose_cli.base.types import CROP_PX, GRID_CELLS, Array
from picopose_cli.pose.correspondences import affine_poses, rotate_to_ray

CELLS = 32
"""Side of the grid on which silhouettes are compared."""
EXTENT = 1.9
"""Its side in square roots of the silhouette's area."""
ANGLES = 36
"""In-plane rotations of the mask."""
DISTINCT_DEG = 12.0
"""Of starts that differ by less, the one of the largest overlap is returned alone."""
_CONSIDERED = 400
"""Pairs of view and angle, of the largest overlaps, that starts are chosen from."""


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
    shares = [_warp(depth > 0, A) for depth, A in zip(depth_centre_m, cells_from_grid, strict=True)]
    return Silhouettes(
        np.stack(shares).reshape(len(shares), -1),
        np.stack(cells_from_grid) @ grid_from_crop,
        K,
        A_crop_from_image.astype(np.float64),
        T_tmpl_from_obj,
        centre_m,
    )


def silhouette_starts(silhouettes: Silhouettes, mask: Array, K: Array, count: int) -> Array:
    """Return up to `count` poses (H,4,4), metres, whose silhouettes overlap with a mask (S,S) bool, best first.

    `K` (3,3) of the mask's camera. The rotations of the poses are distinct. No poses for an empty mask.
    """
    if not mask.any():
        return np.zeros((0, 4, 4))
    angles = np.arange(ANGLES) * 2 * np.pi / ANGLES
    cells_from_photo = np.stack([_to_cells(mask, angle) for angle in angles])
    rotated = np.stack([_warp(mask, A) for A in cells_from_photo]).reshape(ANGLES, -1)
    common = rotated @ silhouettes.shares.T
    overlap = common / (rotated.sum(axis=1)[:, None] + silhouettes.shares.sum(axis=1) - common)
    best = np.argsort(-overlap, axis=None, kind="stable")[:_CONSIDERED]
    angle, view = np.unravel_index(best, overlap.shape)
    A = np.linalg.solve(cells_from_photo[angle], silhouettes.A_cells_from_crop[view])
    T = _poses(silhouettes, view, A, K)
    return T[_distinct(T[:, :3, :3], count)]


def _to_cells(mask: Array, angle_rad: float) -> Array:
    """Return the similarity (3,3) that brings a mask to the grid's centre and size, rotated by minus an angle."""
    moments = cv2.moments(mask.astype(np.uint8), binaryImage=True)
    area = max(moments["m00"], 1.0)
    centre = np.array([moments["m10"], moments["m01"]]) / area + 0.5
    scale = CELLS / (EXTENT * np.sqrt(area))
    A = np.eye(3)
    A[:2, :2] = scale * np.array([[np.cos(angle_rad), np.sin(angle_rad)], [-np.sin(angle_rad), np.cos(angle_rad)]])
    A[:2, 2] = CELLS / 2 - A[:2, :2] @ centre
    return A


def _warp(mask: Array, A: Array) -> Array:
    """Return the share (CELLS,CELLS) f32 of each cell that a mask covers."""
    image: Array = mask.astype(np.float32)
    scale = float(np.sqrt(np.linalg.det(A[:2, :2])))
    if scale < 0.7:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.45 / scale), np.float32)
    return np.asarray(cv2.warpAffine(image, pixel_index_affine(A), (CELLS, CELLS), flags=cv2.INTER_LINEAR))


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


def _distinct(R: Array, count: int) -> list[int]:
    """Return the indices of up to `count` rotations (N,3,3) that differ from all that are chosen before them."""
    chosen: list[int] = []
    least_trace = 1 + 2 * np.cos(np.deg2rad(DISTINCT_DEG))
    for i, one in enumerate(R):
        if (np.einsum("nij,ij->n", R[chosen], one) < least_trace).all():
            chosen.append(i)
            if len(chosen) == count:
                break
    return chosen
