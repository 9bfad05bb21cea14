"""Detections in JSON: a list of entries in the format of CNOS, or COCO's `{"annotations": [...]}`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.json_numbers import finite_number, finite_numbers, whole_number
from picopose_cli.base.types import NO_BOX, Detection, MaskSource, Polygons, Rle
from picopose_cli.bop.detection_set import UNKNOWN_TIME_S, DetectionSet
from picopose_cli.bop.json_files import read_json

ANNOTATION_SCORE = 1.0
"""The score of COCO annotations that have none."""
_MISSING_BOXES: tuple[Any, ...] = (None, [], "", "none", "None", "null")
_MISSING_MASKS: tuple[Any, ...] = (None, {}, [])
_IMAGE_NAME = re.compile(r"(?:(?:^|/)(\d+)/)?(?:rgb|gray)\w*/(\d+)\.\w+$")
"""An image in a COCO file: scene and image id in 000048/rgb/000001.png."""
_SCENE_FOLDER = re.compile(r"\d{6}$")
_LARGEST_PX = 1e7
"""Largest coordinate of a polygon: far outside any image."""
_SMALLEST_POLYGON = 3
_LONGEST_ID = 15


def read_detection_json(path: Path) -> DetectionSet:
    """Return the detections of a JSON file, also gzipped; masks stay encoded.

    An entry with a field that is missing, NaN or of the wrong kind is left out and recorded with its index.
    Raises PicoPoseError when the file cannot be read or is neither a list nor COCO annotations.
    """
    detections = DetectionSet()
    known_counts: dict[int, int] = {}
    content = read_json(path, object_hook=lambda entry: _compact(entry, known_counts))
    for index, entry in enumerate(_entries(path, content)):
        try:
            image, detection = _detection(entry)
        except ValueError as error:
            detections.problems.append(f"{path}: entry {index}: {error}")
            continue
        detections.by_image.setdefault(image, []).append(detection)
    return detections


def _entries(path: Path, content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _coco_entries(path, content)
    what = 'is neither a list of detections nor {"annotations": [...]}'
    raise PicoPoseError(what, where=path, fix="write the detections in the format of CNOS, see the README")


def _coco_entries(path: Path, content: dict[str, Any]) -> list[Any]:
    """Return the annotations of a COCO file with the scene and image ids of CNOS entries.

    The ids are those of the entry if it has a scene_id, else of the image's file name (000048/rgb/000001.png), and the
    scene is that of the folder of the file if neither names one.
    """
    folder = path.resolve().parent.name
    scene_id = int(folder) if _SCENE_FOLDER.match(folder) else None
    images = content.get("images")
    listed = images if isinstance(images, list) else []
    ids = {str(image.get("id")): _coco_image(image, scene_id) for image in listed if isinstance(image, dict)}
    entries: list[Any] = []
    for entry in content["annotations"]:
        if isinstance(entry, dict):
            own_scene = {} if scene_id is None else {"scene_id": scene_id}
            of_image = ids.get(str(entry.get("image_id")), own_scene) if "scene_id" not in entry else {}
            entry = {"score": ANNOTATION_SCORE, **entry, **of_image}
        entries.append(entry)
    return entries


def _coco_image(image: dict[str, Any], scene_id: int | None) -> dict[str, Any]:
    """Return what an entry of `images` says of `scene_id` and `image_id`."""
    found = _IMAGE_NAME.search(str(image.get("file_name", "")))
    scene = image.get("scene_id", found[1] if found and found[1] else scene_id)
    ids = {"image_id": found[2] if found else image.get("id")}
    return ids if scene is None else ids | {"scene_id": scene}


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
    if isinstance(entry, ValueError):
        raise entry
    if not isinstance(entry, dict):
        raise ValueError("is not an object")
    scene_id, im_id, obj_id = (_id(entry, key) for key in ("scene_id", "image_id", "category_id"))
    time_s = UNKNOWN_TIME_S if entry.get("time") is None else _number(entry, "time")
    mask = _mask(entry.get("segmentation"))
    return (scene_id, im_id), Detection(obj_id, _number(entry, "score"), _box(entry, mask), mask, time_s)


def _box(entry: dict[str, Any], mask: MaskSource | None) -> tuple[float, float, float, float]:
    """Return the box of an entry; beside a mask it may be missing."""
    if entry.get("bbox") in _MISSING_BOXES:
        if mask is None:
            raise ValueError("has neither bbox nor segmentation")
        return NO_BOX
    box = finite_numbers(entry["bbox"], 4)
    if box is None:
        raise ValueError("bbox is not four finite numbers")
    x, y, w, h = box.tolist()
    return x, y, w, h


def _mask(segmentation: Any) -> MaskSource | None:
    if isinstance(segmentation, ValueError):
        raise segmentation
    if segmentation in _MISSING_MASKS:
        return None
    if isinstance(segmentation, Rle):
        return segmentation
    if not isinstance(segmentation, list):
        raise ValueError("segmentation is neither {counts, size} nor a list of polygons")
    return Polygons(tuple(_ring(ring) for ring in segmentation))


def _ring(ring: Any) -> tuple[float, ...]:
    count = len(ring) if isinstance(ring, list) else 0
    numbers = finite_numbers(ring, count)
    if numbers is None or count % 2 or count < 2 * _SMALLEST_POLYGON or np.abs(numbers).max() > _LARGEST_PX:
        raise ValueError("segmentation is not a list of polygons [x, y, x, y, x, y, ...]")
    return tuple(numbers.tolist())


def _id(entry: dict[str, Any], key: str) -> int:
    """Return an id, which may also be text such as "7" or "000007"."""
    value = entry.get(key)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _LONGEST_ID:
        value = int(value)
    number = whole_number(value)
    if number is None:
        raise ValueError(f"{key} is {_shown(entry, key)}, not an id")
    return number


def _number(entry: dict[str, Any], key: str) -> float:
    value = finite_number(entry.get(key))
    if value is None:
        raise ValueError(f"{key} is {_shown(entry, key)}, not a finite number")
    return value


def _shown(entry: dict[str, Any], key: str) -> str:
    return repr(entry[key])[:40] if key in entry else "missing"
