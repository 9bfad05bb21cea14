"""Reference images of a generated object: views all around it, as of an onboarding sequence, with their faults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import MM_PER_M, Array
from picopose_cli.rendering.rasteriser import Window
from picopose_cli.synthesis.compose import draw_scene
from picopose_cli.synthesis.image_files import encode_image, write_json
from picopose_cli.synthesis.lighting import random_light
from picopose_cli.synthesis.objects import SyntheticObject
from picopose_cli.synthesis.placement import look_at
from picopose_cli.synthesis.roughen import roughen_mask
from picopose_cli.synthesis.scenes import IMAGE_HW, PlacedObject, Scene
from picopose_cli.synthesis.sensor import photograph
from picopose_cli.synthesis.textures import paint_background

_OBJECT_SHARE = 0.8
"""Diagonal of the object's box in the image, in image heights."""
_FOCAL_SHARE = 1.1
"""Focal length in image widths."""
_DEPTH_UNIT_MM = 0.1


@dataclass(frozen=True)
class Faults:
    """What is wrong with reference images: standard deviations of the poses' errors, and the masks' roughness."""

    rotation_deg: float = 0.0
    shift_px: float = 0.0
    rough_masks: bool = False
    sensor_strength: float = 0.0


USUAL_FAULTS = Faults(0.3, 1.0, rough_masks=True, sensor_strength=0.4)


@dataclass(frozen=True)
class ReferenceImage:
    """One reference image: `rgb` (H,W,3) u8, `mask` (H,W) bool, exact `depth_m` (H,W) f32, `K` (3,3).

    `T_cam_from_obj` (4,4) metres is the given pose, `T_true` the true one.
    """

    rgb: Array
    mask: Array
    depth_m: Array
    K: Array
    T_cam_from_obj: Array
    T_true: Array


def reference_images(
    item: SyntheticObject, count: int, seed: int, faults: Faults = Faults(), size_hw: tuple[int, int] = IMAGE_HW
) -> Iterator[ReferenceImage]:
    """Yield `count` images of an object from all around, above and below, in one light that does not move with it."""
    rng = np.random.default_rng([seed, 0x4EF])
    height, width = size_hw
    K = np.array([[_FOCAL_SHARE * width, 0, width / 2], [0, _FOCAL_SHARE * width, height / 2], [0, 0, 1]])
    light, background = random_light(rng, 0.5), paint_background(rng, calm=True)
    distance_m = K[0, 0] * item.diameter_m / (_OBJECT_SHARE * height)
    for i in range(count):
        T = _pose(rng, i, count, distance_m)
        scene = Scene((PlacedObject(item, T, np.full(3, 128.0)),), 1, K, size_hw, light, None, 0, seed + i, False)
        drawn = draw_scene(scene, Window(0, 0, width, height), 1, background)
        mask = drawn.visible_mask(0)
        rgb = photograph(rng, drawn.rgb, faults.sensor_strength) if faults.sensor_strength else drawn.rgb
        shown = roughen_mask(rng, mask) if faults.rough_masks else mask
        yield ReferenceImage(rgb, shown, drawn.depth_m, K, _moved(rng, T, K, item.diameter_m, faults), T)


def _pose(rng: np.random.Generator, index: int, count: int, distance_m: float) -> Array:
    """Return one of evenly spread poses (4,4), with some jitter, the object near the middle of the image."""
    height = 1 - (2 * index + 1) / count
    azimuth = np.pi * (1 + np.sqrt(5)) * index + rng.normal(0, 0.05)
    radius = np.sqrt(1 - height**2)
    direction = np.array([radius * np.cos(azimuth), radius * np.sin(azimuth), height]) + rng.normal(0, 0.03, 3)
    shift = np.append(rng.normal(0, 0.01, 2), 1.0) * distance_m * rng.uniform(0.9, 1.15)
    return make_T(look_at(direction, rng.normal(0, 0.15)), shift)


def _moved(rng: np.random.Generator, T: Array, K: Array, diameter_m: float, faults: Faults) -> Array:
    """Return a pose with errors: a rotation about the object's origin, a shift in the image and along the axis."""
    vector = rng.normal(0, 1, 3)
    vector *= np.deg2rad(rng.normal(0, faults.rotation_deg)) / np.linalg.norm(vector)
    z_m, shift_px = T[2, 3], rng.normal(0, faults.shift_px, 3)
    shift = np.append(shift_px[:2] * z_m / K[0, 0], shift_px[2] * z_m**2 / K[0, 0] / (diameter_m / 2))
    return make_T(np.asarray(cv2.Rodrigues(vector)[0]) @ T[:3, :3], T[:3, 3] + shift)


def write_reference_scene(folder: Path, obj_id: int, images: Iterator[ReferenceImage], *, depth: bool = False) -> None:
    """Write images as a BOP scene folder of one object: rgb, mask_visib, scene_camera.json, scene_gt.json, depth.

    Raises PicoPoseError when the folder cannot be written.
    """
    cameras, poses = dict[str, Any](), dict[str, Any]()
    for im_id, image in enumerate(images):
        atomic_write_bytes(folder / f"rgb/{im_id:06d}.png", encode_image(image.rgb[..., ::-1]))
        atomic_write_bytes(folder / f"mask_visib/{im_id:06d}_000000.png", encode_image(image.mask * np.uint8(255)))
        if depth:
            units = np.rint(image.depth_m * (MM_PER_M / _DEPTH_UNIT_MM)).astype(np.uint16)
            atomic_write_bytes(folder / f"depth/{im_id:06d}.png", encode_image(units))
        cameras[str(im_id)] = {"cam_K": image.K.ravel().tolist(), "depth_scale": _DEPTH_UNIT_MM}
        R, t_mm = image.T_cam_from_obj[:3, :3], image.T_cam_from_obj[:3, 3] * MM_PER_M
        pose = {"obj_id": obj_id, "cam_R_m2c": R.ravel().tolist(), "cam_t_m2c": t_mm.tolist()}
        poses[str(im_id)] = [pose]
    write_json(folder / "scene_camera.json", cameras)
    write_json(folder / "scene_gt.json", poses)
