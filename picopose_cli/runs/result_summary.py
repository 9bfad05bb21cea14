"""What a report says of a result file in numbers: its scores, its run, and what was skipped."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.guide_options import ReportOptions
from picopose_cli.base.json_numbers import finite_number
from picopose_cli.base.options import ScoreOptions
from picopose_cli.bop.json_files import read_json_object
from picopose_cli.bop.result_names import parse_result_name
from picopose_cli.runs.report import InferReport, read_report, report_path, skip_text
from picopose_cli.runs.scores import score_file
from picopose_cli.scoring.detection import DetectionScores
from picopose_cli.scoring.tables import Scores
from picopose_cli.scoring.thresholds import (
    MSPD_THRESHOLDS_PX,
    MSSD_THRESHOLDS,
    MSSD_THRESHOLDS_MM,
    VSD_THRESHOLDS,
)

_METRICS = {
    "bop19_average_recall": "AR",
    "bop19_average_recall_vsd": "AR VSD",
    "bop19_average_recall_mssd": "AR MSSD",
    "bop19_average_recall_mspd": "AR MSPD",
    "bop24_mAP": "mAP",
    "bop24_mAP_mssd": "mAP MSSD",
    "bop24_mAP_mspd": "mAP MSPD",
}
_CURVES = {
    "vsd": ("VSD, share of the pixels", VSD_THRESHOLDS),
    "mssd": ("MSSD, share of the diameter", MSSD_THRESHOLDS),
    "mspd": ("MSPD, px of an image 640 px wide", MSPD_THRESHOLDS_PX),
    "mssd_mm": ("MSSD, mm", MSSD_THRESHOLDS_MM),
}


@dataclass
class ResultSummary:
    """The numbers of one result file, as JSON values that `pictures/report.html` shows."""

    name: str
    metrics: dict[str, float] = field(default_factory=dict)
    mean_time_s: float | None = None
    curves: list[dict[str, Any]] = field(default_factory=list)
    object_heads: list[str] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    stages: dict[str, float] | None = None
    total_s: float = 0.0
    device: str = ""
    memory_mb: float = 0.0
    skipped: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def summarise(path: Path, options: ReportOptions) -> ResultSummary:
    """Return the scores of a result file and what the report of its run says, as far as there are any."""
    summary, run = ResultSummary(path.stem), read_run(path)
    if run is None:
        summary.notes.append("there is no report of picopose infer beside it: times and skipped images are not known")
    else:
        _add_run(summary, run)
    try:
        scored = score_file(path, score_options(path, options, task_of(path, options)))
    except PicoPoseError as error:
        summary.notes.append(f"not scored: {error}")
        return summary
    _add_scores(summary, scored.scores)
    summary.notes += scored.notes
    return summary


def task_of(path: Path, options: ReportOptions) -> str:
    """Return the targets of a result file: those of the options, else the kind of its run's, else `bop19`."""
    run = read_run(path)
    kind = run.identity.get("targets") if run is not None else None
    return options.targets or (kind if kind in ("bop19", "bop24") else "bop19")


def read_run(path: Path) -> InferReport | None:
    """Return the report of the run that wrote a result file, None without one of this version."""
    try:
        return read_report(path)
    except PicoPoseError:
        return None


def score_options(path: Path, options: ReportOptions, targets: str) -> ScoreOptions:
    """Return how a result file of a report is scored."""
    dataset, data_dir, split = place_of(path, options)
    return ScoreOptions(
        (path,), data_dir, dataset, split, targets=targets, mesh_unit=options.mesh_unit, workers=options.workers
    )


def place_of(path: Path, options: ReportOptions) -> tuple[str | None, Path | None, str | None]:
    """Return data set, data folder and split of a result file: those of the options, else those of its run and name."""
    split = options.split or _split_of_name(path)
    given = (options.dataset, options.data_dir, split)
    if options.dataset is not None or options.data_dir is not None or not report_path(path).is_file():
        return given
    try:
        used = read_json_object(report_path(path)).get("options")
    except PicoPoseError:
        return given
    if not isinstance(used, dict) or not isinstance(used.get("dataset"), str):
        return given
    folder = Path(used["data_dir"]) if isinstance(used.get("data_dir"), str) else None
    is_here = (folder / used["dataset"] if folder else Path(used["dataset"])).is_dir()
    return (used["dataset"], folder, split) if is_here else given  # it may have been made elsewhere


def _split_of_name(path: Path) -> str | None:
    try:
        return parse_result_name(path).split_folder
    except PicoPoseError:
        return None


def _add_run(summary: ResultSummary, run: InferReport) -> None:
    stages = asdict(run.stages_s)
    summary.stages = {"templates": run.onboarding_s} | {name.replace("pnp", "PnP"): s for name, s in stages.items()}
    summary.total_s, summary.device, summary.memory_mb = run.total_s, run.device, run.peak_memory_mb
    summary.skipped = [skip_text(skip) for skip in run.skipped]
    summary.problems, summary.warnings, summary.findings = run.problems, run.warnings, run.findings
    summary.notes += [
        f"input: {run.modality}",
        f"detections: {run.detections}",
        f"targets: {run.targets}",
        f"weights: {run.weights}",
    ]


def _add_scores(summary: ResultSummary, scores: Scores) -> None:
    values = {key: finite_number(value) for key, value in scores.summary().items()}
    summary.metrics = {name: value for key, name in _METRICS.items() if (value := values.get(key)) is not None}
    summary.mean_time_s = scores.mean_time_s
    for error, (title, thresholds) in _CURVES.items():
        if error in scores.errors:
            summary.curves.append(
                {"title": title, "thresholds": thresholds.tolist(), "values": scores.curve(error).tolist()}
            )
    word = "AP" if isinstance(scores, DetectionScores) else "AR"
    summary.object_heads = [f"{word} {error.upper().replace('_MM', ' [mm]')}" for error in scores.errors]
    for obj_id, one in scores.objects.items():
        means = [scores.object_mean(obj_id, error) for error in scores.errors]
        counts = {"targets": one.targets, "estimates": one.estimates, "matches": one.matches}
        summary.objects.append({"id": obj_id, **counts, "values": means})
