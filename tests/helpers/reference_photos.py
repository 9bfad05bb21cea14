"""Small photographs of a mesh from all around, with exact masks and poses, and their folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Array, Mesh
from picopose_cli.rendering.mesh_size import mesh_diameter_m
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.synthesis.placement import look_at

SIDE_PX = 96


@dataclass
class Photo:
    """A photograph (96,96,3) u8 of a mesh, its mask and depth, K (3,3), T_cam_from_obj (4,4) metres."""

    rgb: Array
    mask: Array
    depth_m: Array
    K: Array
    T: Array


def sphere_directions(count: int) -> Array:
    """Return evenly spread unit vectors (count,3)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    azimuth = np.pi * (1 + np.sqrt(5)) * np.arange(count)
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1)


def take_photos(mesh: Mesh, directions: Array) -> list[Photo]:
    """Return photographs from directions (N,3) of the object frame."""
    K = np.array([[120.0, 0, SIDE_PX / 2], [0, 120.0, SIDE_PX / 2], [0, 0, 1]])
    renderer = SoftwareRenderer(mesh, K, (SIDE_PX, SIDE_PX))
    distance_m = 1.7 * mesh_diameter_m(mesh)
    photos = []
    for direction in directions:
        T = make_T(look_at(direction, 0.1), np.array([0.002, -0.001, 1.0]) * distance_m)
        view = renderer.render(T)
        photos.append(Photo(view.rgb, view.alpha > 127, view.depth_m, K, T))
    return photos


def write_photos(folder: Path, photos: Sequence[Photo], *, alpha: bool = False) -> dict[str, Any]:
    """Write a plain folder: images/, masks/ (or alpha channels), cameras.json; return the content of the last."""
    (folder / "images").mkdir(parents=True)
    cameras = {}
    for i, photo in enumerate(photos):
        name = f"photo_{i:02d}.png"
        mask = photo.mask * np.uint8(255)
        bgr = photo.rgb[..., ::-1]
        cv2.imwrite(str(folder / "images" / name), np.dstack([bgr, mask]) if alpha else bgr)
        if not alpha:
            (folder / "masks").mkdir(exist_ok=True)
            cv2.imwrite(str(folder / "masks" / name), mask)
        T_mm = photo.T.copy()
        T_mm[:3, 3] *= 1000
        cameras[name] = {"K": photo.K.tolist(), "T_cam_from_obj": T_mm.tolist()}
    (folder / "cameras.json").write_text(json.dumps(cameras))
    return cameras


def write_scene(folder: Path, photos: Sequence[Photo], obj_id: int, *, depth: bool = False) -> None:
    """Write a BOP scene folder of one object."""
    cameras, poses = {}, {}
    for kind in ("rgb", "mask_visib", *(("depth",) if depth else ())):
        (folder / kind).mkdir(parents=True)
    for i, photo in enumerate(photos):
        cv2.imwrite(str(folder / f"rgb/{i:06d}.png"), photo.rgb[..., ::-1])
        cv2.imwrite(str(folder / f"mask_visib/{i:06d}_000000.png"), photo.mask * np.uint8(255))
        if depth:
            cv2.imwrite(str(folder / f"depth/{i:06d}.png"), np.rint(photo.depth_m * 10_000).astype(np.uint16))
        cameras[i] = {"cam_K": photo.K.ravel().tolist(), "depth_scale": 0.1}
        R, t_mm = photo.T[:3, :3], photo.T[:3, 3] * 1000
        poses[i] = [{"obj_id": obj_id, "cam_R_m2c": R.ravel().tolist(), "cam_t_m2c": t_mm.tolist()}]
    (folder / "scene_camera.json").write_text(json.dumps(cameras))
    (folder / "scene_gt.json").write_text(json.dumps(poses))
