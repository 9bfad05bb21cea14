"""The square crop around an object, the same for templates and observations, as in the network's training.

Boxes here are `box_yyxx` = (r0, r1, c0, c1): rows [r0, r1), columns [c0, c1).
"""

from __future__ import annotations

import cv2
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import mask_slices
from picopose_cli.base.grid import BoxYyxx
from picopose_cli.base.types import CROP_PX, Array

SMALLEST_MASK_PX = 8
"""For a mask of this many pixels or fewer, the detection's box is used."""

CLIP_MEAN_RGB = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD_RGB = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def square_box(mask: Array, box_xywh: tuple[float, float, float, float] | None = None) -> BoxYyxx:
    """Return the square box (r0, r1, c0, c1) px around a mask (H,W), non-zero inside, within its image.

    With a mask of at most 8 px, `box_xywh` is used, which may extend beyond the image.
    Raises PicoPoseError when neither encloses a square of two pixels.
    """
    window = mask_slices(mask)
    if window is not None and np.count_nonzero(mask) > SMALLEST_MASK_PX:
        rows, cols = window
        tight = (rows.start, rows.stop, cols.start, cols.stop)
    elif box_xywh is not None and np.isfinite(box_xywh).all():
        x, y, width, height = box_xywh
        tight = (int(y), int(y + height), int(x), int(x + width))
    else:
        raise PicoPoseError("the mask is empty or a few pixels, and there is no box", fix="remove the detection")
    return _make_square(tight, mask.shape[0], mask.shape[1])


def _make_square(tight: BoxYyxx, height: int, width: int) -> BoxYyxx:
    r0, r1, c0, c1 = tight
    side = min(max(r1 - r0, c1 - c0), min(height, width))
    half = side // 2  # PARITY: an odd side loses a pixel
    if half < 1:
        raise PicoPoseError("the box is less than two pixels wide", fix="remove the detection")
    row, col = int((r0 + r1) / 2), int((c0 + c1) / 2)
    top, left = (
        min(max(centre - half, 0), size - 2 * half) for centre, size in ((row, height), (col, width))
    )  # shifted, not shrunk, into the image
    return top, top + 2 * half, left, left + 2 * half


def crop_affine(box_yyxx: BoxYyxx) -> Array:
    """Return A_crop_from_image (3,3) f32 of a box: its outer corners map to the crop's outer corners."""
    r0, r1, c0, c1 = box_yyxx
    scale_x, scale_y = np.float32(CROP_PX / (c1 - c0)), np.float32(CROP_PX / (r1 - r0))
    return np.array([[scale_x, 0, -scale_x * c0], [0, scale_y, -scale_y * r0], [0, 0, 1]], np.float32)


def crop_colour(image_rgb: Array, box_yyxx: BoxYyxx) -> Array:
    """Return the crop (224,224,3) f32 in [0, 1] of an image (H,W,3), u8 or float in [0, 1], bilinear."""
    r0, r1, c0, c1 = box_yyxx
    part = image_rgb[r0:r1, c0:c1]
    # PARITY: values are scaled before they are interpolated; on u8 OpenCV would round each sample.
    scaled = part.astype(np.float32) / np.float32(255) if part.dtype == np.uint8 else part.astype(np.float32)
    return np.asarray(cv2.resize(scaled, (CROP_PX, CROP_PX), interpolation=cv2.INTER_LINEAR))


def crop_mask(mask: Array, box_yyxx: BoxYyxx) -> Array:
    """Return the crop (224,224) bool of a mask (H,W) bool, nearest.

    PARITY: the released code casts a template's alpha in [0, 1] to integer, so pass `alpha == 255`: partly covered
    edge pixels are outside.
    """
    return resize_nearest(mask[box_yyxx[0] : box_yyxx[1], box_yyxx[2] : box_yyxx[3]].astype(np.uint8), CROP_PX) > 0


def resize_nearest(image: Array, side: int) -> Array:
    """Return an image (h,w,...) resized to (side,side,...) as `cv2.INTER_NEAREST` does: index floor(i * scale)."""
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_NEAREST))


def normalise_bgr(crops_rgb: Array) -> Array:
    """Return the network's input (B,3,224,224) f32 of crops (B,224,224,3) in RGB, u8 or float in [0, 1].

    PARITY: the channels arrive in the order blue, green, red, but are normalised with constants in the order of RGB.
    """
    scaled = crops_rgb.astype(np.float32)
    if crops_rgb.dtype == np.uint8:
        scaled /= np.float32(255)
    bgr = scaled[..., ::-1]
    return np.ascontiguousarray(((bgr - CLIP_MEAN_RGB) / CLIP_STD_RGB).transpose(0, 3, 1, 2))
