"""The square crop as a virtual pinhole camera sees it that looks along the ray of an object, in any camera's image.

A fisheye's image is not that of a pinhole, and even a pinhole distorts what is far from its axis; seen along its ray an
object looks as in its templates. `virtual` is the frame of that camera, which shares the centre of the real one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from picopose_cli.base.cameras import CameraModel
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import ray_rotation
from picopose_cli.base.interpolation import chebyshev_matrix, chebyshev_nodes
from picopose_cli.base.types import CROP_PX, Array

_OUTLINE_LINES = 32
"""Rows, and columns, of a mask whose ends give the extent of the crop."""
_CENTRING_STEPS = 2
_WIDEST_TANGENT = 3.0
"""Largest tangent of half the angle that a crop spans: 72 degrees."""
_SMALLEST_SIDE_PX = 2.0
_NODES = 16
"""Chebyshev nodes along a side of the crop, from which the positions of all its pixels are interpolated: to better than
0.001 px, in a tenth of the time of the camera's formula."""
_STEP = 1e-4
"""Tangent over which the resolution of the image along a ray is measured."""


@dataclass(frozen=True)
class VirtualCamera:
    """A pinhole camera that looks along a ray of another camera, with the same resolution there, and its square crop.

    `K` (3,3) px, `A_crop_from_image` (3,3) f32 from its image to the crop, `R_cam_from_virtual` (3,3).
    """

    K: Array
    A_crop_from_image: Array
    R_cam_from_virtual: Array

    @property
    def side_px(self) -> float:
        """Side of the crop in pixels of the virtual image, which are as large as those of the real one."""
        return float(2 * self.K[0, 2])

    def directions(self, xy_crop: Array) -> Array:
        """Return the directions (...,3), in the frame of the real camera, of positions (...,2) in the crop, px."""
        K_crop = self.A_crop_from_image.astype(np.float64) @ self.K
        rays = np.concatenate([xy_crop, np.ones_like(xy_crop[..., :1])], axis=-1)
        return np.asarray(rays @ (self.R_cam_from_virtual @ np.linalg.inv(K_crop)).T)


def mask_outline(mask: Array) -> Array:
    """Return pixels (N,2) f64, (x, y) indices, on the outline of a mask (H,W) bool that is not empty.

    They are the first and last ones of rows and columns spread evenly over the mask, with its outermost ones.
    """
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    part = mask[y : y + height, x : x + width]
    rows, first_x, last_x = _ends(part)
    cols, first_y, last_y = _ends(part.T)
    outline = np.stack([np.concatenate([first_x, last_x, cols, cols]), np.concatenate([rows, rows, first_y, last_y])])
    return np.asarray(outline.T.astype(np.float64) + np.array([x, y]))


def _ends(mask: Array) -> tuple[Array, Array, Array]:
    """Return some rows of a mask (H,W) bool, always the first and last, and their first and last column inside."""
    rows = np.unique(np.linspace(0, len(mask) - 1, _OUTLINE_LINES).round().astype(int))
    lines = mask[rows]
    filled = lines.any(axis=1)
    rows, lines = rows[filled], lines[filled]
    return rows, lines.argmax(axis=1), mask.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)


def aim_camera(camera: CameraModel, pixels: Array) -> VirtualCamera:
    """Return the virtual camera whose crop is the smallest square around `pixels` (N,2), (x, y) indices in an image.

    Raises PicoPoseError when none of them is in the camera's field of view, or they span too small or wide an angle.
    """
    rays = camera.unproject(pixels + camera.first_pixel_px)
    rays = rays[np.isfinite(rays).all(axis=1)]
    if not len(rays):
        raise PicoPoseError("the detection is outside of the camera's field of view")
    axis, half = rays.mean(axis=0), 0.0
    for _ in range(_CENTRING_STEPS):
        R = ray_rotation(axis[None])[0]
        x, y, z = (rays @ R).T
        if (z * _WIDEST_TANGENT <= np.hypot(x, y)).any():
            raise PicoPoseError("the detection spans too wide an angle to be seen by one pinhole camera")
        low, high = (np.array([limit(x / z), limit(y / z)]) for limit in (np.min, np.max))
        axis, half = R @ np.append((low + high) / 2, 1.0), float((high - low).max()) / 2
    R = ray_rotation(axis[None])[0]
    focal_px = resolution_along(camera, R)
    side_px = 2 * half * focal_px + 1  # the outline passes through the centres of pixels
    if side_px < _SMALLEST_SIDE_PX:
        raise PicoPoseError("the box is less than two pixels wide", fix="remove the detection")
    K = np.array([[focal_px, 0, side_px / 2], [0, focal_px, side_px / 2], [0, 0, 1]])
    scale = CROP_PX / side_px
    return VirtualCamera(K, np.diag([scale, scale, 1]).astype(np.float32), R)


def resolution_along(camera: CameraModel, R_cam_from_virtual: Array) -> float:
    """Return the image's pixels per unit of tangent around the axis of a virtual camera: its focal length."""
    offsets = np.array([[_STEP, 0, 1], [-_STEP, 0, 1], [0, _STEP, 1], [0, -_STEP, 1]])
    uv = camera.project(offsets @ R_cam_from_virtual.T)
    jacobian = np.stack([uv[0] - uv[1], uv[2] - uv[3]]) / (2 * _STEP)
    return float(np.sqrt(abs(np.linalg.det(jacobian))))


@dataclass(frozen=True)
class PerspectiveCrop:
    """A virtual camera's crop of an image: the positions (S,S) f32 of its pixels' centres, as pixel indices."""

    virtual: VirtualCamera
    map_x: Array
    map_y: Array

    def colour(self, image_rgb: Array) -> Array:
        """Return the crop (S,S,3) f32 in [0, 1] of an image (H,W,3) u8, bilinear, black outside of the image.

        Where the crop has fewer pixels than the image, 2 x 2 of these are averaged, as often as it has at most half
        as many along a side.
        """
        halvings = max(int(-np.log2(self.virtual.A_crop_from_image[0, 0])), 0)
        part, x0, y0 = self._needed_part(image_rgb, 1 << halvings)
        if part.size == 0:
            return np.zeros((*self.map_x.shape, 3), np.float32)
        for _ in range(halvings):
            size_wh = (part.shape[1] // 2, part.shape[0] // 2)
            part = np.asarray(cv2.resize(part, size_wh, interpolation=cv2.INTER_AREA))
        map_x, map_y = (
            (positions - (first - 0.5)) / (1 << halvings) - 0.5
            for positions, first in ((self.map_x, x0), (self.map_y, y0))
        )
        return np.asarray(cv2.remap(part.astype(np.float32) / np.float32(255), map_x, map_y, cv2.INTER_LINEAR))

    def mask(self, mask: Array) -> Array:
        """Return the crop (S,S) bool of a mask (H,W) bool, nearest."""
        return np.asarray(cv2.remap(mask.view(np.uint8), self.map_x, self.map_y, cv2.INTER_NEAREST)) > 0

    def _needed_part(self, image: Array, multiple: int) -> tuple[Array, int, int]:
        """Return the part of an image that the crop shows, its sides multiples of a number, and its first x and y."""
        spans = []
        for positions, size in ((self.map_x, image.shape[1]), (self.map_y, image.shape[0])):
            margin = multiple + 1
            first = int(np.clip(np.floor(positions.min()) - margin, 0, size))
            last = int(np.clip(np.ceil(positions.max()) + margin + 1, 0, size))
            spans.append((first, first + (last - first) // multiple * multiple))
        (x0, x1), (y0, y1) = spans
        return image[y0:y1, x0:x1], x0, y0


def make_crop(camera: CameraModel, virtual: VirtualCamera, side_px: int = CROP_PX) -> PerspectiveCrop:
    """Return where the pixels of a virtual camera's crop, of S = `side_px` rows, are in the image of `camera`."""
    nodes, to_pixels = _interpolation(side_px)
    x, y = np.meshgrid(nodes, nodes)
    uv = camera.project(virtual.directions(np.stack([x, y], axis=-1))) - camera.first_pixel_px
    map_x, map_y = (np.ascontiguousarray(to_pixels @ uv[..., i] @ to_pixels.T, np.float32) for i in (0, 1))
    return PerspectiveCrop(virtual, map_x, map_y)


@lru_cache(maxsize=16)
def _interpolation(side_px: int) -> tuple[Array, Array]:
    """Return Chebyshev nodes (N,) in crop px and the matrix (S,N) from values there to the centres of S pixels."""
    half = side_px / 2
    pixels = (np.arange(side_px) + 0.5) / half - 1
    return (chebyshev_nodes(_NODES) + 1) * half, chebyshev_matrix(pixels, _NODES)
