"""Calibrations of HOT3D's devices, an Aria and a Quest 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FISHEYE = "CameraModelType.FISHEYE624"
ARIA_RGB = [
    609.3602294921875,
    706.2735595703125,
    704.17626953125,
    *(0.38424140214920044, -0.3806401193141937, -0.12207936495542526),
    *(1.555517315864563, -1.9891928434371948, 0.7251640558242798),
    *(-0.0009960847673937678, 0.00020426079572644085),
    *(0.0022028556559234858, -0.0004090230504516512, -0.001457472681067884, 0.0002504018775653094),
]
"""15 numbers, of an image of 1408x1408 px."""
QUEST3_GRAY1 = [
    504.5934753417969,
    504.5934753417969,
    638.3945922851562,
    509.4228515625,
    *(0.043982941657304764, -0.0448598638176918, 0.01613209955394268),
    *(-0.010928832925856113, 0.003512823488563299, -0.0005242147017270327),
    *(0.00047754947445355356, -4.744782927446067e-05),
    *(0.0, 0.0, 0.0, 0.0),
]
"""16 numbers, of an image of 1280x1024 px."""


def cam_model(numbers: Sequence[Any], kind: str = FISHEYE, size_wh: tuple[int, int] = (1408, 1408)) -> dict[str, Any]:
    """Return a `cam_model` of scene_camera.json."""
    return {
        "image_width": size_wh[0],
        "image_height": size_wh[1],
        "label": "camera-rgb",
        "projection_model_type": kind,
        "projection_params": list(numbers),
    }
