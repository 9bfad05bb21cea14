"""Reference views: what is needed of a photograph with a known pose, as a pinhole camera's crop around the object."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from picopose_cli.base.cameras import CameraModel, Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import invert_T, make_T, pixel_index_affine
from picopose_cli.base.types import Array
from picopose_cli.templates.perspective_crops import aim_camera, make_crop, mask_outline

LARGEST_SIDE_PX = 480
"""Longest side of a crop; larger ones are reduced: a template shows an object in 224 px."""
_MARGIN_SHARE, _MARGIN_PX = 0.2, 8
"""Around the box of the mask, on each side."""
_SMALLEST_MASK_PX = 64


@dataclass(frozen=True)
class Photograph:
    """A photograph of an object: `image_rgb` (H,W,3) u8, `T_cam_from_obj` (4,4) metres.

    `silhouette` (H,W) bool is the object's whole outline, `visible` (H,W) bool what nothing hides of it; `depth_m`
    (H,W) f32 along the axis, 0 where there is none, is that of a pinhole's image.
    """

    name: str
    image_rgb: Array
    silhouette: Array
    visible: Array
    camera: CameraModel
    T_cam_from_obj: Array
    depth_m: Array | None = None


@dataclass(frozen=True)
class ReferenceView:
    """A crop of a photograph as a pinhole camera `K` (3,3) px sees it; `T_cam_from_obj` (4,4) metres.

    `rgb` (h,w,3) u8; (h,w) bool: `silhouette`, `visible`, and `known`, the pixels inside of the photograph; `depth_m`
    (h,w) f32 or None.
    """

    name: str
    rgb: Array
    silhouette: Array
    visible: Array
    known: Array
    K: Array
    T_cam_from_obj: Array
    depth_m: Array | None = None

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the crop, px."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @property
    def focal_px(self) -> float:
        """Geometric mean of the focal lengths."""
        return float(np.sqrt(self.K[0, 0] * self.K[1, 1]))

    @property
    def centre_m(self) -> Array:
        """The camera's centre (3,) in the object frame."""
        return np.asarray(invert_T(self.T_cam_from_obj)[:3, 3])

    @property
    def unhidden(self) -> Array:
        """The pixels (h,w) bool where nothing is known to be in front of the object, of the photograph."""
        return np.asarray(self.known & (self.visible | ~self.silhouette))

    def at(self, T_cam_from_obj: Array) -> ReferenceView:
        """Return the view with another pose."""
        return replace(self, T_cam_from_obj=T_cam_from_obj)

    def project(self, xyz_obj: Array) -> tuple[Array, Array, Array]:
        """Return x and y px, as indices of pixels, and depth in metres, each (N,) f32, of points (N,3) f32."""
        P = (self.K @ self.T_cam_from_obj[:3]).astype(np.float32)
        u, v, z = P[:, :3] @ xyz_obj.astype(np.float32, copy=False).T + P[:, 3:]
        z = np.maximum(z, np.float32(1e-6))
        return u / z - np.float32(0.5), v / z - np.float32(0.5), z


def crop_view(photo: Photograph) -> ReferenceView:
    """Return the crop of a photograph around its mask.

    Raises PicoPoseError when the mask has only a few pixels, or a fisheye's crop spans too wide an angle.
    """
    if np.count_nonzero(photo.silhouette) < _SMALLEST_MASK_PX:
        raise PicoPoseError("the mask is empty or a few pixels", where=photo.name, fix="leave the image out")
    if isinstance(photo.camera, Pinhole):
        return _crop_pinhole(photo, photo.camera.K)
    return _crop_fisheye(photo)


def _crop_pinhole(photo: Photograph, K: Array) -> ReferenceView:
    x, y, width, height = cv2.boundingRect(photo.silhouette.view(np.uint8))
    margin = int(_MARGIN_SHARE * max(width, height)) + _MARGIN_PX
    scale = min(1.0, LARGEST_SIDE_PX / (max(width, height) + 2 * margin))
    size_wh = (round((width + 2 * margin) * scale), round((height + 2 * margin) * scale))
    A = np.array([[scale, 0, -scale * (x - margin)], [0, scale, -scale * (y - margin)], [0, 0, 1]])

    def warp(image: Array, flags: int) -> Array:
        part = image if scale == 1 or flags == cv2.INTER_NEAREST else cv2.GaussianBlur(image, (0, 0), 0.45 / scale)
        return np.asarray(cv2.warpAffine(part, pixel_index_affine(A), size_wh, flags=flags))

    def warp_mask(mask: Array) -> Array:
        return warp(mask.view(np.uint8), cv2.INTER_NEAREST) > 0

    return ReferenceView(
        photo.name,
        warp(photo.image_rgb, cv2.INTER_LINEAR),
        warp_mask(photo.silhouette),
        warp_mask(photo.visible),
        warp_mask(np.ones(photo.silhouette.shape, bool)),
        A @ K,
        photo.T_cam_from_obj,
        None if photo.depth_m is None else warp(photo.depth_m, cv2.INTER_NEAREST),
    )


def _crop_fisheye(photo: Photograph) -> ReferenceView:
    virtual = aim_camera(photo.camera, mask_outline(photo.silhouette))
    side = virtual.side_px * (1 + 2 * _MARGIN_SHARE) + 2 * _MARGIN_PX
    shift = (side - virtual.side_px) / 2
    K = virtual.K + np.array([[0, 0, shift], [0, 0, shift], [0, 0, 0]])
    side_px = min(round(side), LARGEST_SIDE_PX)
    scaled = replace(virtual, K=K, A_crop_from_image=np.diag([side_px / side, side_px / side, 1]).astype(np.float32))
    crop = make_crop(photo.camera, scaled, side_px)
    return ReferenceView(
        photo.name,
        np.rint(crop.colour(photo.image_rgb) * 255).astype(np.uint8),
        crop.mask(photo.silhouette),
        crop.mask(photo.visible),
        crop.mask(np.ones(photo.silhouette.shape, bool)),
        scaled.A_crop_from_image.astype(np.float64) @ K,
        make_T(virtual.R_cam_from_virtual.T, np.zeros(3)) @ photo.T_cam_from_obj,
    )
