from __future__ import annotations

import numpy as np

from picopose_cli.pictures.contact_sheets import SHEET_CELL_PX, contact_sheet


def test_a_contact_sheet_of_few_views():
    crops = np.full((20, 224, 224, 3), 99, np.uint8)
    assert contact_sheet(crops).shape == (2 * SHEET_CELL_PX, 18 * SHEET_CELL_PX, 3)
    assert contact_sheet(crops[:3]).shape == (SHEET_CELL_PX, 3 * SHEET_CELL_PX, 3)
