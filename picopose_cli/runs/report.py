"""The report beside a result file: what a run did, what its results depend on, and where the time went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.tasks import ImageResult, Skip, StageSeconds
from picopose_cli.bop.json_files import read_json_object

SHOWN_LINES = 5


@dataclass
class InferReport:
    """What a run did; written as JSON beside the result file."""

    output: str
    options: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, str | int]
    device: str
    precision: str
    weights: str
    weights_sha256: str
    targets: str
    """Where they are from, and for which task."""
    detections: str
    refinement: str = ""
    """Rounds of refinement, and which objects went without."""
    header: dict[str, Any] = field(default_factory=dict)
    """All that the results depend on, as the journal has it; shards of one run differ in `shard` alone."""
    banks: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each object's mesh as its bank records it."""
    output_sha256: str = ""
    images: int = 0
    kept_images: int = 0
    """Of the images, those that an earlier run had finished."""
    estimated_images: int = 0
    """Of the images, those with an estimate."""
    estimates: int = 0
    skipped: list[Skip] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Entries of the detections file that could not be read, objects without usable templates."""
    onboarding_s: float = 0.0
    estimating_s: float = 0.0
    """Wall clock of this run from the first image to the last."""
    total_s: float = 0.0
    stages_s: StageSeconds = field(default_factory=StageSeconds)
    image_times_s: float = 0.0
    """Sum over the images with an estimate of the time that the result file has for them."""
    images_per_second: float | None = None
    """Of this run's own images; of several shards the sum, as they run side by side."""
    peak_memory_mb: float = 0.0
    peak_device_memory_mb: float = 0.0
    shards: list[dict[str, Any]] = field(default_factory=list)
    """Of a merged result: what each shard's report says of itself."""

    @property
    def exit_code(self) -> int:
        """1 when part of the input could not be used."""
        return 1 if self.skipped or self.problems else 0

    @property
    def seconds_per_image(self) -> float | None:
        """BOP's average time: the mean over the images with an estimate."""
        return self.image_times_s / self.estimated_images if self.estimated_images else None

    def add(self, result: ImageResult) -> None:
        """Count one image."""
        self.images += 1
        self.estimates += len(result.estimates)
        self.skipped += result.skips
        self.stages_s.add(result.seconds)
        if result.estimates:
            self.estimated_images += 1
            self.image_times_s += result.time_s


def report_path(output: Path) -> Path:
    """Return where the report of a result file lies."""
    return output.with_suffix(".json")


def write_report(output: Path, report: InferReport) -> None:
    """Write the report of a result file; raises PicoPoseError when it cannot be written."""
    content = asdict(report) | {"seconds_per_image": report.seconds_per_image}
    atomic_write_bytes(report_path(output), json.dumps(content, indent=1).encode())


def read_report(output: Path) -> InferReport:
    """Read the report of a result file; raises PicoPoseError when it is missing or not a report of this version."""
    path = report_path(output)
    content = read_json_object(path)
    try:
        values = {one.name: content[one.name] for one in fields(InferReport)}
        values["skipped"] = [Skip(**skip) for skip in values["skipped"]]
        values["stages_s"] = StageSeconds(**values["stages_s"])
        report = InferReport(**values)
        _ = report.seconds_per_image, dict(report.header)
    except (KeyError, TypeError, ValueError) as error:
        what = f"is no report of picopose infer of this version ({error!r})"
        raise PicoPoseError(what, where=path, fix="run the shard again") from error
    return report


def no_estimate_error(output: Path, report: InferReport) -> PicoPoseError:
    """Return the error of a run without one estimate, with the first reasons."""
    reasons = [skip_text(skip) for skip in report.skipped[:1]] + report.problems[:1]
    fix = f"see {report_path(output)} for every reason"
    return PicoPoseError(f"there is not one estimate to write ({'; '.join(reasons)})", where=output, fix=fix)


def summary_lines(report: InferReport, findings: list[str]) -> list[str]:
    """Return what a person wants to know of a run; `findings` are those of `picopose check`."""
    stages = report.stages_s
    kept = f" ({report.kept_images} of them by an earlier run)" if report.kept_images else ""
    per_image, per_second = report.seconds_per_image, report.images_per_second
    speeds = [f"{per_image:.3g} s an image (mean of the time column)"] if per_image is not None else []
    speeds += [f"{per_second:.3g} images a second"] if per_second is not None else []
    return [
        f"{report.estimates} estimates of {report.images} images{kept} -> {report.output}",
        *([", ".join(speeds)] if speeds else []),
        f"{report.total_s:.1f} s: templates {report.onboarding_s:.1f}, read {stages.read:.1f}, crop {stages.crop:.1f}, "
        f"network {stages.network:.1f} ({report.device}, {report.precision}), PnP {stages.pnp:.1f}, "
        f"refine {stages.refine:.1f}; "
        f"peak memory {report.peak_memory_mb:.0f} MB",
        *_some("not readable", report.problems),
        *_some("skipped", [skip_text(skip) for skip in report.skipped]),
        *_some("check", findings),
    ]


def _some(title: str, lines: list[str]) -> list[str]:
    more = len(lines) - SHOWN_LINES
    rest = [f"{title}: and {more} more, all listed in the report beside the result file"] if more > 0 else []
    return [f"{title}: {line}" for line in lines[:SHOWN_LINES]] + rest


def skip_text(skip: Skip) -> str:
    """Return a skip as a line."""
    what = f"scene {skip.scene_id}, image {skip.im_id}" + (f", object {skip.obj_id}" if skip.obj_id is not None else "")
    return f"{what}: {skip.reason}"


def shard_of(header: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the shard (i, n) that a header names."""
    shard = header.get("shard")
    return (int(shard[0]), int(shard[1])) if isinstance(shard, list) and len(shard) == 2 else None
