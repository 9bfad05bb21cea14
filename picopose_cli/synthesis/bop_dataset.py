"""Write a BOP data set of generated objects: models, photograph-like images, exact ground truth, detections.

Object k is the same whatever the number of images, and its seed belongs to a stream of its own: no endless source
makes the same object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.geometry import mask_slices
from picopose_cli.base.types import MM_PER_M, Array
from picopose_cli.bop.rle import encode_rle
from picopose_cli.rendering.rasteriser import Window
from picopose_cli.synthesis.bop_models import DatasetObject, ObjectMaker, make_objects, textured_object, write_models
from picopose_cli.synthesis.compose import BACKGROUND_OWNER, SceneImage, draw_scene
from picopose_cli.synthesis.conditions import USUAL_CONDITIONS, Conditions, take_photo
from picopose_cli.synthesis.depth_sensor import MeasureDepth, with_background
from picopose_cli.synthesis.image_files import encode_image, write_json
from picopose_cli.synthesis.noisy_detections import noisy_detections
from picopose_cli.synthesis.objects import SyntheticObject
from picopose_cli.synthesis.roughen import roughen_mask
from picopose_cli.synthesis.scenes import IMAGE_HW, Difficulty, PlacedObject, Scene, image_box, random_scene
from picopose_cli.synthesis.seeds import (
    DATASET_DAMAGE,
    DATASET_DEPTH,
    DATASET_DETECTIONS,
    DATASET_IMAGES,
    DATASET_STREAM,
)
from picopose_cli.synthesis.textures import paint_background

SCENE_ID = 0
DETECTIONS = {"gt": "detections_gt.json", "rough": "detections_rough.json", "noisy": "detections_noisy.json"}
"""Files of detections in CNOS's format: true masks, masks with a detector's errors, detections with its errors."""
_DEPTH_UNIT_MM = 0.1
_MIN_TARGET_SHARE = 0.1
"""Visible share from which on an object is a target and is detected."""
_CALM_SHARE = 0.7
"""Share of backgrounds without strong colours and patterns."""
_SCENE_CANDIDATES = 8
"""Number of random scenes for each image, of which the best framed one is drawn."""


@dataclass
class _Annotations:
    """Content of the JSON files of the scene and the data set."""

    camera: dict[str, Any] = field(default_factory=dict)
    gt: dict[str, list[Any]] = field(default_factory=dict)
    gt_info: dict[str, list[Any]] = field(default_factory=dict)
    targets: list[dict[str, int]] = field(default_factory=list)
    detections: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in DETECTIONS})

    def write(self, root: Path, scene_folder: Path) -> None:
        for part in ("camera", "gt", "gt_info"):
            write_json(scene_folder / f"scene_{part}.json", getattr(self, part))
        write_json(root / "test_targets_bop19.json", self.targets)
        images = [{"scene_id": SCENE_ID, "im_id": int(im_id)} for im_id in self.camera]
        write_json(root / "test_targets_bop24.json", images)
        for kind, file in DETECTIONS.items():
            write_json(root / file, self.detections[kind])


@dataclass(frozen=True)
class _Job:
    """One image: its place, the obj_id of each object of its scene, the background, and how it is taken."""

    folder: Path
    im_id: int
    scene: Scene
    obj_ids: tuple[int, ...]
    background_rgb: Array
    conditions: Conditions
    measure_depth: MeasureDepth | None
    """What measures the depth image; None: it is exact."""


def write_procedural_dataset(
    folder: Path,
    name: str,
    *,
    objects: int,
    images: int,
    seed: int,
    make_object: ObjectMaker = textured_object,
    conditions: Conditions = USUAL_CONDITIONS,
    measure_depth: MeasureDepth | None = None,
) -> Path:
    """Write the data set `folder`/`name` of objects made from `seed` and return its folder; see `write_dataset`."""
    made = make_objects(make_object, objects, seed)
    return write_dataset(folder / name, made, images, seed, conditions, measure_depth)


def write_dataset(
    root: Path,
    objects: Sequence[DatasetObject],
    images: int,
    seed: int,
    conditions: Conditions = USUAL_CONDITIONS,
    measure_depth: MeasureDepth | None = None,
) -> Path:
    """Write the data set `root` and return its folder; the same arguments give the same files.

    It contains models/ (PLY, models_info.json), shown/ (objects whose CAD model looks different), test/000000/ (rgb,
    depth, mask, mask_visib, scene_*.json), test_targets_bop19.json and _bop24.json, and the files of DETECTIONS.
    Objects, used equally often, have the ids 1, 2, ... The depth images are those of `measure_depth`, of the objects
    before their background, or exact depth of the objects alone; all else does not depend on it but for the number of
    valid pixels. Raises PicoPoseError when the folder cannot be written.
    """
    items = write_models(root / "models", objects)
    scene_folder = root / "test" / f"{SCENE_ID:06d}"
    annotations = _Annotations()
    used = 0
    for im_id in range(images):
        rng = np.random.default_rng([DATASET_STREAM, seed, DATASET_IMAGES, im_id])
        count = int(rng.integers(min(2, len(items)), min(conditions.max_objects, len(items)) + 1))
        pool = {obj_id: items[obj_id] for obj_id in ((used + i) % len(items) + 1 for i in range(count))}
        used += count
        job = _plan_image(rng, scene_folder, im_id, pool, conditions, measure_depth)
        damage_rng = np.random.default_rng([DATASET_STREAM, seed, DATASET_DAMAGE, im_id])
        depth_rng = np.random.default_rng([DATASET_STREAM, seed, DATASET_DEPTH, im_id])
        visible, occupied = _write_image((rng, damage_rng, depth_rng), job, annotations)
        detector_rng = np.random.default_rng([DATASET_STREAM, seed, DATASET_DETECTIONS, im_id])
        for found in noisy_detections(detector_rng, visible, occupied, list(items)):
            annotations.detections["noisy"].append(cnos_entry(im_id, found.obj_id, found.mask, found.score))
    annotations.write(root, scene_folder)
    return root


def _plan_image(
    rng: np.random.Generator,
    folder: Path,
    im_id: int,
    pool: Mapping[int, SyntheticObject],
    conditions: Conditions,
    measure_depth: MeasureDepth | None,
) -> _Job:
    """Return the background and the best framed of some random scenes of all objects of `pool`, by obj_id."""
    at_level = Difficulty.at(conditions.level)
    difficulty = Difficulty(
        roll_rad=np.pi,
        max_objects=len(pool),
        max_clutter=0,
        table_share=0.7,
        plain_background_share=0.05,
        light_strength=at_level.light_strength,
        sensor_strength=at_level.sensor_strength,
        rough_mask_share=1.0,
    )
    background = paint_background(rng, calm=bool(rng.random() < _CALM_SHARE))
    candidates = (
        random_scene(
            rng,
            list(pool.values()),
            difficulty,
            backgrounds=1,
            size_hw=conditions.size_hw,
            box_px=conditions.box_px,
            use_whole_pool=True,
        )
        for _ in range(_SCENE_CANDIDATES)
    )
    scene = max(candidates, key=lambda scene: _framing_quality(scene, conditions))
    ids = {id(item): obj_id for obj_id, item in pool.items()}
    obj_ids = tuple(ids[id(placed.item)] for placed in scene.placed)
    return _Job(folder, im_id, scene, obj_ids, background, conditions, measure_depth)


def _framing_quality(scene: Scene, conditions: Conditions) -> float:
    """Return how well the worst framed object is in the image, in [0, 1]: the least of three ratios.

    They are its share inside the image, its size relative to the smallest one wanted, and the largest one wanted
    relative to its size, the last two at most 1.
    """
    boxes = np.array([image_box(placed, scene.K) for placed in scene.placed])
    size_wh = np.array(scene.size_hw[::-1])
    sides = boxes[:, 2:] - boxes[:, :2]
    inside = np.clip(boxes[:, 2:], 0, size_wh) - np.clip(boxes[:, :2], 0, size_wh)
    share = inside.prod(axis=1) / sides.prod(axis=1).clip(1)
    smallest, largest = (side * scene.size_hw[1] / IMAGE_HW[1] for side in conditions.framed_px)
    large_enough = np.clip(sides.max(axis=1) / smallest, 0, 1)
    small_enough = np.clip(largest / sides.max(axis=1), 0, 1)
    return float(np.minimum(np.minimum(share, large_enough), small_enough).min())


def _write_image(
    rngs: tuple[np.random.Generator, np.random.Generator, np.random.Generator], job: _Job, annotations: _Annotations
) -> tuple[list[tuple[int, Array]], Array]:
    """Write one image with depth and masks, and add its annotations; `rngs` of the photo, its damage, and the depth.

    Returns obj_id and visible mask (H,W) bool of its targets, and the union (H,W) bool of all visible masks.
    """
    (rng, damage_rng, depth_rng), scene, im_id = rngs, job.scene, job.im_id
    whole = Window(0, 0, scene.size_hw[1], scene.size_hw[0])
    drawn = draw_scene(scene, whole, 2, job.background_rgb)
    photo = take_photo(rng, damage_rng, drawn.rgb, job.conditions)
    exact = draw_scene(scene, whole, 1, job.background_rgb)  # masks and depth at the pixels' centres, as in BOP
    _write_png(job, "rgb", photo[..., ::-1])
    depth_m = exact.depth_m
    if job.measure_depth is not None:
        depth_m = job.measure_depth(depth_rng, with_background(depth_rng, depth_m.astype(np.float64), scene), scene.K)
    depth = np.rint(depth_m * (MM_PER_M / _DEPTH_UNIT_MM)).clip(0, 65535).astype(np.uint16)
    _write_png(job, "depth", depth)
    annotations.camera[str(im_id)] = {"cam_K": scene.K.ravel().tolist(), "depth_scale": _DEPTH_UNIT_MM}
    annotations.gt[str(im_id)], annotations.gt_info[str(im_id)] = [], []
    targets: list[tuple[int, Array]] = []
    for gt_id, obj_id in enumerate(job.obj_ids):
        visible = _annotate_object(job, gt_id, exact, depth > 0, annotations)
        if visible is not None:
            targets.append((obj_id, visible))
            annotations.targets.append({"scene_id": SCENE_ID, "im_id": im_id, "obj_id": obj_id, "inst_count": 1})
            for kind, mask in (("gt", visible), ("rough", roughen_mask(rng, visible))):
                annotations.detections[kind].append(cnos_entry(im_id, obj_id, mask))
    return targets, exact.owner != BACKGROUND_OWNER


def _annotate_object(
    job: _Job, gt_id: int, exact: SceneImage, has_depth: Array, annotations: _Annotations
) -> Array | None:
    """Write the masks of one object and add its annotations; return its visible mask (H,W) bool if it is a target."""
    placed = job.scene.placed[gt_id]
    (full_count, full), visible = _unoccluded_mask(job.scene, placed), exact.visible_mask(gt_id)
    for kind, mask in (("mask", full), ("mask_visib", visible)):
        _write_png(job, kind, mask.astype(np.uint8) * 255, f"_{gt_id:06d}")
    annotations.gt[str(job.im_id)].append(_ground_truth(job.obj_ids[gt_id], placed.T_cam_from_obj))
    info: dict[str, Any] = {
        "bbox_obj": box_of_mask(full),
        "bbox_visib": box_of_mask(visible),
        "px_count_all": full_count,
        "px_count_valid": int((full & has_depth).sum()),
        "px_count_visib": int(visible.sum()),
        "visib_fract": float(visible.sum() / max(full_count, 1)),
    }
    annotations.gt_info[str(job.im_id)].append(info)
    is_target = info["visib_fract"] >= _MIN_TARGET_SHARE and info["px_count_visib"] >= job.conditions.min_target_px
    return visible if is_target else None


def _unoccluded_mask(scene: Scene, placed: PlacedObject) -> tuple[int, Array]:
    """Return the number of pixels of an object's silhouette, also beyond the image, and its mask (H,W) bool inside."""
    box = image_box(placed, scene.K)
    height, width = scene.size_hw
    low = np.floor(np.clip(box[:2], -width, 0)).astype(int)
    high = np.ceil(np.clip(box[2:], (width, height), (2 * width, 2 * height))).astype(int)
    window = Window(int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    alone = Scene((placed,), 1, scene.K, scene.size_hw, scene.light, None, 0, 0, True)
    shown = draw_scene(alone, window, 1, np.zeros((1, 1, 3), np.uint8)).owner == 0
    return int(shown.sum()), shown[-low[1] : height - low[1], -low[0] : width - low[0]]


def _ground_truth(obj_id: int, T_cam_from_obj: Array) -> dict[str, Any]:
    return {
        "obj_id": obj_id,
        "cam_R_m2c": T_cam_from_obj[:3, :3].ravel().tolist(),
        "cam_t_m2c": (T_cam_from_obj[:3, 3] * MM_PER_M).tolist(),
    }


def box_of_mask(mask: Array) -> Sequence[int]:
    """Return the box_xywh px of a mask (H,W) bool, -1 throughout where it is empty, as in BOP."""
    window = mask_slices(mask)
    if window is None:
        return [-1, -1, -1, -1]
    rows, cols = window
    return [cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start]


def cnos_entry(im_id: int, obj_id: int, mask: Array, score: float = 1.0) -> dict[str, Any]:
    """Return one entry of a detections file in CNOS's format for a mask (H,W) bool, with a detection time of 0."""
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


def _write_png(job: _Job, kind: str, image: Array, suffix: str = "") -> None:
    """Write an image (H,W) or (H,W,3) in BGR of a kind such as rgb, depth or mask."""
    atomic_write_bytes(job.folder / kind / f"{job.im_id:06d}{suffix}.png", encode_image(image))
