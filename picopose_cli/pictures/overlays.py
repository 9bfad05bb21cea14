"""Pictures to look at: contact sheets of template banks, and poses drawn on their image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from picopose_cli.base.types import Array

SHEET_COLUMNS = 18
SHEET_CELL_PX = 96
_LABEL_RGB = (255, 255, 255)

OUTLINE_FINENESS = 4
"""Pixels of a silhouette along a pixel of its image, so that outlines come out smooth."""
RIGHT_RGB, WRONG_RGB = (60, 255, 60), (255, 50, 50)
_OUTLINE_PX = 2
_LEGEND_PX = 24
_LEGEND_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.4)


def contact_sheet(crops_rgb: Array) -> Array:
    """Return one picture (h,w,3) u8 RGB of all template crops (V,h,w,3) u8, in order, each with its view's number."""
    rows = -(-len(crops_rgb) // SHEET_COLUMNS)
    sheet = np.zeros((rows, SHEET_CELL_PX, min(SHEET_COLUMNS, len(crops_rgb)), SHEET_CELL_PX, 3), np.uint8)
    for view_id, crop in enumerate(crops_rgb):
        cell = cv2.resize(crop, (SHEET_CELL_PX, SHEET_CELL_PX), interpolation=cv2.INTER_AREA)
        cv2.putText(cell, str(view_id), (2, 10), cv2.FONT_HERSHEY_SIMPLEX, 0.33, _LABEL_RGB, 1, cv2.LINE_AA)
        sheet[view_id // SHEET_COLUMNS, :, view_id % SHEET_COLUMNS] = cell
    return sheet.reshape(rows * SHEET_CELL_PX, -1, 3)


def pose_overlay(
    image_rgb: Array, silhouettes: Sequence[Array], right: Sequence[bool], legend: tuple[str, str]
) -> Array:
    """Return an image (H,W,3) u8 RGB with each estimate's outline and, in 24 rows below it, what the colours mean.

    `silhouettes` (f*H,f*W) bool are as seen by the image's camera with f = OUTLINE_FINENESS pixels along each pixel.
    The `right` ones are drawn in RIGHT_RGB, the others in WRONG_RGB; `legend` says what right and wrong are.
    """
    picture = image_rgb.astype(np.float32)
    for silhouette, is_right in zip(silhouettes, right, strict=True):
        cover = _outline(silhouette)[..., None]
        picture += cover * (np.array(RIGHT_RGB if is_right else WRONG_RGB, np.float32) - picture)
    return np.concatenate([np.rint(picture).astype(np.uint8), _legend_strip(legend, image_rgb.shape[1])])


def _outline(silhouette: Array) -> Array:
    """Return how much of each pixel of the image (H,W) f32 in [0, 1] the line along a silhouette's edge covers."""
    side = _OUTLINE_PX * OUTLINE_FINENESS + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    line = cv2.morphologyEx(silhouette.astype(np.float32), cv2.MORPH_GRADIENT, disc)
    size_wh = silhouette.shape[1] // OUTLINE_FINENESS, silhouette.shape[0] // OUTLINE_FINENESS
    return cv2.resize(line, size_wh, interpolation=cv2.INTER_AREA)


def _legend_strip(legend: tuple[str, str], width: int) -> Array:
    strip = np.zeros((_LEGEND_PX, width, 3), np.uint8)
    x, middle = 8, _LEGEND_PX // 2
    for text, colour in zip(legend, (RIGHT_RGB, WRONG_RGB), strict=True):
        strip[middle - 1 : middle - 1 + _OUTLINE_PX, x : x + 20] = colour
        cv2.putText(strip, text, (x + 28, middle + 4), *_LEGEND_FONT, _LABEL_RGB, 1, cv2.LINE_AA)
        x += 28 + cv2.getTextSize(text, *_LEGEND_FONT, 1)[0][0] + 24
    return strip


def encode_png(image_rgb: Array) -> bytes:
    """Return the PNG file of an image (h,w,3) u8 RGB."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(image_rgb[..., ::-1]))
    if not done:
        raise RuntimeError("the picture could not be encoded")
    return bytes(data)
