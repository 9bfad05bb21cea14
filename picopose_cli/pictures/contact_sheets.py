"""Contact sheets of template banks: all views of an object in one picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.bop.images import write_png

SHEET_COLUMNS = 18
SHEET_CELL_PX = 96
_LABEL_RGB = (255, 255, 255)


def write_contact_sheet(path: Path, crops_rgb: Array) -> None:
    """Write the contact sheet of template crops (V,h,w,3) u8; raises PicoPoseError when it cannot be written."""
    write_png(path, contact_sheet(crops_rgb))


def contact_sheet(crops_rgb: Array) -> Array:
    """Return one picture (h,w,3) u8 RGB of all template crops (V,h,w,3) u8, in order, each with its view's number."""
    rows = -(-len(crops_rgb) // SHEET_COLUMNS)
    sheet = np.zeros((rows, SHEET_CELL_PX, min(SHEET_COLUMNS, len(crops_rgb)), SHEET_CELL_PX, 3), np.uint8)
    for view_id, crop in enumerate(crops_rgb):
        cell = cv2.resize(crop, (SHEET_CELL_PX, SHEET_CELL_PX), interpolation=cv2.INTER_AREA)
        cv2.putText(cell, str(view_id), (2, 10), cv2.FONT_HERSHEY_SIMPLEX, 0.33, _LABEL_RGB, 1, cv2.LINE_AA)
        sheet[view_id // SHEET_COLUMNS, :, view_id % SHEET_COLUMNS] = cell
    return sheet.reshape(rows * SHEET_CELL_PX, -1, 3)
