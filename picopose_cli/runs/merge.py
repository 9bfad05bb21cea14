"""Merging the shards of one run into one result file and report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_path, file_sha256, remove_leftovers
from picopose_cli.base.tasks import StageSeconds
from picopose_cli.runs.identity import differences, shard_of
from picopose_cli.runs.journal import JournalFollower, is_being_written, journal_path
from picopose_cli.runs.report import InferReport, no_estimate_error, read_report, report_path, write_report

_SHARD_FIGURES = (
    "output", "device", "machine", "images", "kept_images", "estimates", "onboarding_s", "estimating_s", "total_s",
    "images_per_second", "peak_memory_mb",
)  # fmt: skip
_DIFFERENCES_SHOWN = 4


def merge_shards(output: Path, shards: Sequence[Path]) -> InferReport:
    """Write the result file and report of a whole run from those of its shards, in any order; return the report.

    The rows are those of an unsharded run except for the measured time. Raises PicoPoseError when a shard is missing,
    given twice, incomplete or of another run, and when there are no estimates.
    """
    for path in (output, report_path(output)):
        remove_leftovers(path)
    reports = {path: read_report(path) for path in shards}
    ordered = _in_order(reports)
    _require_one_run(ordered, reports)
    for path in ordered:
        _require_complete(path, reports[path])
    merged = _merged(output, [reports[path] for path in ordered])
    if not merged.estimates:
        write_report(output, merged)
        raise no_estimate_error(output, merged)
    _join(output, ordered)
    merged.output_sha256 = file_sha256(output)
    write_report(output, merged)
    return merged


def _require_complete(path: Path, report: InferReport) -> None:
    """Raise PicoPoseError when a shard's file is not the one of its report, or the shard is being computed again."""
    if file_sha256(path) != report.output_sha256:
        raise PicoPoseError(f"is not the file that {report_path(path)} describes", where=path, fix="run it again")
    journal = journal_path(path)
    if is_being_written(journal):
        raise PicoPoseError("the shard is being computed again at this moment", where=path, fix="wait for its end")
    if journal.is_file() and JournalFollower(journal).done() < report.images:
        fix = "run the shard's command again, or delete its journal"
        raise PicoPoseError("the shard was started again and is not finished", where=journal, fix=fix)


def _in_order(reports: dict[Path, InferReport]) -> list[Path]:
    """Return the shards from first to last; raises PicoPoseError unless each is given once."""
    places: dict[Path, tuple[int, int]] = {}
    for path, report in reports.items():
        place = shard_of(report.identity)
        if place is None:
            raise PicoPoseError("is not a shard", where=path, fix="merge files that picopose infer --shard wrote")
        places[path] = place
    counts = sorted({count for _, count in places.values()})
    if len(counts) > 1:
        found = ", ".join(f"{path} of {count}" for path, (_, count) in places.items())
        raise PicoPoseError(f"the shards are of different numbers ({found})", fix="merge the shards of one run")
    found_indices = Counter(index for index, _ in places.values())
    twice = [index for index, number in found_indices.items() if number > 1]
    missing = [index for index in range(1, counts[0] + 1) if index not in found_indices]
    if twice or missing:
        faults = [f"missing: {_numbers(missing)}"] * bool(missing) + [f"given twice: {_numbers(twice)}"] * bool(twice)
        raise PicoPoseError(f"of {counts[0]} shards, {'; '.join(faults)}", fix="name each shard's file once")
    return sorted(places, key=lambda path: places[path])


def _numbers(indices: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(indices)))


def _require_one_run(ordered: Sequence[Path], reports: dict[Path, InferReport]) -> None:
    first = _without_shard(reports[ordered[0]].identity)
    for path in ordered[1:]:
        found = differences(first, _without_shard(reports[path].identity))
        if found:
            text = "; ".join(found[:_DIFFERENCES_SHOWN])
            fix = "run one of them again with the other's options and inputs"
            raise PicoPoseError(f"is of another run than {ordered[0]} ({text})", where=path, fix=fix)


def _without_shard(identity: dict[str, Any]) -> dict[str, Any]:
    return identity | {"shard": None}


def _merged(output: Path, reports: Sequence[InferReport]) -> InferReport:
    first = reports[0]
    merged = InferReport(
        output=str(output),
        options=first.options | {"shard": None, "output": str(output)},
        versions=first.versions,
        machine=first.machine,
        device=", ".join(dict.fromkeys(report.device for report in reports)),
        precision=first.precision,
        weights=first.weights,
        weights_sha256=first.weights_sha256,
        targets=first.targets,
        detections=first.detections,
        refinement=first.refinement,
        modality=first.modality,
        by_rgb=[one for report in reports for one in report.by_rgb],
        identity=_without_shard(first.identity),
        banks={obj_id: sha256 for report in reports for obj_id, sha256 in report.banks.items()},
        problems=list(dict.fromkeys(problem for report in reports for problem in report.problems)),
        warnings=list(dict.fromkeys(warning for report in reports for warning in report.warnings)),
        findings=[finding for report in reports for finding in report.findings],
        skipped=[skip for report in reports for skip in report.skipped],
        shards=[{name: getattr(report, name) for name in _SHARD_FIGURES} for report in reports],
    )
    for name in ("images", "kept_images", "estimated_images", "estimates", "depth_poses"):
        setattr(merged, name, sum(getattr(report, name) for report in reports))
    for name in ("onboarding_s", "estimating_s", "total_s", "image_times_s"):
        setattr(merged, name, sum(getattr(report, name) for report in reports))
    merged.stages_s = StageSeconds()
    for report in reports:
        merged.stages_s.add(report.stages_s)
    speeds = [report.images_per_second for report in reports if report.images_per_second is not None]
    merged.images_per_second = sum(speeds) if speeds else None
    merged.peak_memory_mb = max(report.peak_memory_mb for report in reports)
    merged.peak_device_memory_mb = max(report.peak_device_memory_mb for report in reports)
    return merged


def _join(output: Path, shards: Sequence[Path]) -> None:
    """Write the rows of all shards below one header."""
    with atomic_path(output) as temporary, temporary.open("wb") as whole:
        for index, path in enumerate(shards):
            with path.open("rb") as stream:
                header = stream.readline()
                if index == 0:
                    whole.write(header)
                while block := stream.read(1 << 20):
                    whole.write(block)
