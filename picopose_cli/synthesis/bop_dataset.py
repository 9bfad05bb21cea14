"""Writes a BOP data set of procedural objects: textured models, photograph-like images, exact truth, detections.

Object k is the same whatever the number of images, and no object of training comes from the same stream of seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial.distance import cdist

from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.types import Array, Mesh
from picopose_cli.bop.rle import encode_rle
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.rendering.rasteriser import Window
from picopose_cli.synthesis.compose import NOBODY, SceneImage, draw_scene
from picopose_cli.synthesis.noisy_detections import noisy_detections
from picopose_cli.synthesis.objects import SyntheticObject, make_distinct_mesh
from picopose_cli.synthesis.roughen import roughen_mask
from picopose_cli.synthesis.scenes import (
    IMAGE_HW,
    Difficulty,
    PlacedObject,
    Scene,
    image_box,
    random_scene,
)
from picopose_cli.synthesis.sensor import photograph
from picopose_cli.synthesis.symmetric_objects import NO_SYMMETRIES, make_symmetric_mesh
from picopose_cli.synthesis.textures import paint_background

SCENE_ID = 0
DETECTIONS = {"gt": "detections_gt.json", "rough": "detections_rough.json", "noisy": "detections_noisy.json"}
"""Detections files in CNOS's format: the true masks, masks such as a detector's, and those with a detector's errors."""
_STREAM = 0x50B0
"""First number of every seed here; training's seeds have another length, so that no object is met in both."""
_DEPTH_UNIT_MM = 0.1
_SMALLEST_VISIBLE_SHARE = 0.1
_SMALLEST_TARGET_PX = 400
_TEXTURE_PX = 512
_SIZE_M = (0.06, 0.2)
_BOX_PX = (85.0, 250.0)
_DISTANCE_ROWS = 512
_CALM_SHARE = 0.7
_TRIES = 8
"""Scenes drawn for each image, of which the best framed is taken."""


@dataclass
class _Annotations:
    """What the JSON files of the scene and the data set will hold."""

    camera: dict[str, Any] = field(default_factory=dict)
    gt: dict[str, list[Any]] = field(default_factory=dict)
    gt_info: dict[str, list[Any]] = field(default_factory=dict)
    targets: list[dict[str, int]] = field(default_factory=list)
    detections: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in DETECTIONS})


def write_procedural_dataset(
    folder: Path,
    name: str,
    *,
    objects: int,
    images: int,
    seed: int,
    size_hw: tuple[int, int] = IMAGE_HW,
    level: float = 0.8,
    max_objects: int = 6,
    symmetric: bool = False,
) -> Path:
    """Write the data set `folder`/`name` and return its folder; the same arguments give the same files.

    It holds models/ (PLY with a texture, models_info.json), test/000000/ (rgb, depth, mask, mask_visib, scene_*.json),
    test_targets_bop19.json and _bop24.json, and the files of DETECTIONS. Objects are used equally often; images show
    up to `max_objects` of them, at the difficulty `level` in [0, 1]. Objects look different from every side, or
    all are `symmetric` and models_info.json says how. Raises PicoPoseError when the folder cannot be written.
    """
    root = folder / name
    items = _write_models(root / "models", objects, seed, symmetric=symmetric)
    scene_folder = root / "test" / f"{SCENE_ID:06d}"
    notes = _Annotations()
    turn = 0
    for im_id in range(images):
        rng = np.random.default_rng([_STREAM, seed, 1, im_id])
        count = int(rng.integers(min(2, objects), min(max_objects, objects) + 1))
        pool = [items[(turn + i) % objects] for i in range(count)]
        turn += count
        scene, background = _draw_lots(rng, [item for _, item in pool], size_hw, level)
        ids = {id(item): obj_id for obj_id, item in pool}
        seen = _write_image(scene_folder, im_id, scene, background, ids, rng, level, notes)
        own_rng = np.random.default_rng([_STREAM, seed, 2, im_id])
        for found in noisy_detections(own_rng, *seen, [obj_id for obj_id, _ in items]):
            notes.detections["noisy"].append(cnos_entry(im_id, found.obj_id, found.mask, found.score))
    for part in ("camera", "gt", "gt_info"):
        _write_json(scene_folder / f"scene_{part}.json", getattr(notes, part))
    _write_json(root / "test_targets_bop19.json", notes.targets)
    _write_json(root / "test_targets_bop24.json", [{"scene_id": SCENE_ID, "im_id": im_id} for im_id in range(images)])
    for kind, file in DETECTIONS.items():
        _write_json(root / file, notes.detections[kind])
    return root


def _write_models(folder: Path, objects: int, seed: int, *, symmetric: bool) -> list[tuple[int, SyntheticObject]]:
    """Write the models and return (obj_id, object) as they read back: what is rendered is what the files hold."""
    items, infos = [], {}
    for obj_id in range(1, objects + 1):
        own_seed, symmetries = [_STREAM, seed, 0, obj_id], NO_SYMMETRIES
        if symmetric:
            mesh, symmetries = make_symmetric_mesh(own_seed, _SIZE_M, _TEXTURE_PX)
        else:
            mesh = make_distinct_mesh(own_seed, _SIZE_M, _TEXTURE_PX)
        path = folder / f"obj_{obj_id:06d}.ply"
        write_textured_ply(path, mesh)
        items.append((obj_id, SyntheticObject(f"obj_{obj_id:06d}", read_mesh(path))))
        infos[str(obj_id)] = _model_info(items[-1][1].mesh) | symmetries.as_model_info()
    _write_json(folder / "models_info.json", infos)
    return items


def write_textured_ply(path: Path, mesh: Mesh) -> None:
    """Write a mesh as a binary PLY in mm, as BOP's: a texture goes beside it as a PNG that the file names.

    Raises PicoPoseError when the folder cannot be written.
    """
    columns: list[tuple[str, str, Array]] = [(axis, "f4", mesh.vertices_m[:, i] * 1000) for i, axis in enumerate("xyz")]
    header = ["ply", "format binary_little_endian 1.0"]
    if mesh.uv is not None and mesh.texture_rgb is not None:
        texture = path.with_suffix(".png")
        atomic_write_bytes(texture, _png(mesh.texture_rgb[..., ::-1]))
        header.append(f"comment TextureFile {texture.name}")
        columns += [(f"texture_{axis}", "f4", mesh.uv[:, i]) for i, axis in enumerate("uv")]
    if mesh.vertex_rgb is not None:
        columns += [(name, "u1", mesh.vertex_rgb[:, i]) for i, name in enumerate(("red", "green", "blue"))]
    vertices = np.zeros(len(mesh.vertices_m), [(name, "<" + kind) for name, kind, _ in columns])
    for name, _, values in columns:
        vertices[name] = values
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.faces
    header.append(f"element vertex {len(vertices)}")
    header += [f"property {'float' if kind == 'f4' else 'uchar'} {name}" for name, kind, _ in columns]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    atomic_write_bytes(path, "\n".join(header).encode() + vertices.tobytes() + faces.tobytes())


def _model_info(mesh: Mesh) -> dict[str, Any]:
    vertices = mesh.vertices_m[np.unique(mesh.faces)] * 1000
    low, size = vertices.min(axis=0), np.ptp(vertices, axis=0)
    info: dict[str, Any] = {"diameter": diameter_of_points(vertices)}
    info |= {f"min_{axis}": float(value) for axis, value in zip("xyz", low, strict=True)}
    info |= {f"size_{axis}": float(value) for axis, value in zip("xyz", size, strict=True)}
    return info


def diameter_of_points(points: Array) -> float:
    """Return the largest distance between two of the points (N,3)."""
    starts = range(0, len(points), _DISTANCE_ROWS)
    return float(max(cdist(points[start : start + _DISTANCE_ROWS], points).max() for start in starts))


def _draw_lots(
    rng: np.random.Generator, pool: Sequence[SyntheticObject], size_hw: tuple[int, int], level: float
) -> tuple[Scene, Array]:
    """Return a scene of all objects of `pool`, none of them far outside of the image, and its background picture."""
    hard = Difficulty.at(level)
    difficulty = Difficulty(
        roll_rad=np.pi,
        max_objects=len(pool),
        clutter=0,
        table_share=0.7,
        plain_share=0.05,
        light=hard.light,
        sensor=hard.sensor,
        rough_share=1.0,
    )
    background = paint_background(rng, calm=bool(rng.random() < _CALM_SHARE))
    drawn = (
        random_scene(rng, pool, difficulty, pictures=1, size_hw=size_hw, box_px=_BOX_PX, everything=True)
        for _ in range(_TRIES)
    )
    scene = max(drawn, key=_framing)
    return scene, background


def _framing(scene: Scene) -> float:
    """Return how well the worst placed object is in the picture: the smaller of its share inside and of its size."""
    boxes = np.array([image_box(placed, scene.K) for placed in scene.placed])
    size_wh = np.array(scene.size_hw[::-1])
    sides = boxes[:, 2:] - boxes[:, :2]
    inside = np.clip(boxes[:, 2:], 0, size_wh) - np.clip(boxes[:, :2], 0, size_wh)
    share = inside.prod(axis=1) / sides.prod(axis=1).clip(1)
    # Of full size counts what is as high as a tenth of the picture; nothing is to fill more than half of it.
    size = np.clip(sides.max(axis=1) / (0.1 * scene.size_hw[0]), 0, 1)
    large = np.clip(0.5 * scene.size_hw[0] / sides.max(axis=1), 0, 1)
    return float(np.minimum(np.minimum(share, size), large).min())


def _write_image(
    folder: Path,
    im_id: int,
    scene: Scene,
    background: Array,
    ids: dict[int, int],
    rng: np.random.Generator,
    level: float,
    notes: _Annotations,
) -> tuple[list[tuple[int, Array]], Array]:
    """Write one image with depth and masks, and note what the JSON files say of it.

    Returns obj_id and visible mask (H,W) bool of its targets, and the mask of all that is seen of any object.
    """
    whole = Window(0, 0, scene.size_hw[1], scene.size_hw[0])
    photo = photograph(rng, draw_scene(scene, whole, 2, background).rgb, level * rng.uniform(0.2, 1))
    exact = draw_scene(scene, whole, 1, background)  # masks and depth at the pixels' centres, as BOP's are
    atomic_write_bytes(folder / f"rgb/{im_id:06d}.png", _png(photo[..., ::-1]))
    depth = np.rint(exact.depth_m * (1000 / _DEPTH_UNIT_MM)).clip(0, 65535).astype(np.uint16)
    atomic_write_bytes(folder / f"depth/{im_id:06d}.png", _png(depth))
    notes.camera[str(im_id)] = {"cam_K": scene.K.ravel().tolist(), "depth_scale": _DEPTH_UNIT_MM}
    notes.gt[str(im_id)], notes.gt_info[str(im_id)] = [], []
    targets: list[tuple[int, Array]] = []
    for gt_id, placed in enumerate(scene.placed):
        full, visible = _mask_alone(scene, placed), exact.visible(gt_id)
        for kind, mask in (("mask", full[1]), ("mask_visib", visible)):
            atomic_write_bytes(folder / f"{kind}/{im_id:06d}_{gt_id:06d}.png", _png(mask.astype(np.uint8) * 255))
        obj_id = ids[id(placed.item)]
        notes.gt[str(im_id)].append(_truth(obj_id, placed.T_cam_from_obj))
        info = _visibility(full, visible, exact)
        notes.gt_info[str(im_id)].append(info)
        if info["visib_fract"] >= _SMALLEST_VISIBLE_SHARE and info["px_count_visib"] >= _SMALLEST_TARGET_PX:
            notes.targets.append({"scene_id": SCENE_ID, "im_id": im_id, "obj_id": obj_id, "inst_count": 1})
            targets.append((obj_id, visible))
            for kind, mask in (("gt", visible), ("rough", roughen_mask(rng, visible))):
                notes.detections[kind].append(cnos_entry(im_id, obj_id, mask))
    return targets, exact.owner != NOBODY


def _mask_alone(scene: Scene, placed: PlacedObject) -> tuple[int, Array]:
    """Return how many pixels an object covers, beyond the image too, and its mask (H,W) bool with nothing before it."""
    box = image_box(placed, scene.K)
    height, width = scene.size_hw
    low = np.floor(np.clip(box[:2], -width, 0)).astype(int)
    high = np.ceil(np.clip(box[2:], (width, height), (2 * width, 2 * height))).astype(int)
    window = Window(int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    alone = Scene((placed,), 1, scene.K, scene.size_hw, scene.light, None, 0, 0, True)
    shown = draw_scene(alone, window, 1, np.zeros((1, 1, 3), np.uint8)).owner == 0
    return int(shown.sum()), shown[-low[1] : height - low[1], -low[0] : width - low[0]]


def _truth(obj_id: int, T_cam_from_obj: Array) -> dict[str, Any]:
    return {
        "obj_id": obj_id,
        "cam_R_m2c": T_cam_from_obj[:3, :3].ravel().tolist(),
        "cam_t_m2c": (T_cam_from_obj[:3, 3] * 1000).tolist(),
    }


def _visibility(full: tuple[int, Array], visible: Array, picture: SceneImage) -> dict[str, Any]:
    count, mask = full
    return {
        "bbox_obj": box_of_mask(mask),
        "bbox_visib": box_of_mask(visible),
        "px_count_all": count,
        "px_count_valid": int((mask & (picture.depth_m > 0)).sum()),
        "px_count_visib": int(visible.sum()),
        "visib_fract": float(visible.sum() / max(count, 1)),
    }


def box_of_mask(mask: Array) -> list[int]:
    """Return the box [x, y, width, height] px of a mask (H,W) bool, -1 throughout where it is empty, as BOP has it."""
    if not mask.any():
        return [-1, -1, -1, -1]
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(cols[0]), int(rows[0]), int(np.ptp(cols)) + 1, int(np.ptp(rows)) + 1]


def cnos_entry(im_id: int, obj_id: int, mask: Array, score: float = 1.0) -> dict[str, Any]:
    """Return one entry of a detections file as CNOS writes it, for a mask (H,W) bool found in no time."""
    rle = encode_rle(mask, compressed=False)
    return {
        "scene_id": SCENE_ID,
        "image_id": im_id,
        "category_id": obj_id,
        "score": score,
        "bbox": box_of_mask(mask),
        "time": 0.0,
        "segmentation": {"counts": list(rle.counts), "size": list(rle.size)},
    }


def _png(image: Array) -> bytes:
    done, data = cv2.imencode(".png", np.ascontiguousarray(image))
    if not done:
        raise RuntimeError("the image could not be encoded")
    return bytes(data)


def _write_json(path: Path, content: object) -> None:
    atomic_write_bytes(path, json.dumps(content).encode())
