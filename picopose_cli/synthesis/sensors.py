"""Sensors of generated data sets: those of BOP's table, pinholes and the fisheyes of HOT3D's devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from picopose_cli.base.cameras import CameraModel, parse_camera
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Array
from picopose_cli.bop.known_datasets import KnownSplit, known_image_size_hw
from picopose_cli.synthesis.scenes import random_camera

FISHEYE = "CameraModelType.FISHEYE624"
ARIA_RGB = (
    609.3602294921875,
    *(706.2735595703125, 704.17626953125),
    *(0.38424140214920044, -0.3806401193141937, -0.12207936495542526),
    *(1.555517315864563, -1.9891928434371948, 0.7251640558242798),
    *(-0.0009960847673937678, 0.00020426079572644085),
    *(0.0022028556559234858, -0.0004090230504516512, -0.001457472681067884, 0.0002504018775653094),
)
"""Calibration of the colour camera (1408x1408 px) of an Aria device."""
QUEST3_GRAY1 = (
    *(504.5934753417969, 504.5934753417969),
    *(638.3945922851562, 509.4228515625),
    *(0.043982941657304764, -0.0448598638176918, 0.01613209955394268),
    *(-0.010928832925856113, 0.003512823488563299, -0.0005242147017270327),
    *(0.00047754947445355356, -4.744782927446067e-05),
    *(0.0, 0.0, 0.0, 0.0),
)
"""Calibration of the first grey camera (1280x1024 px) of a Quest 3 device."""
_FISHEYES = {"_rgb": ARIA_RGB, "_gray1": QUEST3_GRAY1}
_OTHER_SENSORS = {"ipd": ("rgb_cam1", ".png"), "xyzibd": ("rgb_realsense", ".png"), "itoddmv": ("gray_cam0", ".tif")}
"""Image folder and extension of a sensor that BOP does not score, by data set."""
_BASELINE_M, _ROTATION_RAD = 0.05, 0.06
"""Where the sensor that is not scored is, seen from the scored one."""


@dataclass(frozen=True)
class Sensor:
    """A sensor of a scene: names of its files, its camera and the camera's `entry` in scene_camera.json.

    `T_sensor_from_scored` (4,4) metres is the identity for a sensor that BOP scores.
    """

    image_folder: str
    image_ext: str
    suffix: str
    size_hw: tuple[int, int]
    camera: CameraModel
    entry: dict[str, Any]
    T_sensor_from_scored: Array

    @property
    def is_scored(self) -> bool:
        """Whether BOP scores poses of this sensor."""
        return bool((self.T_sensor_from_scored == np.eye(4)).all())


def sensors_of_split(row: KnownSplit, rng: np.random.Generator, size_share: float) -> list[Sensor]:
    """Return the scored sensor of a split, and another one where its data set has several.

    `size_share` scales the images of pinholes; fisheyes keep the size of their calibration.
    """
    if row.name == "hot3d":
        return [_fisheye(row)]
    sensors = [_pinhole(rng, row.image_folder, row.image_ext, row.suffix, row.image_size_hw, size_share, np.eye(4))]
    if row.name in _OTHER_SENSORS:
        folder, ext = _OTHER_SENSORS[row.name]
        suffix = f"_{folder.partition('_')[2]}"
        size_hw = known_image_size_hw(row.name, row.split, suffix) or row.image_size_hw
        cos, sin = np.cos(_ROTATION_RAD), np.sin(_ROTATION_RAD)
        R = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        T = make_T(R, np.array([-_BASELINE_M, 0, 0]))
        sensors.append(_pinhole(rng, folder, ext, suffix, size_hw, size_share, T))
    return sensors


def cam_model(numbers: tuple[float, ...], size_hw: tuple[int, int], kind: str = FISHEYE) -> dict[str, Any]:
    """Return a `cam_model` of scene_camera.json."""
    return {
        "image_width": size_hw[1],
        "image_height": size_hw[0],
        "label": "camera",
        "projection_model_type": kind,
        "projection_params": list(numbers),
    }


def _fisheye(row: KnownSplit) -> Sensor:
    entry = {
        "cam_model": cam_model(_FISHEYES[row.suffix], row.image_size_hw),
        "device": "Aria" if row.suffix == "_rgb" else "Quest3",
        "image_timestamps_ns": 0,
        "cam_R_w2c": np.eye(3).ravel().tolist(),
        "cam_t_w2c": [0.0, 0.0, 0.0],
    }
    return make_sensor(row.image_folder, row.image_ext, row.suffix, row.image_size_hw, entry, np.eye(4))


def _pinhole(
    rng: np.random.Generator,
    folder: str,
    ext: str,
    suffix: str,
    full_size_hw: tuple[int, int],
    size_share: float,
    T_sensor_from_scored: Array,
) -> Sensor:
    height, width = (round(side * size_share) for side in full_size_hw)
    entry = {"cam_K": random_camera(rng, width, height).ravel().tolist(), "depth_scale": 1.0}
    return make_sensor(folder, ext, suffix, (height, width), entry, T_sensor_from_scored)


def make_sensor(
    folder: str, ext: str, suffix: str, size_hw: tuple[int, int], entry: dict[str, Any], T_sensor_from_scored: Array
) -> Sensor:
    """Return a sensor whose camera is that of its `entry` in scene_camera.json."""
    camera = parse_camera(entry).model
    assert camera is not None
    return Sensor(folder, ext, suffix, size_hw, camera, entry, T_sensor_from_scored)
