"""Write small data sets in the layouts of BOP's downloads: every sensor's names, fisheyes, GLB models, placeholders.

Images have exact ground truth and no depth; each part of a split has one scene.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.geometry import make_T, ray_rotation
from picopose_cli.base.types import MM_PER_M, Array
from picopose_cli.bop.known_datasets import KnownSplit, known_splits
from picopose_cli.synthesis.bop_dataset import DETECTIONS, box_of_mask, cnos_entry
from picopose_cli.synthesis.bop_models import make_objects, textured_object, write_models
from picopose_cli.synthesis.camera_scenes import CameraImage, draw_through, object_window
from picopose_cli.synthesis.glb_file import write_textured_glb
from picopose_cli.synthesis.image_files import encode_image, write_json
from picopose_cli.synthesis.lighting import Light, random_light
from picopose_cli.synthesis.objects import SyntheticObject
from picopose_cli.synthesis.placement import look_at
from picopose_cli.synthesis.roughen import roughen_mask
from picopose_cli.synthesis.scenes import PlacedObject
from picopose_cli.synthesis.seeds import DATASET_STREAM
from picopose_cli.synthesis.sensor import photograph
from picopose_cli.synthesis.sensors import Sensor, sensors_of_split
from picopose_cli.synthesis.textures import paint_background
from picopose_cli.templates.perspective_crops import resolution_along

MAX_ANGLE_DEG = 55.0
"""Largest angle of an object's centre to a camera's axis."""
_LAYOUT_IMAGES = 16
"""Kind of thing, in the seeds, that the images of these data sets are."""
_SIDES = (0.09, 0.2)
"""Range of the side of an object's box, relative to the image's width."""
_BOX_SHARE = 0.72
"""Side of an object's box relative to its projected diagonal, on average over viewing directions."""
_SENSOR_STRENGTH = 0.4
_ATTEMPTS = 60
_MIN_TARGET_SHARE, _MIN_TARGET_PX = 0.1, 400
_PAINT_RGB = np.array([160.0, 160.0, 160.0])
_PLACEHOLDER = {"cam_R_m2c": [-1.0] * 9, "cam_t_m2c": [-1.0] * 3}
_PLACEHOLDER_INFO = {
    "bbox_obj": [-1] * 4,
    "bbox_visib": [-1] * 4,
    "px_count_all": 0,
    "px_count_valid": 0,
    "px_count_visib": 0,
    "visib_fract": 0.0,
}


@dataclass
class SceneFiles:
    """Content of the annotation files of one sensor of a scene."""

    camera: dict[str, Any] = field(default_factory=dict)
    gt: dict[str, list[Any]] = field(default_factory=dict)
    gt_info: dict[str, list[Any]] = field(default_factory=dict)

    def write(self, scene_dir: Path, suffix: str) -> None:
        """Write the files; raises PicoPoseError when the folder cannot be written."""
        for part in ("camera", "gt", "gt_info"):
            write_json(scene_dir / f"scene_{part}{suffix}.json", getattr(self, part))


@dataclass
class RootFiles:
    """Content of the files of a data set: targets by kind, detections by kind of mask."""

    targets: dict[str, list[Any]] = field(default_factory=lambda: {"bop19": [], "bop24": [], "multiview_bop25": []})
    detections: dict[str, list[Any]] = field(default_factory=lambda: {"gt": [], "rough": []})

    def add(self, rng: np.random.Generator, scene_id: int, im_id: int, found: Sequence[tuple[int, Array]]) -> None:
        """Add the targets of an image, and its detections by their obj_id and visible masks (H,W) bool."""
        image = {"scene_id": scene_id, "im_id": im_id}
        self.targets["bop24"].append(image)
        for obj_id, mask in found:
            self.targets["bop19"].append({**image, "obj_id": obj_id, "inst_count": 1})
            for kind, detected in (("gt", mask), ("rough", roughen_mask(rng, mask))):
                self.detections[kind].append(cnos_entry(im_id, obj_id, detected) | {"scene_id": scene_id})

    def write(self, root: Path) -> None:
        """Write the files; raises PicoPoseError when the folder cannot be written."""
        for kind, targets in self.targets.items():
            if targets:
                write_json(root / f"test_targets_{kind}.json", targets)
        for kind, entries in self.detections.items():
            write_json(root / DETECTIONS[kind], entries)


@dataclass(frozen=True)
class SeenObjects:
    """Objects in front of a sensor, with their obj_ids, the light and the background (h,w,3) u8."""

    obj_ids: tuple[int, ...]
    placed: tuple[PlacedObject, ...]
    light: Light
    background_rgb: Array

    def seen_from(self, T_other_from_cam: Array) -> SeenObjects:
        """Return the same in the frame of another camera; the light stays with that."""
        placed = (replace(one, T_cam_from_obj=T_other_from_cam @ one.T_cam_from_obj) for one in self.placed)
        return replace(self, placed=tuple(placed))


def write_layout_dataset(
    folder: Path, name: str, *, objects: int, images: int, seed: int, size_share: float = 1.0
) -> Path:
    """Write a data set of generated objects in the layout of BOP's data set `name` and return its folder.

    Every scored sensor has a scene of `images` images, which show up to three objects each; `size_share` scales images
    of pinholes. The same arguments give the same files. Raises PicoPoseError when the folder cannot be written.
    """
    root, rows = folder / name, known_splits(name)
    items = _write_models(root, rows[0], objects, seed)
    content = RootFiles()
    for part, row in enumerate(rows):
        scene_id = part if row.scenes is None else row.scenes[0]
        split = row.split if row.parts is None else f"{row.parts}_bop_format"
        scene_dir = root / split / f"{scene_id:06d}"
        rng = np.random.default_rng([DATASET_STREAM, seed, _LAYOUT_IMAGES, part])
        _write_scene(rng, scene_dir, scene_id, sensors_of_split(row, rng, size_share), items, images, content)
    content.write(root)
    return root


def _write_models(root: Path, row: KnownSplit, objects: int, seed: int) -> dict[int, SyntheticObject]:
    """Write the models of a data set, for templates and scores, and return its objects by obj_id."""
    items = write_models(root / row.models, make_objects(textured_object, objects, seed))
    if row.parts is None:
        shutil.copytree(root / row.models, root / "models_eval", dirs_exist_ok=True)
        return items
    for folder in ("object_models", "object_models_eval"):  # of HOT3D
        for obj_id, item in items.items():
            write_textured_glb(root / folder / f"obj_{obj_id:06d}.glb", item.mesh)
        shutil.copy(root / row.models / "models_info.json", root / folder)
    shutil.rmtree(root / row.models)
    return items


def _write_scene(
    rng: np.random.Generator,
    scene_dir: Path,
    scene_id: int,
    sensors: Sequence[Sensor],
    items: Mapping[int, SyntheticObject],
    images: int,
    content: RootFiles,
) -> None:
    files = [SceneFiles() for _ in sensors]
    for im_id in range(images):
        seen = random_view(rng, sensors[0], items)
        for sensor, of_sensor in zip(sensors, files, strict=True):
            moved = seen.seen_from(sensor.T_sensor_from_scored)
            found = write_view(rng, sensor, scene_dir, im_id, moved, of_sensor)
            if sensor.is_scored:
                content.add(rng, scene_id, im_id, found)
        if len(sensors) > 1:
            views = [[sensor.suffix.removeprefix("_"), im_id] for sensor in sensors]
            content.targets["multiview_bop25"].append({"scene_id": scene_id, "im_id": views})
    for sensor, of_sensor in zip(sensors, files, strict=True):
        of_sensor.write(scene_dir, sensor.suffix)


def random_view(rng: np.random.Generator, sensor: Sensor, items: Mapping[int, SyntheticObject]) -> SeenObjects:
    """Return up to three objects, anywhere in a sensor's image up to MAX_ANGLE_DEG off its axis, whole, side by side.

    One for which there is no room overlaps others.
    """
    obj_ids: list[int] = []
    placed: list[PlacedObject] = []
    for obj_id in rng.permutation(list(items))[: int(rng.integers(1, 4))].tolist():
        for _ in range(_ATTEMPTS):
            one = _random_placement(rng, sensor, items[obj_id])
            if one is not None and not any(_overlap(sensor, one, other) for other in placed):
                break
        if one is not None:
            obj_ids.append(obj_id)
            placed.append(one)
    return SeenObjects(tuple(obj_ids), tuple(placed), random_light(rng, 0.6), paint_background(rng, calm=True))


def write_view(
    rng: np.random.Generator, sensor: Sensor, scene_dir: Path, im_id: int, seen: SeenObjects, files: SceneFiles
) -> list[tuple[int, Array]]:
    """Write an image with its masks and add its annotations; return obj_id and visible mask (H,W) of its targets."""
    image = draw_through(sensor.camera, sensor.size_hw, seen.placed, seen.light, seen.background_rgb)
    _write_image(sensor, scene_dir, im_id, photograph(rng, image.rgb, _SENSOR_STRENGTH))
    files.camera[str(im_id)] = sensor.entry
    return _annotate(sensor, scene_dir, im_id, seen, image, files)


def _random_placement(rng: np.random.Generator, sensor: Sensor, item: SyntheticObject) -> PlacedObject | None:
    """Return an object at a random position of an image, None where it would not be whole in it."""
    height, width = sensor.size_hw
    ray = sensor.camera.unproject(rng.uniform((0, 0), (width, height)))
    if not ray[2] > np.cos(np.deg2rad(MAX_ANGLE_DEG)):  # NaN, too
        return None
    R = ray_rotation(ray[None])[0]
    side_px = rng.uniform(*_SIDES) * width
    distance_m = max(resolution_along(sensor.camera, R) * item.diameter_m * _BOX_SHARE / side_px, 1.5 * item.diameter_m)
    facing = look_at(rng.normal(size=3), rng.uniform(-np.pi, np.pi))
    placed = PlacedObject(item, make_T(R @ facing, distance_m * ray), _PAINT_RGB)
    window = object_window(sensor.camera, placed)
    inside = window.x0 >= 0 and window.y0 >= 0 and window.x1 <= width and window.y1 <= height
    return placed if inside else None


def _overlap(sensor: Sensor, one: PlacedObject, other: PlacedObject) -> bool:
    """Return whether the windows of two objects have a large common part."""
    a, b = object_window(sensor.camera, one), object_window(sensor.camera, other)
    common = np.prod(a.clipped_to(b).size_hw)
    return bool(common > 0.3 * min(np.prod(a.size_hw), np.prod(b.size_hw)))


def _write_image(sensor: Sensor, scene_dir: Path, im_id: int, rgb: Array) -> None:
    pixels = rgb[..., ::-1]
    if sensor.image_folder.startswith("gray"):
        pixels = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    path = scene_dir / sensor.image_folder / f"{im_id:06d}{sensor.image_ext}"
    atomic_write_bytes(path, encode_image(pixels, sensor.image_ext))


def _annotate(
    sensor: Sensor, scene_dir: Path, im_id: int, seen: SeenObjects, image: CameraImage, files: SceneFiles
) -> list[tuple[int, Array]]:
    """Write the masks of an image and add its annotations; return obj_id and visible mask (H,W) of its targets."""
    gts: list[dict[str, Any]] = []
    infos: list[dict[str, Any]] = []
    targets: list[tuple[int, Array]] = []
    objects = zip(seen.obj_ids, seen.placed, image.visible, image.full, strict=True)
    for gt_id, (obj_id, placed, visible, full) in enumerate(objects):
        for kind, mask in (("mask", full), ("mask_visib", visible)):
            path = scene_dir / f"{kind}{sensor.suffix}" / f"{im_id:06d}_{gt_id:06d}.png"
            atomic_write_bytes(path, encode_image(mask.astype(np.uint8) * 255))
        T = placed.T_cam_from_obj
        R, t = T[:3, :3].ravel().tolist(), (T[:3, 3] * MM_PER_M).tolist()
        gts.append({"obj_id": obj_id, "cam_R_m2c": R, "cam_t_m2c": t})
        counts = {"px_count_all": int(full.sum()), "px_count_valid": 0, "px_count_visib": int(visible.sum())}
        share = counts["px_count_visib"] / max(counts["px_count_all"], 1)
        boxes: dict[str, Any] = {"bbox_obj": box_of_mask(full), "bbox_visib": box_of_mask(visible)}
        infos.append(boxes | counts | {"visib_fract": share})
        if share >= _MIN_TARGET_SHARE and counts["px_count_visib"] >= _MIN_TARGET_PX:
            targets.append((obj_id, visible))
    if "device" in sensor.entry and seen.obj_ids:  # HOT3D lists objects that the camera does not see
        gts.append({"obj_id": seen.obj_ids[0], **_PLACEHOLDER})
        infos.append(_PLACEHOLDER_INFO)
    files.gt[str(im_id)], files.gt_info[str(im_id)] = gts, infos
    return targets
