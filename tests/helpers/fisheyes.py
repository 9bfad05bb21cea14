"""Calibrations of HOT3D's devices as entries of scene_camera.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from picopose_cli.synthesis import sensors

ARIA_RGB, QUEST3_GRAY1 = list(sensors.ARIA_RGB), list(sensors.QUEST3_GRAY1)
"""15 numbers of an image of 1408x1408 px, 16 of one of 1280x1024."""


def cam_model(
    numbers: Sequence[Any], kind: str = sensors.FISHEYE, size_wh: tuple[int, int] = (1408, 1408)
) -> dict[str, Any]:
    return sensors.cam_model(tuple(numbers), size_wh[::-1], kind)
