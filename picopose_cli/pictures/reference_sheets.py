"""A picture that compares photographs with renders of a reconstruction, pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.bop.images import write_png

PAIR_COLUMNS, CELL_PX = 4, 200
MOST_PAIRS = 24


def write_reference_sheet(path: Path, pairs: Sequence[tuple[str, Array, Array]]) -> None:
    """Write pairs of a name, a photograph (h,w,3) u8 and a render of that size side by side, at most 24, evenly spread.

    Raises PicoPoseError when the picture cannot be written.
    """
    write_png(path, reference_sheet(pairs))


def reference_sheet(pairs: Sequence[tuple[str, Array, Array]]) -> Array:
    """Return one picture (h,w,3) u8 of pairs, as `write_reference_sheet` writes it."""
    chosen = np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_PAIRS)).round().astype(int)
    columns = min(PAIR_COLUMNS, len(chosen))
    sheet = np.zeros((-(-len(chosen) // columns), CELL_PX, columns, 2, CELL_PX, 3), np.uint8)
    for cell, index in enumerate(chosen):
        name, photo, render = pairs[index]
        for side, image in enumerate((photo, render)):
            sheet[cell // columns, :, cell % columns, side] = _fitted(image)
        first = np.ascontiguousarray(sheet[cell // columns, :, cell % columns, 0])
        cv2.putText(first, name[-28:], (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 255), 1, cv2.LINE_AA)
        sheet[cell // columns, :, cell % columns, 0] = first
    return sheet.reshape(sheet.shape[0] * CELL_PX, -1, 3)


def _fitted(image: Array) -> Array:
    """Return an image scaled to fit into a cell, on black."""
    height, width = image.shape[:2]
    scale = CELL_PX / max(height, width)
    size_wh = (max(round(width * scale), 1), max(round(height * scale), 1))
    scaled = np.asarray(cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA))
    cell = np.zeros((CELL_PX, CELL_PX, 3), np.uint8)
    y, x = (CELL_PX - size_wh[1]) // 2, (CELL_PX - size_wh[0]) // 2
    cell[y : y + size_wh[1], x : x + size_wh[0]] = scaled
    return cell
