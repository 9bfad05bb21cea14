"""BOP's localisation task: the ablations, the effect of the objects' symmetries, and real photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from accuracy.bench import Bench, Settings
from accuracy.data import real_bench
from accuracy.summary import bootstrap_interval, describe_scores, object_recalls
from accuracy.variants import (
    ABLATIONS,
    DEFAULT,
    FEWER_HYPOTHESES,
    INFERRED,
    ORACLE,
    PAPER,
    REAL,
    UNAWARE,
    InferLine,
    Variant,
)
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.scoring.localisation import LocalisationScores

PROCEDURAL_MASKS = ("gt", "rough")
"""Kinds of detections of the procedural data set with one right detection of each target."""


def measure_ablations(bench: Bench, console: Console) -> list[dict[str, Any]]:
    """Return a row for each variant and kind of mask."""
    rows = []
    for masks in PROCEDURAL_MASKS:
        variants = [variant for variant in ABLATIONS if is_measured(variant, masks)]
        bench.make_missing(variants, masks, console)
        paper = bench.score(PAPER, masks)
        rows += [compare(bench, variant, masks, None if variant is ORACLE else paper) for variant in variants]
    return rows


def is_measured(variant: Variant, masks: str) -> bool:
    """Return whether a variant is measured with a kind of mask."""
    if variant.flows == "truth":
        return masks == "gt"
    return masks == "rough" or variant not in FEWER_HYPOTHESES


def measure_symmetric(bench: Bench, console: Console) -> list[dict[str, Any]]:
    """Return rows without and with knowledge of the objects' symmetries, rough masks."""
    variants = (*UNAWARE, DEFAULT, INFERRED)
    bench.make_missing(variants, "rough", console)
    unaware = [bench.score(variant, "rough") for variant in UNAWARE]
    rows = [compare(bench, variant, "rough", unaware[variant.rounds > 0]) for variant in variants]
    for row, variant in zip(rows, variants, strict=True):
        row["line"] = f"--refine {variant.rounds}, symmetries {'not ' if variant in UNAWARE else ''}used"
    return rows


def measure_real(folder: Path, settings: Settings, console: Console) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return a row for each data set of a folder and variant, and why the other data sets were left out."""
    rows, skipped = [], {}
    for name in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        try:
            bench = real_bench(name, folder, settings)
            bench.make_missing(REAL, "detections", console)
            for variant in REAL:
                scores, path = bench.score(variant, "detections"), bench.path(variant, "detections")
                rows.append({"data": name, "line": variant.title, **describe_scores(scores, path)})
        except PicoPoseError as error:
            skipped[name] = error.what.replace(f"{folder}/", "")
            console.print(f"{name} is skipped: {skipped[name]}")
    return rows, skipped


def compare(bench: Bench, variant: Variant | InferLine, masks: str, other: LocalisationScores | None) -> dict[str, Any]:
    """Return a variant's numbers, with the intervals of its AR and of its gain above another variant's scores."""
    scores = bench.score(variant, masks)
    recalls, targets = object_recalls(scores.objects)
    row = {"line": variant.title, "masks": masks, **describe_scores(scores, bench.path(variant, masks))}
    row |= {
        "AR_95": bootstrap_interval(recalls, targets),
        "object_AR": recalls.tolist(),
        "object_targets": targets.tolist(),
    }
    if other is not None:
        gains = recalls - object_recalls(other.objects)[0]
        row["AR_above"] = float(np.average(gains, weights=targets))
        row["AR_above_95"] = bootstrap_interval(gains, targets)
        row["worst_object_above"] = float(gains.min())
    return row
