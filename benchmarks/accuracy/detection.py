"""Detections of which many are wrong: BOP's detection task (mAP), and how many are estimated in localisation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from accuracy.bench import NOISY, Bench
from accuracy.localisation import compare
from accuracy.summary import bootstrap_interval, object_precisions
from accuracy.variants import DETECTION, EXTRA_DETECTIONS, InferLine
from picopose_cli.base.types import PoseEstimate
from picopose_cli.bop.results import counted_rows, read_results, write_results
from picopose_cli.bop.targets import read_targets


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


def measure_extra_detections(bench: Bench, console: Console) -> list[dict[str, Any]]:
    """Return a row for each number of extra detections in the localisation task.

    The poses are those of the detection task, of all detections. Targets without a detection of their object have none.
    """
    bench.make_missing(DETECTION, NOISY, console)
    for line in EXTRA_DETECTIONS:
        write_results(bench.path(line, NOISY), estimates_with_extra(bench, line))
    fewest = bench.score(EXTRA_DETECTIONS[0], NOISY)
    rows = [compare(bench, line, NOISY, fewest) for line in EXTRA_DETECTIONS]
    counts = [len(read_results(bench.path(line, NOISY)).row) for line in EXTRA_DETECTIONS]
    return [{**row, "detections": count} for row, count in zip(rows, counts, strict=True)]


def estimates_with_extra(bench: Bench, line: InferLine) -> list[PoseEstimate]:
    """Return the estimates that a line has, each image with the part of its time that they take."""
    by_detector, by_tool = (read_results(bench.path(variant, NOISY)) for variant in DETECTION[1:])
    extra, targets = line.options["extra_detections"], read_targets(bench.dataset)
    wanted = {(one.scene_id, one.im_id, one.obj_id) for one in targets}
    ranked = counted_rows(by_detector, [replace(one, inst_count=one.inst_count + extra) for one in targets])
    estimated = set(ranked.row.tolist())
    keys = list(zip(by_tool.scene_id.tolist(), by_tool.im_id.tolist(), by_tool.obj_id.tolist(), strict=True))
    rows = [index for index, key in enumerate(keys) if key in wanted and int(by_tool.row[index]) in estimated]
    of_image, left = Counter(key[:2] for key in keys), Counter(keys[index][:2] for index in rows)
    return [
        PoseEstimate(
            *keys[index],
            float(by_tool.score[index]),
            by_tool.T_cam_from_obj[index],
            float(by_tool.time_s[index]) * left[keys[index][:2]] / of_image[keys[index][:2]],
        )
        for index in rows
    ]
