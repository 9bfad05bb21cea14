"""Numbers of a result file, with confidence intervals over the objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.bop.results import read_results
from picopose_cli.scoring.detection import DetectionScores
from picopose_cli.scoring.localisation import LocalisationScores, Tally
from picopose_cli.scoring.thresholds import MSSD_THRESHOLDS

NUMBERS = ("AR", "AR_VSD", "AR_MSSD", "AR_MSPD", "share_mssd_below_tenth", "median_s_an_image")
TENTH = int(np.argmin(np.abs(MSSD_THRESHOLDS - 0.1)))
"""Index of the threshold of a tenth of the diameter."""
DRAWS = 4000
CONFIDENCE_PERCENT = (2.5, 97.5)


def describe_scores(scores: LocalisationScores, path: Path) -> dict[str, Any]:
    """Return the numbers of a result file, None where one is unknown."""
    total = scores.total
    return {
        "targets": total.targets,
        "estimates": total.estimates,
        "AR": total.total,
        "AR_VSD": None if total.vsd is None else total.average_recall("vsd"),
        "AR_MSSD": total.average_recall("mssd"),
        "AR_MSPD": total.average_recall("mspd"),
        "share_mssd_below_tenth": float(total.recall("mssd")[TENTH]),
        "median_s_an_image": median_time_s(path),
    }


def median_time_s(path: Path) -> float | None:
    """Return the median over the images of a result file's times, None where one is unknown."""
    table = read_results(path)
    times_s = dict(zip(zip(table.scene_id, table.im_id, strict=True), table.time_s.tolist(), strict=True))
    return None if min(times_s.values()) < 0 else float(np.median(list(times_s.values())))


def mean_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each line of the table the plain mean of each number over the data sets where it is known."""
    means = []
    for title in dict.fromkeys(row["line"] for row in rows):
        of_line = [row for row in rows if row["line"] == title]
        known = {name: [row[name] for row in of_line if row[name] is not None] for name in NUMBERS}
        numbers = {name: float(np.mean(values)) if values else None for name, values in known.items()}
        counts = {name: sum(row[name] for row in of_line) for name in ("targets", "estimates")}
        means.append({"data": f"mean of {len(of_line)}", "line": title, **counts, **numbers})
    return means


def object_recalls(objects: dict[int, Tally]) -> tuple[Array, Array]:
    """Return AR and number of targets (O,) of each object; the weighted mean of the first is the AR of all."""
    tallies = objects.values()
    return np.array([tally.total for tally in tallies], np.float64), np.array([tally.targets for tally in tallies])


def object_precisions(scores: DetectionScores) -> Array:
    """Return the average precision (O,) of each object, whose mean is the mAP."""
    errors = ("mssd", "mspd")
    return np.array([np.mean([scores.object_mean(obj_id, error) for error in errors]) for obj_id in scores.objects])


def bootstrap_interval(values: Array, weights: Array) -> tuple[float, float]:
    """Return the 95 % interval of the weighted mean of `values` (N,), from 4,000 draws of N of them.

    The draws are always the same, so that the interval of a difference is that of paired samples.
    """
    drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    means = (values * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    low, high = np.percentile(means, CONFIDENCE_PERCENT)
    return float(low), float(high)
