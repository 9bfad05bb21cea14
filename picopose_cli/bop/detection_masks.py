"""Detections as a folder of mask images, for users without run-length masks.

The names say what the masks show, {scene}_{image}_{object}_{number}.png with ids as in 000048_000001_000005_0.png; the
scores are then equal. Or a CSV file in the folder says it: columns mask (the file's name), scene_id, im_id, obj_id and,
if known, score and time (seconds that the detector took for the image).
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import NO_BOX, Detection
from picopose_cli.bop.detection_set import UNKNOWN_TIME_S, DetectionSet

MASK_SCORE = 1.0
"""The score of a mask without one."""
_NAME = re.compile(r"(\d{1,15})_(\d{1,15})_(\d{1,15})(?:_(\w+))?\.png", re.ASCII | re.IGNORECASE)
_NAMES = "{scene}_{image}_{object}_{number}.png, such as 000048_000001_000005_0.png"
_PNG, _CSV = ".png", ".csv"
_COLUMNS = ("mask", "scene_id", "im_id", "obj_id")


def mask_folder_files(folder: Path) -> list[Path]:
    """Return the masks and tables of a folder, sorted by name; raises PicoPoseError when it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in (_PNG, _CSV))
    except OSError as error:
        raise PicoPoseError(f"cannot be listed ({error.strerror})", where=folder, fix="check the folder") from error


def read_mask_folder(folder: Path) -> DetectionSet:
    """Return the masks of a folder as detections without a box, in the order of the CSV, else of their names.

    The images are read when they are needed. A mask that cannot be used is recorded. Raises PicoPoseError when the
    folder has no masks, several CSV files, or names that say nothing.
    """
    files = mask_folder_files(folder)
    tables = [path for path in files if path.suffix.lower() == _CSV]
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise PicoPoseError(f"there are several CSV files: {names}", where=folder, fix="leave the one of the masks")
    if tables:
        return _read_table(tables[0])
    masks = [path for path in files if path.suffix.lower() == _PNG]
    detections = DetectionSet()
    for path in masks:
        _add_named(path, detections)
    if not detections.by_image:
        what = f"has {len(masks)} PNG files, none with a name such as" if masks else "has no masks named"
        fix = f"name them so, or put a CSV file with the columns {', '.join(_COLUMNS)} beside them"
        raise PicoPoseError(f"{what} {_NAMES}", where=folder, fix=fix)
    return detections


def _add_named(path: Path, detections: DetectionSet) -> None:
    found = _NAME.fullmatch(path.name)
    if found is None:
        detections.problems.append(f"{path}: the name is not {_NAMES}")
        return
    scene_id, im_id, obj_id = (int(found[group]) for group in (1, 2, 3))
    detection = Detection(obj_id, MASK_SCORE, NO_BOX, path, UNKNOWN_TIME_S)
    detections.by_image.setdefault((scene_id, im_id), []).append(detection)


def _read_table(path: Path) -> DetectionSet:
    detections = DetectionSet()
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                what = f"has no column {', '.join(missing)}"
                raise PicoPoseError(what, where=path, fix=f"the columns are {', '.join(_COLUMNS)}, score, time")
            for row in rows:
                _add_row(path, rows.line_num, row, detections)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PicoPoseError(f"cannot be read ({error})", where=path, fix="write it as CSV in UTF-8") from error
    if not detections.by_image and not detections.problems:
        raise PicoPoseError("has no rows", where=path, fix="list the masks in it, or remove it")
    return detections


def _add_row(path: Path, line: int, row: dict[str, str | None], detections: DetectionSet) -> None:
    try:
        scene_id, im_id, obj_id = (_id(row, name) for name in _COLUMNS[1:])
        score, time_s = _number(row, "score", MASK_SCORE), _number(row, "time", UNKNOWN_TIME_S)
        mask = path.parent / (row["mask"] or "")
        if not mask.is_file():
            raise ValueError(f"there is no mask {row['mask']!r}")
    except ValueError as error:
        detections.problems.append(f"{path}: line {line}: {error}")
        return
    detection = Detection(obj_id, score, NO_BOX, mask, time_s)
    detections.by_image.setdefault((scene_id, im_id), []).append(detection)


def _id(row: dict[str, str | None], name: str) -> int:
    text = (row[name] or "").strip()
    if not (text.isascii() and text.isdigit() and len(text) <= len("123456789012345")):
        raise ValueError(f"{name} is {text[:40]!r}, not an id")
    return int(text)


def _number(row: dict[str, str | None], name: str, default: float) -> float:
    text = (row.get(name) or "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} is {text[:40]!r}, not a finite number")
    return value
