"""What a depth image measured around a detection: points in the detection's camera, and where it measured nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from picopose_cli.base.cameras import CameraModel
from picopose_cli.base.geometry import project_points
from picopose_cli.base.types import Array
from picopose_cli.pose.close_ups import close_up_affine

RENDER_SIDE_PX = 128
"""Largest side of the renders that depth is compared with."""
SAMPLED_SIDE = 64
"""Largest number of samples along a side: a smooth surface needs no more."""
NOISE_M, NOISE_PER_M = 0.0015, 0.0015
"""Standard deviation of a measured depth z: the first plus the second times z^2 (z in metres), as common sensors have.

Structured light errs with the square of the distance, time of flight by about a constant: this is above both at less
than a metre, so that no sensor needs an option.
"""
_BORDER = 9
"""Points along a side of the part of an image that is sampled, by which it is found."""


@dataclass(frozen=True)
class DepthSamples:
    """Pixels of a depth image around a detection, N of them, seen by a pinhole camera in the detection's frame.

    `K` (3,3) px and `side_px` of that camera's square image, in which renders are made; `pixel` (N,) is where a sample
    is in it, row * side + column; `xyz_m` (N,3) f64 the measured points in its frame, 0 where nothing was measured;
    `in_mask` (N,) bool: in the detection's mask.
    """

    K: Array
    side_px: int
    pixel: Array
    xyz_m: Array
    in_mask: Array

    @cached_property
    def measured(self) -> Array:
        """Which samples (N,) bool have a depth."""
        return np.asarray(self.xyz_m[:, 2] > 0)

    @cached_property
    def rays(self) -> Array:
        """The rays (N,3) of z = 1 through the centres of the render's pixels that samples fall on."""
        row, col = np.divmod(self.pixel, self.side_px)
        uv1 = np.stack([col + 0.5, row + 0.5, np.ones(len(row))], axis=1)
        return np.asarray(uv1 @ np.linalg.inv(self.K).T)

    def halved(self) -> DepthSamples:
        """Return every second sample, for renders of half the side."""
        row, col = np.divmod(self.pixel[::2], self.side_px)
        side_px = self.side_px // 2
        pixel = np.minimum(row // 2, side_px - 1) * side_px + np.minimum(col // 2, side_px - 1)
        return DepthSamples(np.diag([0.5, 0.5, 1.0]) @ self.K, side_px, pixel, self.xyz_m[::2], self.in_mask[::2])

    @property
    def measured_share(self) -> float:
        """Share of the mask's samples that have a depth."""
        return float((self.measured & self.in_mask).sum() / max(self.in_mask.sum(), 1))


def depth_noise_m(depth_m: Array) -> Array:
    """Return the standard deviation (...) of measured depths (...), metres."""
    return np.asarray(NOISE_M + NOISE_PER_M * depth_m**2)


def sample_depth(
    depth_m: Array,
    mask: Array,
    camera: CameraModel,
    A_crop_from_image: Array,
    K: Array,
    R_cam_from_query: Array | None = None,
) -> DepthSamples:
    """Return the samples of a depth image (H,W) in metres along the camera's axis, 0 where nothing was measured.

    `mask` (H,W) bool of the detection. Its crop `A_crop_from_image` (3,3) and `K` (3,3) px are those of its query,
    which sees the image itself, or with `R_cam_from_query` (3,3) as a virtual camera that is rotated against it. Depth
    in another camera is another number: pixels are lifted to points, and these are rotated.
    """
    A, side_px = close_up_affine(A_crop_from_image)
    scale = min(RENDER_SIDE_PX / side_px, 1.0)
    side_px = round(side_px * scale)
    K_render = np.diag([scale, scale, 1.0]) @ A @ K
    R = np.eye(3) if R_cam_from_query is None else R_cam_from_query
    rows, cols = _sampled_pixels(K_render, side_px, R, camera, depth_m.shape)
    uv = np.stack(np.meshgrid(cols, rows), axis=-1).reshape(-1, 2) + camera.first_pixel_px
    rays = camera.unproject(uv.astype(np.float64))
    depth, in_mask = (image[np.ix_(rows, cols)].reshape(-1) for image in (depth_m, mask))
    with np.errstate(divide="ignore", invalid="ignore"):  # rays beside or behind the camera
        in_query = (rays / rays[:, 2:]) @ R  # R^T of each
        at = project_points(K_render, in_query)
        inside = (rays[:, 2] > 0) & (in_query[:, 2] > 0) & ((at >= 0) & (at < side_px)).all(axis=1)
    at, in_query, depth = at[inside].astype(int), in_query[inside], depth[inside].astype(np.float64)
    return DepthSamples(
        K_render, side_px, at[:, 1] * side_px + at[:, 0], in_query * depth[:, None], np.asarray(in_mask[inside], bool)
    )


def _sampled_pixels(
    K: Array, side_px: int, R: Array, camera: CameraModel, size_hw: tuple[int, ...]
) -> tuple[Array, Array]:
    """Return the rows and columns of an image's pixels that a square camera (K, side_px) rotated by R may see."""
    ends = np.linspace(0, side_px, _BORDER)
    border = np.stack(np.meshgrid(ends, ends), axis=-1).reshape(-1, 2)
    rays = np.concatenate([border, np.ones((len(border), 1))], axis=1) @ np.linalg.inv(K).T @ R.T
    rays = rays[rays[:, 2] > 0]
    if not len(rays):  # beside a fisheye's axis by more than a right angle: depth is along the axis
        return np.arange(0), np.arange(0)
    uv = camera.project(rays)
    low = np.clip(np.floor(uv.min(axis=0)), 0, size_hw[::-1]).astype(int)
    high = np.clip(np.ceil(uv.max(axis=0)), 0, size_hw[::-1]).astype(int)
    step = max(-(-int((high - low).max()) // SAMPLED_SIDE), 1)
    return np.arange(low[1], high[1], step), np.arange(low[0], high[0], step)
