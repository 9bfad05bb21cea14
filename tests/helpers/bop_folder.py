"""Small BOP folders without rendered content, for tests of reading: JSON files, flat images, masks of one box."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

K = [300.0, 0.0, 32.0, 0.0, 310.0, 24.0, 0.0, 0.0, 1.0]
HEIGHT, WIDTH = 48, 64
MASK_BOX = (10, 5, 20, 12)
"""x, y, w, h of the one box that every mask shows."""


def box_mask() -> np.ndarray:
    x, y, w, h = MASK_BOX
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def gt_entry(obj_id: int, t_mm: Sequence[float] = (10.0, 20.0, 500.0)) -> dict[str, Any]:
    return {"obj_id": obj_id, "cam_R_m2c": np.eye(3).ravel().tolist(), "cam_t_m2c": list(t_mm)}


def write_scene(
    scene_dir: Path,
    images: Mapping[int, Sequence[int | tuple[int, float]]],
    *,
    image_folder: str = "rgb",
    ext: str = ".png",
    suffix: str = "",
    gt: bool = True,
    info: bool = True,
    masks: bool = False,
) -> None:
    """Write a scene: `images` maps an image id to its objects, each an id or (id, visible fraction)."""
    (scene_dir / image_folder).mkdir(parents=True, exist_ok=True)
    cameras: dict[str, Any] = {}
    gts: dict[str, Any] = {}
    infos: dict[str, Any] = {}
    for im_id, objects in images.items():
        pixels = np.full((HEIGHT, WIDTH, 3), im_id % 256, np.uint8)
        cv2.imwrite(str(scene_dir / image_folder / f"{im_id:06d}{ext}"), pixels)
        pairs = [item if isinstance(item, tuple) else (item, 1.0) for item in objects]
        cameras[str(im_id)] = {"cam_K": K, "depth_scale": 0.1}
        gts[str(im_id)] = [gt_entry(obj_id) for obj_id, _ in pairs]
        infos[str(im_id)] = [{"bbox_visib": list(MASK_BOX), "visib_fract": visible} for _, visible in pairs]
        for gt_id in range(len(pairs) if masks else 0):
            folder = scene_dir / f"mask_visib{suffix}"
            folder.mkdir(exist_ok=True)
            cv2.imwrite(str(folder / f"{im_id:06d}_{gt_id:06d}.png"), box_mask().astype(np.uint8) * 255)
    write_json(scene_dir / f"scene_camera{suffix}.json", cameras)
    if gt:
        write_json(scene_dir / f"scene_gt{suffix}.json", gts)
    if gt and info:
        write_json(scene_dir / f"scene_gt_info{suffix}.json", infos)


def write_models(folder: Path, ids: Sequence[int], ext: str = ".ply") -> None:
    """Write empty mesh files and a models_info.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for obj_id in ids:
        (folder / f"obj_{obj_id:06d}{ext}").touch()
    write_json(folder / "models_info.json", {str(obj_id): {"diameter": 100.0 + obj_id} for obj_id in ids})


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def edit_json(path: Path, key: str, value: object) -> None:
    """Replace one entry of a JSON object."""
    content = json.loads(path.read_text())
    content[key] = value
    path.write_text(json.dumps(content))
