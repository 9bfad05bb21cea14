"""Images of objects seen by any camera, fisheyes too: each object is drawn by a virtual pinhole that looks at it.

Every sample of the image is looked up in the direction that the camera model gives it, so that the geometry is exact;
samples are four a pixel, and of several objects the one nearest to the camera is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from picopose_cli.base.cameras import CameraModel
from picopose_cli.base.geometry import make_T, ray_rotation
from picopose_cli.base.interpolation import chebyshev_matrix, chebyshev_nodes
from picopose_cli.base.types import Array
from picopose_cli.rendering.rasteriser import Window
from picopose_cli.synthesis.compose import draw_scene
from picopose_cli.synthesis.lighting import Light
from picopose_cli.synthesis.scenes import PlacedObject, Scene
from picopose_cli.templates.perspective_crops import resolution_along

_SAMPLES = 2
"""Samples of the image along a side of a pixel."""
_OVERSAMPLING = 1.5
"""Samples of the virtual view along a side of one of the image."""
_NODES = 24
_BLACK = np.zeros((1, 1, 3), np.uint8)


@dataclass(frozen=True)
class CameraImage:
    """An image `rgb` (H,W,3) u8 with the masks (N,H,W) bool of its objects: what is seen of each, and all of each."""

    rgb: Array
    visible: Array
    full: Array


def draw_through(
    camera: CameraModel, size_hw: tuple[int, int], placed: Sequence[PlacedObject], light: Light, background_rgb: Array
) -> CameraImage:
    """Return the image that a camera has of objects before a background (h,w,3) u8, which fills it as it is."""
    height, width = (_SAMPLES * side for side in size_hw)
    rgb = np.asarray(cv2.resize(background_rgb, (width, height), interpolation=cv2.INTER_LINEAR))
    nearest_m = np.full((height, width), np.inf, np.float32)
    owner = np.full((height, width), -1, np.int8)
    full = np.zeros((len(placed), *size_hw), bool)
    for index, one in enumerate(placed):
        window = object_window(camera, one)
        fine = Window(*(_SAMPLES * side for side in (window.x0, window.y0, window.x1, window.y1)))
        fine = fine.clipped_to(Window(0, 0, width, height))
        if fine.is_empty:
            continue
        colours, distance_m = _sample(camera, one, light, window, fine)
        rows, cols = fine.slices_in(Window(0, 0, width, height))
        shown = distance_m < nearest_m[rows, cols]
        rgb[rows, cols][shown] = colours[shown]
        nearest_m[rows, cols][shown] = distance_m[shown]
        owner[rows, cols][shown] = index
        whole = np.zeros((height, width), bool)
        whole[rows, cols] = np.isfinite(distance_m)
        full[index] = _mostly(whole, size_hw)
    image = cv2.resize(rgb, size_hw[::-1], interpolation=cv2.INTER_AREA)
    visible = np.stack([_mostly(owner == index, size_hw) for index in range(len(placed))])
    return CameraImage(np.asarray(image), visible & full, full)


def object_window(camera: CameraModel, placed: PlacedObject) -> Window:
    """Return the pixels of an image, also beyond it, that the sphere around an object is seen in."""
    R, tangent = _view_of(placed)
    side = np.linspace(-tangent, tangent, 9)
    x, y = np.meshgrid(side, side)
    uv = camera.project(np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3) @ R.T) - camera.first_pixel_px
    low, high = np.floor(uv.min(axis=0)).astype(int) - 1, np.ceil(uv.max(axis=0)).astype(int) + 2
    return Window(int(low[0]), int(low[1]), int(high[0]), int(high[1]))


def _view_of(placed: PlacedObject) -> tuple[Array, float]:
    """Return R_cam_from_virtual (3,3) of the camera that looks at an object, and the tangent of its angular radius."""
    centre = placed.T_cam_from_obj[:3, 3]
    radius_m, distance_m = 0.51 * placed.item.diameter_m, float(np.linalg.norm(centre))
    return ray_rotation(centre[None])[0], radius_m / float(np.sqrt(distance_m**2 - radius_m**2))


def _sample(
    camera: CameraModel, placed: PlacedObject, light: Light, window: Window, fine: Window
) -> tuple[Array, Array]:
    """Return the colours (h,w,3) u8 and distances (h,w) f32 m, infinite outside, of an object at the samples `fine`."""
    R, tangent = _view_of(placed)
    focal_px = _SAMPLES * _OVERSAMPLING * resolution_along(camera, R)
    half = int(np.ceil(tangent * focal_px)) + 1
    K = np.array([[focal_px, 0, half], [0, focal_px, half], [0, 0, 1]])
    seen = replace(placed, T_cam_from_obj=make_T(R.T, np.zeros(3)) @ placed.T_cam_from_obj)
    turned = replace(light, direction_cam=R.T @ light.direction_cam)
    size_hw = (2 * half, 2 * half)
    view = draw_scene(Scene((seen,), 1, K, size_hw, turned, None, 0, 0, True), Window(0, 0, *size_hw), 1, _BLACK)
    tangents = _tangents(camera, R, window, fine)
    map_x, map_y = (np.ascontiguousarray(focal_px * axis + half - 0.5, np.float32) for axis in tangents)
    colours, depth_m = (cv2.remap(image, map_x, map_y, cv2.INTER_NEAREST) for image in (view.rgb, view.depth_m))
    length = np.sqrt(tangents[0] ** 2 + tangents[1] ** 2 + 1)
    return np.asarray(colours), np.where(depth_m > 0, depth_m * length, np.inf).astype(np.float32)


def _tangents(camera: CameraModel, R: Array, window: Window, fine: Window) -> tuple[Array, Array]:
    """Return x/z and y/z (h,w), in the virtual camera, of the directions of the image's samples `fine`."""
    nodes = chebyshev_nodes(_NODES)
    spans = ((window.x0, window.x1), (window.y0, window.y1))
    x, y = (low + (nodes + 1) * (high - low) / 2 for low, high in spans)  # from the corner of the first pixel
    uv = np.stack(np.meshgrid(x, y), axis=-1) - 0.5 + camera.first_pixel_px
    rays = camera.unproject(uv) @ R
    samples = (np.arange(fine.x0, fine.x1), np.arange(fine.y0, fine.y1))
    to_x, to_y = (
        chebyshev_matrix(((index + 0.5) / _SAMPLES - low) * 2 / (high - low) - 1, _NODES)
        for index, (low, high) in zip(samples, spans, strict=True)
    )
    return to_y @ (rays[..., 0] / rays[..., 2]) @ to_x.T, to_y @ (rays[..., 1] / rays[..., 2]) @ to_x.T


def _mostly(samples: Array, size_hw: tuple[int, int]) -> Array:
    """Return the pixels (H,W) bool of which at least half of the samples are set."""
    share = cv2.resize(samples.astype(np.uint8) * np.uint8(252), size_hw[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(share >= 126)
