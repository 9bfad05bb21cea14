"""Refinement by contours: poses move to where the outline and the folds of their renders are in the photograph.

What has no texture shows nothing else. A render here is depth alone, and a small one is enough: a round takes a few
milliseconds, so that many starts can be judged and the best of them refined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from picopose_cli.base.types import Array
from picopose_cli.pose.contour_search import (
    Photograph,
    SearchRound,
    contour_agreement,
    is_shown,
    search_contour,
)
from picopose_cli.pose.contours import find_contour
from picopose_cli.pose.residuals import Residuals
from picopose_cli.pose.robust import minimise
from picopose_cli.pose.row_blocks import RowBlocks
from picopose_cli.pose.solve import is_possible

ROUNDS = (SearchRound(0.055, 0.1, 2.0), SearchRound(0.027, 0.05, 5.0), SearchRound(0.0135, 0.02, 8.0))
"""From where a template is the nearest one, to a fraction of a pixel."""
INNER_WEIGHT = 0.5
"""Weight of folds and inner edges: a photograph has many more edges inside of an object than its shape has."""

DrawDepth = Callable[[Array], Array]
"""Takes T_cam_from_obj (4,4) and returns the depth (S,S) f32 in the camera of a photograph, metres, 0 outside."""


def contour_rows(photo: Photograph, depths_m: Sequence[Array], T_cam_from_obj: Array, how: SearchRound) -> Residuals:
    """Return the rows of H poses (H,4,4) of one photograph with renders of `depths_m` (S,S): where contours belong."""
    of_poses = [_rows(photo, depth_m, T, how) for depth_m, T in zip(depths_m, T_cam_from_obj, strict=True)]
    padded = np.zeros((len(of_poses), max([1, *map(len, of_poses)]), 9))
    for one, of_pose in zip(padded, of_poses, strict=True):
        one[: len(of_pose)] = of_pose
        one[len(of_pose) :, 8] = 1
    rows = torch.from_numpy(padded)
    weight = rows[..., 7].contiguous()
    return Residuals(
        rows[..., :2], rows[..., 2:5], weight, rows[..., 8], torch.ones_like(weight), normal=rows[..., 5:7]
    )


def _rows(photo: Photograph, depth_m: Array, T: Array, how: SearchRound) -> Array:
    """Return uv, xyz_obj_m, normal, weight and std_px of the points of a contour, (N,9)."""
    contour = find_contour(depth_m, photo.K, T)
    if not len(contour.uv):
        return np.zeros((0, 9))
    offset_px, std_px = search_contour(photo, contour, how)
    weight = np.where(contour.is_outline, 1.0, INNER_WEIGHT) * is_shown(photo, contour)
    uv = contour.uv + offset_px[:, None] * contour.normal
    return np.concatenate([uv, contour.xyz_obj_m, contour.normal, weight[:, None], std_px[:, None]], axis=1)


def refine_by_contours(
    photo: Photograph, draw_depth: DrawDepth, T_start: Array, rounds: Sequence[SearchRound] = ROUNDS
) -> Array:
    """Return the poses (H,4,4), metres, after the search of contours from H starts (H,4,4), which are finite.

    A pose of which nothing is visible stays as it is.
    """
    T = np.asarray(T_start, np.float64)
    K = torch.from_numpy(np.broadcast_to(photo.K, (len(T), 3, 3)).astype(np.float64))
    for how in rounds:
        rows = contour_rows(photo, [draw_depth(one) for one in T], T, how)
        moved = minimise([RowBlocks(rows, K)], torch.from_numpy(T[:, None]))[:, 0].numpy()
        T = np.where(is_possible(moved)[:, None, None], moved, T)
    return T


def agreements(photo: Photograph, draw_depth: DrawDepth, T_cam_from_obj: Array) -> Array:
    """Return the `contour_agreement` (H,) of poses (H,4,4)."""
    found = []
    for T in T_cam_from_obj:
        depth_m = draw_depth(T)
        found.append(contour_agreement(photo, depth_m, find_contour(depth_m, photo.K, T)))
    return np.array(found)
