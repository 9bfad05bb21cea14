"""Annotated poses of a scene: scene_gt.json with the visible fractions and boxes of scene_gt_info.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T, rotation_deviation
from picopose_cli.base.json_numbers import finite_number, finite_numbers, whole_number
from picopose_cli.base.types import MM_PER_M, GroundTruth
from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.json_files import read_indexed

_MAX_DEVIATION = 0.05
"""Of R R^T from the identity: the published annotations of LM-O reach 0.01."""


def read_ground_truth(
    dataset: Dataset, scene_id: int, *, problems: list[str] | None = None
) -> dict[int, list[GroundTruth]]:
    """Return the annotated instances of a scene by image id, poses in metres, in the order of the file.

    Raises PicoPoseError naming file, image and instance for an instance that cannot be used (NaN, a missing field, R
    not a rotation); with a list in `problems` such an instance is left out and described there instead. `gt_id` counts
    all instances, because it is part of the names of the mask files. As in the toolkit, objects out of the camera's
    sight are instances, too: HOT3D writes R and t of -1 for them, and a negative visible fraction is one of nothing.
    """
    path = dataset.annotation_path(scene_id, "scene_gt")
    if not path.is_file():
        fix = "unpack or add the annotations of the split"
        fix = "the ground truth of this split is not public" if dataset.has_private_gt else fix
        raise PicoPoseError("there is no ground truth", where=path, fix=fix)
    infos = _read_infos(dataset, scene_id)
    by_image: dict[int, list[GroundTruth]] = {}
    for im_id, entries in read_indexed(path).items():
        by_image[im_id] = []
        for gt_id, entry in enumerate(_as_list(entries, path, im_id)):
            try:
                info = _info_of(infos, im_id, gt_id)
                by_image[im_id].append(_instance(entry, info, (scene_id, im_id, gt_id)))
            except ValueError as error:
                _report(f"image {im_id}, instance {gt_id}: {error}", path, problems)
    return by_image


def read_visible_boxes(dataset: Dataset, scene_id: int) -> dict[tuple[int, int], tuple[float, float, float, float]]:
    """Return `bbox_visib` (x, y, w, h) px by (im_id, gt_id), without empty and invalid ones; {} without the file."""
    boxes = {}
    for im_id, entries in (_read_infos(dataset, scene_id) or {}).items():
        for gt_id, info in enumerate(entries if isinstance(entries, list) else []):
            box = finite_numbers(info.get("bbox_visib"), 4) if isinstance(info, dict) else None
            if box is not None and box[2] > 0 and box[3] > 0:
                boxes[im_id, gt_id] = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    return boxes


def _read_infos(dataset: Dataset, scene_id: int) -> dict[int, Any] | None:
    path = dataset.annotation_path(scene_id, "scene_gt_info")
    return read_indexed(path) if path.is_file() else None


def _as_list(entries: Any, path: Path, im_id: int) -> list[Any]:
    if not isinstance(entries, list):
        raise PicoPoseError(f"image {im_id}: the instances are not a list", where=path, fix="correct the file")
    return entries


def _info_of(infos: dict[int, Any] | None, im_id: int, gt_id: int) -> Any:
    """Return the scene_gt_info entry of an instance, None where the data set has no such file."""
    if infos is None:
        return None
    entries = infos.get(im_id)
    if not isinstance(entries, list) or gt_id >= len(entries) or not isinstance(entries[gt_id], dict):
        raise ValueError("scene_gt_info has no entry for it")
    return entries[gt_id]


def _instance(entry: Any, info: Any, key: tuple[int, int, int]) -> GroundTruth:
    if not isinstance(entry, dict):
        raise ValueError("the entry is not an object")
    obj_id = whole_number(entry.get("obj_id"))
    if obj_id is None:
        raise ValueError("obj_id is not an object id")
    numbers, t_mm = finite_numbers(entry.get("cam_R_m2c"), 9), finite_numbers(entry.get("cam_t_m2c"), 3)
    if numbers is None:
        raise ValueError("cam_R_m2c is not nine finite numbers")
    if t_mm is None:
        raise ValueError("cam_t_m2c is not three finite numbers")
    R = numbers.reshape(3, 3)
    visib_fract = 1.0 if info is None else finite_number(info.get("visib_fract"))
    if visib_fract is None:
        raise ValueError("visib_fract in scene_gt_info is not a fraction")
    placeholder = visib_fract <= 0 and bool((R == -1).all() and (t_mm == -1).all())
    with np.errstate(over="ignore", invalid="ignore"):  # numbers too large to compute with
        is_rotation = rotation_deviation(R) <= _MAX_DEVIATION and np.linalg.det(R) > 0
    if not (is_rotation or placeholder):
        raise ValueError("cam_R_m2c is not a rotation")
    return GroundTruth(*key, obj_id, make_T(R, t_mm / MM_PER_M), visib_fract)


def _report(text: str, path: Path, problems: list[str] | None) -> None:
    if problems is None:
        raise PicoPoseError(text, where=path, fix="correct the annotation")
    problems.append(f"{path}: {text}")
