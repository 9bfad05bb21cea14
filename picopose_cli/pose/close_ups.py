"""The image around a detection at the image's own resolution, which refinement compares with renders of the object."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from picopose_cli.base.cameras import CameraModel
from picopose_cli.base.geometry import mask_iou, pixel_index_affine
from picopose_cli.base.types import CROP_PX, Array
from picopose_cli.templates.perspective_crops import VirtualCamera, make_crop

MARGIN = 1.25
"""Side of a close-up in sides of the network's crop: masks of detectors miss parts of objects."""
MAX_SIDE_PX = 448
MAX_MAGNIFICATION = 3.0
"""Close-ups of small objects are magnified: local features have one descriptor for 8 x 8 px."""
SIDE_STEP_PX = 32
"""Sides of close-ups are multiples of it."""


@dataclass(frozen=True)
class CloseUp:
    """The square part of an image around a detection, as a pinhole camera sees it.

    `rgb` (S,S,3) u8, `mask` (S,S) bool of the detection, `K` (3,3) px of that camera, whose frame is the detection's;
    `shown` (S,S) bool: where the object would be seen, inside of the image and not behind another detection.
    """

    rgb: Array
    mask: Array
    K: Array
    shown: Array

    @property
    def side_px(self) -> int:
        """Number of rows and of columns."""
        return len(self.rgb)

    def mask_iou(self, inside: Array) -> float:
        """Return the intersection over union of a silhouette (S,S) bool with the detection's mask."""
        return mask_iou(inside, self.mask)


def close_up_affine(A_crop_from_image: Array) -> tuple[Array, int]:
    """Return A_close_up_from_image (3,3) f64 px and the side of the close-up of a crop, px."""
    A = A_crop_from_image.astype(np.float64)
    centre = (CROP_PX / 2 - A[:2, 2]) / np.diag(A)[:2]
    part_px, side_px = MARGIN * CROP_PX / A[0, 0], close_up_side_px(A[0, 0])
    scale = side_px / part_px
    offset = side_px / 2 - scale * centre
    return np.array([[scale, 0, offset[0]], [0, scale, offset[1]], [0, 0, 1]]), side_px


def close_up_side_px(crop_scale: float) -> int:
    """Return the side of the close-up of a crop, px; `crop_scale` in crop px per image px."""
    side_px = min(MAX_SIDE_PX, MAX_MAGNIFICATION * MARGIN * CROP_PX / crop_scale)
    return max(SIDE_STEP_PX * round(side_px / SIDE_STEP_PX), SIDE_STEP_PX)


def cut_close_up(
    image_rgb: Array, mask: Array, A_crop_from_image: Array, K: Array, hidden: Array | None = None
) -> CloseUp:
    """Return the close-up of a detection with mask (H,W) bool in an image (H,W,3) u8 of a pinhole camera K (3,3).

    `hidden` (H,W) bool: where other objects may be in front of this one. Pixels are averaged where the close-up has
    fewer than the image; outside of the image its edge is repeated.
    """
    A, side_px = close_up_affine(A_crop_from_image)
    rgb, offset = _near_part(image_rgb, A, side_px)
    shown = _shown(image_rgb.shape, A, side_px)
    return CloseUp(
        _warp(_smoothed(rgb, A[0, 0]), A @ offset, side_px, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE),
        _warp_mask(mask, A, side_px),
        A @ K,
        shown if hidden is None else shown & ~_warp_mask(hidden, A, side_px),
    )


def cut_virtual_close_up(
    image_rgb: Array, mask: Array, camera: CameraModel, virtual: VirtualCamera, hidden: Array | None = None
) -> CloseUp:
    """Return the close-up that the virtual camera of a detection's crop sees; arguments as of `cut_close_up`."""
    A, side_px = close_up_affine(virtual.A_crop_from_image)
    crop = make_crop(camera, replace(virtual, A_crop_from_image=A), side_px)
    rgb = np.round(crop.colour(image_rgb) * 255).astype(np.uint8)
    visible = np.ones_like(mask) if hidden is None else ~hidden
    return CloseUp(rgb, crop.mask(mask), A @ virtual.K, crop.mask(visible))


def _near_part(image: Array, A: Array, side_px: int) -> tuple[Array, Array]:
    """Return the part of an image that a close-up shows, with a margin, and A_image_from_part (3,3)."""
    corners = np.linalg.solve(A, np.array([[0, side_px], [0, side_px], [1, 1]]))[:2]
    margin_px = 3 / min(A[0, 0], 1.0)
    low = np.clip(np.floor(corners[:, 0] - margin_px), 0, np.array(image.shape[1::-1]) - 1).astype(int)
    high = np.clip(np.ceil(corners[:, 1] + margin_px), low + 1, image.shape[1::-1]).astype(int)
    offset = np.array([[1, 0, low[0]], [0, 1, low[1]], [0, 0, 1.0]])
    return image[low[1] : high[1], low[0] : high[0]], offset


def _shown(image_shape: tuple[int, ...], A: Array, side_px: int) -> Array:
    """Return which pixels (S,S) bool of a close-up have their centres inside of the image."""
    scale, offset = np.diag(A)[:2], A[:2, 2]
    at = (np.arange(side_px) + 0.5 - offset[:, None]) / scale[:, None]  # x, and y
    in_x, in_y = (at >= 0) & (at < np.array([[image_shape[1]], [image_shape[0]]]))
    return np.asarray(in_y[:, None] & in_x)


def _smoothed(image: Array, scale: float) -> Array:
    """Return an image without the detail that is lost when it is scaled down."""
    if scale >= 1:
        return image
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.5 * np.sqrt(1 / scale**2 - 1) + 1e-6))


def _warp(image: Array, A: Array, side_px: int, interpolation: int, border: int) -> Array:
    return np.asarray(
        cv2.warpAffine(image, pixel_index_affine(A), (side_px, side_px), flags=interpolation, borderMode=border)
    )


def _warp_mask(mask: Array, A: Array, side_px: int) -> Array:
    return _warp(mask.astype(np.uint8), A, side_px, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT) > 0


def shrink(close_up: CloseUp, side_px: int) -> CloseUp:
    """Return a close-up with at most `side_px` rows and columns."""
    if close_up.side_px <= side_px:
        return close_up
    scale = side_px / close_up.side_px
    rgb = cv2.resize(close_up.rgb, (side_px, side_px), interpolation=cv2.INTER_AREA)
    mask, shown = (
        np.asarray(cv2.resize(one.astype(np.uint8), (side_px, side_px), interpolation=cv2.INTER_NEAREST)) > 0
        for one in (close_up.mask, close_up.shown)
    )
    return CloseUp(np.asarray(rgb), mask, np.diag([scale, scale, 1.0]) @ close_up.K, shown)
