"""The 64 x 64 cells of a square crop: the pixels under their corners and centres, and the points seen at the corners.

A box is `box_yyxx` = (r0, r1, c0, c1): rows [r0, r1), columns [c0, c1) of an image, square.
"""

from __future__ import annotations

import numpy as np

from picopose_cli.base.geometry import invert_T, transform_points
from picopose_cli.base.types import CROP_PX, GRID_CELLS, Array

BoxYyxx = tuple[int, int, int, int]
_MICROMETRES_PER_M = 1e6


def cell_centre_pixels(box_yyxx: BoxYyxx) -> tuple[Array, ...]:
    """Return the index, for an image (H,W), of the pixels that contain the centres of a crop's 64x64 cells."""
    r0, r1, c0, _ = box_yyxx
    offset = ((np.arange(GRID_CELLS) + 0.5) * (r1 - r0) / GRID_CELLS).astype(int)
    return np.ix_(r0 + offset, c0 + offset)


def cell_corner_pixels(box_yyxx: BoxYyxx) -> tuple[Array, ...]:
    """Return the index, for an image (H,W), of the pixels that `cv2.INTER_NEAREST` takes for a crop's 64x64 cells."""
    r0, r1, c0, _ = box_yyxx
    offset = _corner_offsets(r1 - r0)
    return np.ix_(r0 + offset, c0 + offset)


def lift_cell_corners(depth_corner_m: Array, K: Array, A_crop_from_image: Array, T_tmpl_from_obj: Array) -> Array:
    """Return the object-frame points (64,64,3) f32, metres, of one template's cells as the released network saw them.

    `depth_corner_m` (64,64) depth at the cells' top-left pixels, `K` (3,3), `A_crop_from_image` (3,3),
    `T_tmpl_from_obj` (4,4) metres.

    PARITY: the depth of a cell's top-left pixel is lifted at the pixel's index instead of its centre: together about
    1.7 crop px away from the cell's centre. Cells without depth are lifted too: they hold the camera's centre, and the
    released code passes it to PnP where the network is certain of such a cell.
    """
    scale, shift_px = float(A_crop_from_image[0, 0]), A_crop_from_image[:2, 2].astype(np.float64)
    c0, r0 = np.rint(-shift_px / scale)
    offset = _corner_offsets(round(CROP_PX / scale)).astype(np.float64)
    x, y = np.meshgrid(c0 + offset, r0 + offset)
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(K).T
    xyz_tmpl = rays * depth_corner_m.astype(np.float64)[..., None]
    xyz_obj = transform_points(invert_T(T_tmpl_from_obj), xyz_tmpl.reshape(-1, 3))
    return np.asarray(xyz_obj.reshape(rays.shape).astype(np.float32))


def round_to_micrometres(lengths_m: Array) -> Array:
    """Return lengths in metres rounded to whole micrometres, f32."""
    return np.asarray((np.rint(lengths_m.astype(np.float64) * _MICROMETRES_PER_M) / _MICROMETRES_PER_M), np.float32)


def _corner_offsets(side_px: int) -> Array:
    """Return the row or column (64,), from the box's first one, of the cells' top-left pixels."""
    step = 1 / (GRID_CELLS / side_px)  # not side_px / GRID_CELLS: OpenCV rounds twice
    return np.asarray(np.floor(np.arange(GRID_CELLS) * step).astype(int))
