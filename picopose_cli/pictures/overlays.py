"""Poses drawn on their image: the outline of each object, coloured by whether its pose is correct."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from picopose_cli.base.types import Array, Mesh
from picopose_cli.rendering.software import render_depth

OUTLINE_SCALE = 4
"""Silhouette pixels along one image pixel, for smooth outlines."""
CORRECT_RGB, WRONG_RGB = (60, 255, 60), (255, 50, 50)
_LABEL_RGB = (255, 255, 255)
_OUTLINE_PX = 2
_LEGEND_PX = 24
_LEGEND_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.4)


def pose_overlay(
    image_rgb: Array, silhouettes: Sequence[Array], correct: Sequence[bool], legend: tuple[str, str]
) -> Array:
    """Return an image (H,W,3) u8 RGB with the outline of each silhouette and a legend in 24 rows below it.

    `silhouettes` (s*H,s*W) bool, s = OUTLINE_SCALE. Outlines of `correct` poses are CORRECT_RGB, the others WRONG_RGB;
    `legend` holds the meaning of the two colours.
    """
    picture = image_rgb.astype(np.float32)
    for silhouette, is_correct in zip(silhouettes, correct, strict=True):
        cover = _outline(silhouette)[..., None]
        picture += cover * (np.array(CORRECT_RGB if is_correct else WRONG_RGB, np.float32) - picture)
    return np.concatenate([np.rint(picture).astype(np.uint8), _legend_strip(legend, image_rgb.shape[1])])


def render_silhouette(mesh: Mesh, K: Array, T_cam_from_obj: Array, size_hw: tuple[int, int]) -> Array:
    """Return the silhouette (s*H,s*W) bool of an object in an image of (H,W) px, s = OUTLINE_SCALE."""
    height, width = (OUTLINE_SCALE * side for side in size_hw)
    scaled_K = np.diag([OUTLINE_SCALE, OUTLINE_SCALE, 1.0]) @ K
    return np.asarray(render_depth(mesh, scaled_K, T_cam_from_obj, (0, 0, width, height)) > 0)


def _outline(silhouette: Array) -> Array:
    """Return the part (H,W) f32 in [0, 1] of each image pixel that the line along a silhouette's edge covers."""
    side = _OUTLINE_PX * OUTLINE_SCALE + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    line = cv2.morphologyEx(silhouette.astype(np.float32), cv2.MORPH_GRADIENT, disc)
    size_wh = silhouette.shape[1] // OUTLINE_SCALE, silhouette.shape[0] // OUTLINE_SCALE
    return cv2.resize(line, size_wh, interpolation=cv2.INTER_AREA)


def _legend_strip(legend: tuple[str, str], width: int) -> Array:
    strip = np.zeros((_LEGEND_PX, width, 3), np.uint8)
    x, middle = 8, _LEGEND_PX // 2
    for text, colour in zip(legend, (CORRECT_RGB, WRONG_RGB), strict=True):
        strip[middle - 1 : middle - 1 + _OUTLINE_PX, x : x + 20] = colour
        cv2.putText(strip, text, (x + 28, middle + 4), *_LEGEND_FONT, _LABEL_RGB, 1, cv2.LINE_AA)
        x += 28 + cv2.getTextSize(text, *_LEGEND_FONT, 1)[0][0] + 24
    return strip
