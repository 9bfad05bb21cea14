"""The results of an image as a JSON record of a journal, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from picopose_cli.base.json_numbers import finite_number, finite_numbers, whole_number
from picopose_cli.base.tasks import DepthUse, ImageResult, ImageTask, Skip, StageSeconds
from picopose_cli.base.types import PoseEstimate

_POSE_NUMBERS = 16


def image_record(result: ImageResult) -> dict[str, Any]:
    """Return the results of an image as JSON values; numbers read back exactly."""
    depth = {} if result.depth is None else {"depth": asdict(result.depth)}
    return depth | {
        "scene_id": int(result.task.scene_id),
        "im_id": int(result.task.im_id),
        "time_s": float(result.time_s),
        "estimates": [
            [int(one.obj_id), float(one.score), np.asarray(one.T_cam_from_obj, np.float64).ravel().tolist()]
            for one in result.estimates
        ],
        "skips": [[skip.obj_id, skip.reason] for skip in result.skips],
        "seconds": asdict(result.seconds),
    }


def _depth_use(record: Mapping[str, Any]) -> DepthUse:
    return DepthUse(tuple(record["by_rgb"]), tuple(record["ratios"]), record["problem"])


def image_result(task: ImageTask, record: Mapping[str, Any]) -> ImageResult:
    """Return the results of a valid record."""
    image = (task.scene_id, task.im_id)
    time_s = record["time_s"]
    return ImageResult(
        task,
        tuple(
            PoseEstimate(*image, obj_id, score, np.array(T, np.float64).reshape(4, 4), time_s)
            for obj_id, score, T in record["estimates"]
        ),
        tuple(Skip(*image, obj_id, reason) for obj_id, reason in record["skips"]),
        StageSeconds(**record["seconds"]),
        time_s,
        _depth_use(record["depth"]) if "depth" in record else None,
    )


def is_valid_record(record: Mapping[str, Any]) -> bool:
    """Return whether a record has the form of `image_record`, whatever program wrote it."""
    estimates, skips, seconds = record.get("estimates"), record.get("skips"), record.get("seconds")
    names = {one.name for one in fields(StageSeconds)}
    return (
        all(_is_id(record.get(name)) for name in ("scene_id", "im_id"))
        and _is_time(record.get("time_s"))
        and isinstance(estimates, list)
        and all(_is_estimate(one) for one in estimates)
        and isinstance(skips, list)
        and all(_is_skip(one) for one in skips)
        and isinstance(seconds, dict)
        and set(seconds) == names
        and all(_is_time(value) for value in seconds.values())
        and ("depth" not in record or _is_depth(record["depth"], len(estimates)))
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and whole_number(value) is not None


def _is_time(value: Any) -> bool:
    number = finite_number(value)
    return number is not None and number >= 0


def _is_estimate(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    obj_id, score, T = value
    return _is_id(obj_id) and finite_number(score) is not None and finite_numbers(T, _POSE_NUMBERS) is not None


def _is_depth(value: Any, estimates: int) -> bool:
    if not isinstance(value, dict) or set(value) != {one.name for one in fields(DepthUse)}:
        return False
    by_rgb, ratios, problem = value["by_rgb"], value["ratios"], value["problem"]
    if not isinstance(by_rgb, list) or not isinstance(ratios, list) or not all(map(_is_time, ratios)):
        return False
    counted = len(by_rgb) == (estimates if problem is None else 0)
    return counted and all(text is None or isinstance(text, str) for text in [*by_rgb, problem])


def _is_skip(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return (value[0] is None or _is_id(value[0])) and isinstance(value[1], str)
