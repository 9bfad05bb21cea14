"""The poses of one image as JSON, in units that people use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.types import MM_PER_M, Array
from picopose_cli.pose.estimator import DetectionPose
from picopose_cli.runs.image_inputs import WantedObject


@dataclass
class EstimateReport:
    """What `picopose estimate` did; `failed` has a reason for each image without poses."""

    written: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 when an image could not be used."""
        return 1 if self.failed else 0


def write_poses(
    path: Path, image: Path, K: Array, objects: Sequence[WantedObject], poses: Sequence[DetectionPose], modality: str
) -> None:
    """Write the poses of an image's objects, which are in the same order; `K` (3,3) px; `modality`: RGB or RGB-D."""
    entries = [pose_entry(one, pose, modality) for one, pose in zip(objects, poses, strict=True)]
    content = {"image": str(image), "cam_K": K.ravel().tolist(), "poses": entries}
    atomic_write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def pose_entry(one: WantedObject, pose: DetectionPose, modality: str) -> dict[str, Any]:
    """Return a pose as JSON values: T_cam_from_obj with its translation in mm, and the rotation as a quaternion.

    `modality` of the image; a pose of RGB-D that depth was not used for is one of RGB.
    """
    T_mm = pose.T_cam_from_obj.copy()
    T_mm[:3, 3] *= MM_PER_M
    x, y, z, w = Rotation.from_matrix(T_mm[:3, :3]).as_quat(canonical=True).tolist()
    return {
        "object": one.name,
        "mesh": str(one.mesh),
        "confidence": pose.confidence,
        "modality": modality if pose.by_rgb is None else f"RGB: {pose.by_rgb}",
        "translation_mm": T_mm[:3, 3].tolist(),
        "quaternion_wxyz": [w, x, y, z],
        "T_cam_from_obj": T_mm.tolist(),
        "units": "mm; x_cam = T_cam_from_obj x_obj, camera axes x right, y down, z forward",
    }


def pose_text(one: WantedObject, pose: DetectionPose) -> str:
    """Return a pose as a line for the console."""
    x, y, z = np.round(pose.T_cam_from_obj[:3, 3] * MM_PER_M, 1).tolist()
    by_rgb = "" if pose.by_rgb is None else f" (by RGB alone: {pose.by_rgb})"
    return f"{one.name}: {x:g} {y:g} {z:g} mm, confidence {pose.confidence:.2f}{by_rgb}"
