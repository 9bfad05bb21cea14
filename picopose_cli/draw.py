"""Pictures to look at: contact sheets of template banks."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SHEET_COLUMNS = 18
SHEET_CELL_PX = 96
_LABEL_RGB = (255, 255, 255)


def contact_sheet(crops_rgb: Array) -> Array:
    """Return one picture (h,w,3) u8 RGB of all template crops (V,h,w,3) u8, in order, each with its view's number."""
    rows = -(-len(crops_rgb) // SHEET_COLUMNS)
    sheet = np.zeros((rows, SHEET_CELL_PX, min(SHEET_COLUMNS, len(crops_rgb)), SHEET_CELL_PX, 3), np.uint8)
    for view_id, crop in enumerate(crops_rgb):
        cell = cv2.resize(crop, (SHEET_CELL_PX, SHEET_CELL_PX), interpolation=cv2.INTER_AREA)
        cv2.putText(cell, str(view_id), (2, 10), cv2.FONT_HERSHEY_SIMPLEX, 0.33, _LABEL_RGB, 1, cv2.LINE_AA)
        sheet[view_id // SHEET_COLUMNS, :, view_id % SHEET_COLUMNS] = cell
    return sheet.reshape(rows * SHEET_CELL_PX, -1, 3)


def encode_png(image_rgb: Array) -> bytes:
    """Return the PNG file of an image (h,w,3) u8 RGB."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(image_rgb[..., ::-1]))
    if not done:
        raise RuntimeError("the picture could not be encoded")
    return bytes(data)
