"""Poses on a line one metre before the camera, as estimates and as annotated instances."""

from __future__ import annotations

import numpy as np

from picopose_cli.base.types import GroundTruth
from picopose_cli.scoring.selection import Estimates


def pose_at(x_m: float) -> np.ndarray:
    """Return T_cam_from_obj of an unrotated object at (x, 0, 1) m."""
    T = np.eye(4)
    T[:3, 3] = [x_m, 0, 1]
    return T


def estimates(rows) -> Estimates:
    """Return estimates from `rows` of (scene_id, im_id, obj_id, score, x_m)."""
    scene, image, obj, score, x = (np.array(column) for column in zip(*rows, strict=True))
    return Estimates(scene, image, obj, score.astype(float), np.stack([pose_at(value) for value in x]))


def instance(im_id, gt_id, obj_id, visib_fract, x_m=0.0) -> GroundTruth:
    """Return an annotated instance of an image of scene 1."""
    return GroundTruth(1, im_id, gt_id, obj_id, pose_at(x_m), visib_fract)
