"""From the network's output on the template grid to 2D-3D correspondences, and the pose implied by a 2D affine.

Two ways to read the finest flow: `released_correspondences`, exactly the published rule, and
`subcell_correspondences`, which keeps the continuous target and pairs it with the point at the cell's centre.

Pixel conventions. Positions in an image or a crop are measured from the outer corner of the first pixel: pixel i covers
[i, i + 1) and its centre is at i + 0.5. `A_crop_from_image` maps corners to corners, and the cameras K of the project's
renderer and data sets follow the same convention. A crop has 224 px and 64 cells a side: cell c covers
[3.5 c, 3.5 (c + 1)) crop px, its centre is at 3.5 (c + 0.5). The training target of a cell is the position of the point
at the template cell's centre in the observation's crop, in crop px divided by 3.5. A target of stage 3, (cell + flow),
is therefore the crop position 3.5 (cell + flow), without a half, of the point at the template's 3.5 (cell + 0.5).
"""

from __future__ import annotations

import numpy as np

from picopose_cli.base.geometry import apply_affine, make_T, project_points, ray_rotation
from picopose_cli.base.types import CROP_PX, GRID_CELLS, Array, Correspondences

CELL_PX = CROP_PX / GRID_CELLS
"""Side of a cell of the fine grid in crop pixels: 3.5."""


def released_correspondences(
    flow: Array, certainty_logit: Array, xyz_obj_m: Array, A_crop_from_image: Array
) -> Correspondences:
    """Return the correspondences that the released code passes to PnP, in its order.

    `flow` (2,64,64) cells (x, y), `certainty_logit` (64,64), `xyz_obj_m` (64,64,3) of the template's cells,
    `A_crop_from_image` (3,3) of the observation. Source: paper section 3.4, as released.
    """
    target, used = _targets(flow, certainty_logit)
    cols, rows = np.nonzero(used.T)  # PARITY: x-major order, which RANSAC's draws depend on
    # PARITY: the target is floored to a cell, and the cell's centre is used
    centre_px = (np.floor(target[:, rows, cols]).T + 0.5) * CELL_PX
    return _correspondences(centre_px, rows, cols, certainty_logit, xyz_obj_m, A_crop_from_image)


def subcell_correspondences(
    flow: Array, certainty_logit: Array, xyz_centre_obj_m: Array, has_depth: Array, A_crop_from_image: Array
) -> Correspondences:
    """Return correspondences with continuous targets, only for cells whose centre shows the object.

    Arguments as of `released_correspondences`, except `xyz_centre_obj_m` (64,64,3), the points at the cells' centres,
    and `has_depth` (64,64) bool.
    """
    target, used = _targets(flow, certainty_logit)
    rows, cols = np.nonzero(used & has_depth)
    target_px = target[:, rows, cols].T * CELL_PX
    return _correspondences(target_px, rows, cols, certainty_logit, xyz_centre_obj_m, A_crop_from_image)


def _targets(flow: Array, certainty_logit: Array) -> tuple[Array, Array]:
    """Return the target (2,64,64) of each template cell in observation cells, and which cells are used (64,64)."""
    row, col = np.indices(certainty_logit.shape, np.float32)
    target = flow + np.stack([col, row])
    inside = ((target > 0) & (target < GRID_CELLS - 1)).all(axis=0)
    return target, inside & (certainty_logit > 0)  # logit 0 is certainty .5


def _correspondences(
    target_px: Array, rows: Array, cols: Array, certainty_logit: Array, xyz: Array, A_crop_from_image: Array
) -> Correspondences:
    uv_image = apply_affine(np.linalg.inv(A_crop_from_image), target_px.astype(np.float64))
    certainty = 1 / (1 + np.exp(-certainty_logit[rows, cols].astype(np.float64)))
    return Correspondences(uv_image, xyz[rows, cols].astype(np.float64), certainty)


def affine_poses(
    A_obs_from_tmpl: Array,
    A_crop_from_obs_image: Array,
    A_crop_from_tmpl_image: Array,
    K_obs: Array,
    K_tmpl: Array,
    T_tmpl_from_obj: Array,
) -> Array:
    """Return the poses T_cam_from_obj (N,4,4) implied by 2D affine maps between crops (the stage-2 pose).

    All arguments are (N,3,3), crop or image px, except `T_tmpl_from_obj` (N,4,4), metres. The affine maps the projected
    object origin of the template into the image; its angle is the in-plane rotation, its scale determines the depth.
    """
    full = np.linalg.inv(A_crop_from_obs_image) @ A_obs_from_tmpl @ A_crop_from_tmpl_image
    origin = T_tmpl_from_obj[:, None, :3, 3]
    centre = apply_affine(full, project_points(K_tmpl, origin))[:, 0]
    scale = np.linalg.norm(full[:, :2, 0], axis=-1)
    z = origin[:, 0, 2] / scale * K_obs[:, 0, 0] / K_tmpl[:, 0, 0]
    rays = np.linalg.solve(K_obs, np.concatenate([centre, np.ones_like(centre[:, :1])], axis=1)[..., None])[..., 0]
    return make_T(_inplane_rotation(A_obs_from_tmpl) @ T_tmpl_from_obj[:, :3, :3], z[:, None] * rays)


def rotate_to_ray(T_cam_from_obj: Array) -> Array:
    """Return poses (N,4,4) with their rotations multiplied by the rotation from the optical axis to the object's ray.

    A template camera points straight at the object. An object that appears the same elsewhere in an image is rotated
    along with its ray, which the released rule of `affine_poses` leaves out: up to tens of degrees for common fields of
    view.
    """
    return make_T(ray_rotation(T_cam_from_obj[:, :3, 3]) @ T_cam_from_obj[:, :3, :3], T_cam_from_obj[:, :3, 3])


def _inplane_rotation(A: Array) -> Array:
    """Return rotations (N,3,3) about the optical axis by the angle of similarity transforms (N,3,3)."""
    cos_sin = A[:, :2, 0] / np.linalg.norm(A[:, :2, 0], axis=-1, keepdims=True)
    R = np.zeros((len(A), 3, 3))
    R[:, 0, 0] = R[:, 1, 1] = cos_sin[:, 0]
    R[:, 1, 0] = cos_sin[:, 1]
    R[:, 0, 1] = -cos_sin[:, 1]
    R[:, 2, 2] = 1
    return R


def cell_centre_points(depth_centre_m: Array, K: Array, A_crop_from_image: Array, T_tmpl_from_obj: Array) -> Array:
    """Return the object-frame points (64,64,3) at the cell centres of one template, metres.

    `depth_centre_m` (64,64), `K` (3,3), `A_crop_from_image` (3,3), `T_tmpl_from_obj` (4,4). Cells of depth 0 contain
    the camera centre and must be masked out by the caller.
    """
    row, col = np.indices(depth_centre_m.shape, np.float64)
    crop_px = (np.stack([col, row], axis=-1).reshape(-1, 2) + 0.5) * CELL_PX
    uv = apply_affine(np.linalg.inv(A_crop_from_image), crop_px)
    rays = np.concatenate([uv, np.ones_like(uv[:, :1])], axis=-1) @ np.linalg.inv(K).T
    xyz_tmpl = rays * depth_centre_m.reshape(-1, 1)
    R, t = T_tmpl_from_obj[:3, :3], T_tmpl_from_obj[:3, 3]
    points: Array = ((xyz_tmpl - t) @ R).reshape(*depth_centre_m.shape, 3)
    return points
