"""What a figure of scores shows: recall or precision over the thresholds, and the mean of each object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from picopose_cli.pictures.plots import Bars, Panel, draw_scores
from picopose_cli.scoring.tables import Scores
from picopose_cli.scoring.thresholds import (
    MSPD_THRESHOLDS_PX,
    MSSD_THRESHOLDS,
    MSSD_THRESHOLDS_MM,
    VSD_THRESHOLDS,
)

_AXES = {
    "vsd": ("VSD", "share of the pixels", VSD_THRESHOLDS),
    "mssd": ("MSSD", "share of the diameter", MSSD_THRESHOLDS),
    "mspd": ("MSPD", "px of an image 640 px wide", MSPD_THRESHOLDS_PX),
    "mssd_mm": ("MSSD in mm", "mm", MSSD_THRESHOLDS_MM),
}
"""Title, unit and thresholds (T,) of each error."""


def plot_scores(path: Path, scores: Mapping[str, Scores]) -> None:
    """Write a PNG with a panel for each error, a curve for each file, and bars for each object.

    Raises PicoPoseError when the file cannot be written.
    """
    panels = []
    for error, (title, unit, thresholds) in _AXES.items():
        lines = {name: one.curve(error) for name, one in scores.items() if error in one.errors}
        mean = f" (mean {next(iter(lines.values())).mean():.3f})" if len(lines) == len(scores) == 1 else ""
        if lines:
            panels.append(Panel(f"{title}{mean}", f"threshold [{unit}]", thresholds, lines))
    value = next(iter(scores.values())).value
    heading = f"{value} over the threshold of correctness" + (f": {next(iter(scores))}" if len(scores) == 1 else "")
    draw_scores(path, heading, value, panels, _object_bars(scores))


def _object_bars(scores: Mapping[str, Scores]) -> Bars:
    """Return bars for each object: one per error for one file, one per file (mean of the errors) for several."""
    obj_ids = sorted({obj_id for one in scores.values() for obj_id in one.objects})
    groups = [str(obj_id) for obj_id in obj_ids]
    if len(scores) == 1:
        ((_, only),) = scores.items()
        series = {_AXES[error][0]: [only.object_mean(obj_id, error) for obj_id in obj_ids] for error in only.errors}
        return Bars(f"mean {only.value} of each object", groups, series)
    common = [error for error in ("vsd", "mssd", "mspd") if all(error in one.errors for one in scores.values())]
    means = {name: [_mean(one, obj_id, common) for obj_id in obj_ids] for name, one in scores.items()}
    return Bars(f"mean of {', '.join(_AXES[error][0] for error in common)}, by object", groups, means)


def _mean(scores: Scores, obj_id: int, errors: Sequence[str]) -> float | None:
    values = [value for error in errors if (value := scores.object_mean(obj_id, error)) is not None]
    return float(np.mean(values)) if values else None
