"""BOP's detection task (mAP), from detections of which many are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console

from accuracy.bench import NOISY, Bench
from accuracy.summary import bootstrap_interval, object_precisions
from accuracy.variants import DETECTION
from picopose_cli.bop.results import read_results


def measure_detection(bench: Bench, console: Console) -> list[dict[str, Any]]:
    """Return a row for each kind of score; those after the detector's score are compared with it."""
    bench.make_missing(DETECTION, NOISY, console)
    rows, detector = [], None
    for variant in DETECTION:
        scores = bench.score_detection(variant)
        summary, precisions = scores.summary(), object_precisions(scores)
        weights = np.ones(len(precisions))
        row = {
            "line": variant.title,
            **{name: summary[f"bop24_{name}"] for name in ("mAP", "mAP_mssd", "mAP_mspd")},
            "estimates": len(read_results(bench.path(variant, NOISY)).score),
            "objects": len(precisions),
            "mAP_95": bootstrap_interval(precisions, weights),
        }
        detector = precisions if variant.detector_score else detector
        if detector is not None:
            gains = precisions - detector
            row |= {"above": float(gains.mean()), "above_95": bootstrap_interval(gains, weights)}
        rows.append(row)
    return rows
