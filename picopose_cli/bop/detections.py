"""Detections: JSON files in the format of CNOS, or the masks of the ground truth."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.json_numbers import finite_number, finite_numbers, whole_number
from picopose_cli.base.types import MIN_VISIB_FRACT, AnyTarget, Detection, GroundTruth, ImageTarget, Rle
from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.ground_truth import read_ground_truth, read_visible_boxes
from picopose_cli.bop.images import read_mask_image
from picopose_cli.bop.json_files import read_json_list
from picopose_cli.bop.known_datasets import toolkit_split
from picopose_cli.bop.targets import targets_by_image

_LOG = logging.getLogger(__name__)

OFFICIAL_UUIDS = {
    "ycbv": "f4f2127c-6f59-447c-95b3-28e1e591f1a1",
    "lmo": "3cb298ea-e2eb-4713-ae9e-5a7134c5da0f",
    "tless": "8ca61cb0-4472-4f11-bce7-1362a12d396f",
    "tudl": "c48a2a95-1b41-4a51-9920-a667cb3d7149",
    "icbin": "f21a9faf-7ef2-4325-885f-f4b6460f4432",
    "itodd": "df32d45b-301c-4fc9-8769-797904dd9325",
    "hb": "db836947-020a-45bd-8ec5-c95560b68011",
}
"""In the names of the default CNOS-FastSAM detections, cnos-fastsam_{dataset}-test_{uuid}.json."""
_DETECTOR = "cnos-fastsam"
_USUAL_FOLDERS = ("bop23_default_detections_for_task4", "default_detections", "detections")
_UNKNOWN_TIME_S = -1.0


@dataclass(frozen=True)
class DetectionSet:
    """Detections by (scene_id, im_id), in the order of their file, and the entries that could not be used."""

    by_image: dict[tuple[int, int], list[Detection]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_detections(path: Path) -> DetectionSet:
    """Return the detections of a BOP/CNOS JSON file, also gzipped; masks stay encoded.

    An entry with a field that is missing, NaN or of the wrong kind is left out and recorded with its index.
    Raises PicoPoseError when the file cannot be read or is not a list.
    """
    detections = DetectionSet()
    known_counts: dict[int, int] = {}
    entries = read_json_list(path, object_hook=lambda entry: _compact(entry, known_counts))
    for index, entry in enumerate(entries):
        try:
            image, detection = _detection(entry)
        except ValueError as error:
            detections.problems.append(f"{path}: entry {index}: {error}")
            continue
        detections.by_image.setdefault(image, []).append(detection)
    _LOG.info("%d detections from %s, %d unusable", len(entries), path, len(detections.problems))
    return detections


def find_detections(dataset: Dataset, data_dir: Path) -> Path:
    """Return the default CNOS-FastSAM detections of a data set, found by their official name in the usual folders.

    Raises PicoPoseError when there are none, or several.
    """
    split = toolkit_split(dataset.split)[0]
    start = f"{_DETECTOR}_{dataset.name}-{split}"
    folders = [data_dir / name for name in _USUAL_FOLDERS if (data_dir / name).is_dir()]
    found = {path for folder in folders for path in folder.rglob(f"{start}*.json*")}
    for folder in (data_dir, dataset.root, dataset.root / "detections"):
        found |= set(folder.glob(f"{start}*.json*"))
    begins, ends = (f"{start}_", f"{start}."), (".json", ".json.gz")
    usable = sorted(path for path in found if path.name.startswith(begins) and path.name.endswith(ends))
    official = [path for path in usable if OFFICIAL_UUIDS.get(dataset.name, "?") in path.name]
    candidates = official or usable
    if candidates and (official or len(candidates) == 1):
        return candidates[0]
    if candidates:
        names = ", ".join(map(str, candidates[:5]))
        raise PicoPoseError(f"there are several detection files: {names}", fix="choose one with --detections")
    places = ", ".join(str(data_dir / name) for name in _USUAL_FOLDERS)
    raise PicoPoseError(
        f"no detections {start}_*.json in {places}, {data_dir} or {dataset.root}",
        fix="pass --detections FILE, or --detections gt for the ground-truth masks",
    )


def ground_truth_detections(dataset: Dataset, targets: Sequence[AnyTarget]) -> DetectionSet:
    """Return the annotated instances of the targets as detections with score 1 and time 0, most visible first.

    Those are all instances of a target's object (BOP19), or all of an image with a visible fraction of at least 0.1
    (BOP24). Their masks are the files in mask_visib, which are read later. An annotation that cannot be used is
    recorded. Raises PicoPoseError when a scene has no ground truth.
    """
    detections = DetectionSet()
    by_image = targets_by_image(targets)
    for scene_id in sorted({target.scene_id for target in targets}):
        boxes = read_visible_boxes(dataset, scene_id)
        for im_id, instances in read_ground_truth(dataset, scene_id, problems=detections.problems).items():
            of_image = by_image.get((scene_id, im_id), [])
            chosen = [instance for instance in instances if any(_is_of_target(instance, target) for target in of_image)]
            for instance in sorted(chosen, key=lambda instance: -instance.visib_fract):
                _add_instance(dataset, instance, boxes.get((im_id, instance.gt_id)), detections)
    return detections


def _is_of_target(instance: GroundTruth, target: AnyTarget) -> bool:
    if isinstance(target, ImageTarget):
        return instance.visib_fract >= MIN_VISIB_FRACT
    return instance.obj_id == target.obj_id


def select_detections(targets: Sequence[AnyTarget], detections: Sequence[Detection]) -> list[Detection]:
    """Return the detections to estimate for the targets of one image, target by target.

    A BOP19 target gets the `inst_count` best detections of its object; where the image has none of that object, the
    best of the other objects, relabelled (source: the rule for the default detections of BOP task 4). A BOP24 target
    gets all detections of its image, best first. Equal scores keep their order.
    """
    ranked = sorted(detections, key=lambda detection: -detection.score)
    selected: list[Detection] = []
    for target in targets:
        if isinstance(target, ImageTarget):
            selected += ranked
            continue
        own = [detection for detection in ranked if detection.obj_id == target.obj_id]
        chosen = own or [replace(detection, obj_id=target.obj_id) for detection in ranked]
        selected += chosen[: target.inst_count]
    return selected


def _compact(entry: dict[str, Any], known_counts: dict[int, int]) -> Any:
    """Convert a segmentation to an Rle as soon as it is parsed, so that equal run lengths share one int object."""
    if "counts" not in entry:
        return entry
    try:
        return _rle(entry, known_counts)
    except ValueError as error:
        return error


def _rle(entry: dict[str, Any], known_counts: dict[int, int]) -> Rle:
    size, counts = entry.get("size"), entry["counts"]
    sides = [whole_number(side, 1) for side in size] if isinstance(size, list) else []
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        raise ValueError("segmentation.size is not [height, width]")
    if isinstance(counts, str) and counts.isascii():
        return Rle((sides[0], sides[1]), counts.encode("ascii"))
    if isinstance(counts, list) and set(map(type, counts)) <= {int}:
        return Rle((sides[0], sides[1]), tuple(map(known_counts.setdefault, counts, counts)))
    raise ValueError("segmentation.counts is neither a list of whole numbers nor ASCII text")


def _detection(entry: Any) -> tuple[tuple[int, int], Detection]:
    if not isinstance(entry, dict):
        raise ValueError("is not an object")
    scene_id, im_id, obj_id = (_id(entry, key) for key in ("scene_id", "image_id", "category_id"))
    score, time_s = _number(entry, "score"), _number({"time": _UNKNOWN_TIME_S, **entry}, "time")
    box = finite_numbers(entry.get("bbox"), 4)
    if box is None:
        raise ValueError("bbox is not four finite numbers")
    mask = entry.get("segmentation")
    if isinstance(mask, ValueError):
        raise mask
    if mask is not None and mask != {} and not isinstance(mask, Rle):
        raise ValueError("segmentation is not {counts, size}")
    x, y, w, h = box.tolist()
    return (scene_id, im_id), Detection(obj_id, score, (x, y, w, h), mask or None, time_s)


def _id(entry: dict[str, Any], key: str) -> int:
    value = whole_number(entry.get(key))
    if value is None:
        raise ValueError(f"{key} is {_shown(entry, key)}, not an id")
    return value


def _number(entry: dict[str, Any], key: str) -> float:
    value = finite_number(entry.get(key))
    if value is None:
        raise ValueError(f"{key} is {_shown(entry, key)}, not a finite number")
    return value


def _shown(entry: dict[str, Any], key: str) -> str:
    return repr(entry[key])[:40] if key in entry else "missing"


def _add_instance(
    dataset: Dataset,
    instance: GroundTruth,
    box_xywh: tuple[float, float, float, float] | None,
    detections: DetectionSet,
) -> None:
    image = (instance.scene_id, instance.im_id)
    mask_path = dataset.mask_visib_path(*image, instance.gt_id)
    if box_xywh is None:
        try:
            box_xywh = _mask_box_xywh(mask_path)
        except PicoPoseError as error:
            detections.problems.append(f"scene {image[0]}, image {image[1]}, object {instance.obj_id}: {error}")
            return
    detection = Detection(instance.obj_id, 1.0, box_xywh, mask_path, 0.0)
    detections.by_image.setdefault(image, []).append(detection)


def _mask_box_xywh(path: Path) -> tuple[float, float, float, float]:
    mask = read_mask_image(path)
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise PicoPoseError("the mask is empty: the instance is not visible", where=path)
    return float(cols[0]), float(rows[0]), float(cols[-1] - cols[0] + 1), float(rows[-1] - rows[0] + 1)
