"""Thresholds of the BOP challenge's scores."""

from __future__ import annotations

import numpy as np

VSD_TAUS = np.arange(0.05, 0.51, 0.05)
"""Misalignment tolerances of VSD, as shares of the diameter."""
VSD_THRESHOLDS = np.arange(0.05, 0.51, 0.05)
"""An estimate is correct at a threshold when its VSD is below."""
MSSD_THRESHOLDS = np.arange(0.05, 0.51, 0.05)
"""Shares of the object's diameter."""
MSPD_THRESHOLDS_PX = np.arange(5.0, 51.0, 5.0)
"""Pixels of an image MSPD_WIDTH_PX wide."""
MSPD_WIDTH_PX = 640
MSSD_THRESHOLDS_MM = np.arange(2.0, 21.0, 2.0)
"""Absolute thresholds of the 2025 industrial variant of the detection task."""
ADD_THRESHOLD = 0.1
"""Share of the object's diameter below which ADD and ADD-S an estimate is correct (customary, not part of BOP)."""
ADD_AREA_LIMIT_M = 0.1
"""Upper limit of the error in the area under the recall curve of ADD and ADD-S."""
