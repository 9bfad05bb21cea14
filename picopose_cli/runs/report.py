"""The report beside a result file: what a run did, what its results depend on, and how long each stage took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from picopose_cli.base.environment import machine, package_versions
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.json_numbers import finite_number, whole_number
from picopose_cli.base.option_fields import options_record
from picopose_cli.base.tasks import ImageResult, Skip, StageSeconds
from picopose_cli.bop.check import ERROR, Finding
from picopose_cli.bop.json_files import read_json_object
from picopose_cli.network.devices import device_name

if TYPE_CHECKING:
    from picopose_cli.runs.inputs import RunInputs

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
    """Source of the targets, and the task they are for."""
    detections: str
    refinement: str = ""
    """Rounds of refinement, and the objects that are not refined."""
    modality: str = "RGB"
    """RGB, or RGB-D: poses are finished on depth images."""
    depth_poses: int = 0
    """Poses that were finished on depth."""
    by_rgb: list[Skip] = field(default_factory=list)
    """Poses of an RGB-D run by RGB alone, and why; `obj_id` is None where a depth image cannot be used."""
    identity: dict[str, Any] = field(default_factory=dict)
    """All that the results depend on (see `runs.identity`); shards of one run differ in `shard` alone."""
    banks: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each object's mesh, as recorded in its bank."""
    output_sha256: str = ""
    images: int = 0
    kept_images: int = 0
    """Images that an earlier run had finished."""
    estimated_images: int = 0
    """Images with at least one estimate."""
    estimates: int = 0
    skipped: list[Skip] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Entries of the detections file that could not be read, objects without usable templates."""
    warnings: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    """What `picopose check` finds in the result file."""
    """What may be wrong with the input although it can be used; the exit code does not depend on it."""
    onboarding_s: float = 0.0
    estimating_s: float = 0.0
    """Wall-clock time of this run from the first image to the last."""
    total_s: float = 0.0
    stages_s: StageSeconds = field(default_factory=StageSeconds)
    image_times_s: float = 0.0
    """Sum of the `time` column over the images with an estimate."""
    images_per_second: float | None = None
    """Of the images that this run computed; for merged shards, which run in parallel, the sum."""
    peak_memory_mb: float = 0.0
    peak_device_memory_mb: float = 0.0
    shards: list[dict[str, Any]] = field(default_factory=list)
    """For a merged result: the figures of each shard."""
    nodes: list[dict[str, Any]] = field(default_factory=list)
    """With --ray: images, groups, most workers at a time, lost workers and seconds of each node."""

    @property
    def exit_code(self) -> int:
        """1 when part of the input could not be used."""
        unusable_depth = any(one.obj_id is None for one in self.by_rgb)
        return 1 if self.skipped or self.problems or unusable_depth else 0

    @property
    def seconds_per_image(self) -> float | None:
        """BOP's average time: the mean of `time` over the images with an estimate."""
        return self.image_times_s / self.estimated_images if self.estimated_images else None

    def add(self, result: ImageResult) -> None:
        """Add one image to the counts."""
        self.images += 1
        self.estimates += len(result.estimates)
        self.skipped += result.skips
        self.stages_s.add(result.seconds)
        self.depth_poses += result.depth_poses
        self.by_rgb += result.by_rgb
        if result.estimates:
            self.estimated_images += 1
            self.image_times_s += result.time_s


def new_report(inputs: RunInputs, identity: dict[str, Any]) -> InferReport:
    """Return the report of a run that has not estimated anything yet."""
    return InferReport(
        output=str(inputs.output),
        options=options_record(inputs.options),
        versions=package_versions(),
        machine=machine(),
        device=device_name(inputs.devices[0]),
        precision=inputs.precision,
        weights=str(inputs.weights),
        weights_sha256=inputs.weights_sha256,
        targets=inputs.targets_source,
        detections=inputs.detections_source,
        refinement=identity["refinement"],
        modality="RGB-D" if inputs.options.depth == "on" else "RGB",
        identity=identity,
        banks={str(obj_id): found.provenance.source_sha256 for obj_id, found in inputs.usable_objects.items()},
        problems=list(inputs.problems),
        warnings=list(inputs.warnings),
    )


def report_path(output: Path) -> Path:
    """Return the path of a result file's report."""
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
        for name in ("skipped", "by_rgb"):
            values[name] = [_parsed(Skip, skip) for skip in values[name]]
        values["stages_s"] = _parsed(StageSeconds, values["stages_s"])
        report: InferReport = _parsed(InferReport, values)
    except (KeyError, TypeError, ValueError) as error:
        what = f"is not a report of this version of picopose infer ({error!r})"
        raise PicoPoseError(what, where=path, fix="run the shard again") from error
    return report


def _parsed(cls: Any, values: dict[str, Any]) -> Any:
    """Return a dataclass of exactly these values, which must have its types; raises TypeError otherwise."""
    if set(values) != {one.name for one in fields(cls)}:
        raise TypeError(f"a {cls.__name__} has other fields")
    found = cls(**values)
    hints = get_type_hints(cls)
    wrong = [one.name for one in fields(cls) if not _is_of(getattr(found, one.name), hints[one.name])]
    if wrong:
        raise TypeError(f"{wrong[0]} is of another type")
    return found


def _is_of(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type of the report's fields; numbers must be finite and not negative."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_is_of(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(item, arguments[1]) for item in value.values())
    if arguments:  # a union
        return any(_is_of(value, one) for one in arguments)
    if hint is Any:
        return True
    if hint in (int, float):
        number = whole_number(value) if hint is int else finite_number(value)
        return number is not None and number >= 0
    return isinstance(value, hint)


def no_estimate_error(output: Path, report: InferReport) -> PicoPoseError:
    """Return the error of a run without one estimate, with the first reasons."""
    reasons = [skip_text(skip) for skip in report.skipped[:1]] + report.problems[:1]
    fix = f"see {report_path(output)} for every reason"
    return PicoPoseError(f"there are no estimates to write ({'; '.join(reasons)})", where=output, fix=fix)


def raise_on_errors(output: Path, findings: Sequence[Finding]) -> None:
    """Raise PicoPoseError when the check of a result file that was just written has found an error."""
    errors = [str(finding) for finding in findings if finding.severity == ERROR]
    if errors:
        fix = f"please report it; the journal is kept, and {report_path(output)} has all findings"
        raise PicoPoseError(f"the result file is not valid ({errors[0]})", where=output, fix=fix)


def summary_lines(report: InferReport) -> list[str]:
    """Return the summary of a run for the console."""
    stages = report.stages_s
    kept = f" ({report.kept_images} of them from an earlier run)" if report.kept_images else ""
    per_image, per_second = report.seconds_per_image, report.images_per_second
    speeds = [f"{per_image:.3g} s per image (mean of the time column)"] if per_image is not None else []
    speeds += [f"{per_second:.3g} images per second"] if per_second is not None else []
    return [
        f"{report.estimates} estimates of {report.images} images{kept} -> {report.output}",
        *([", ".join(speeds)] if speeds else []),
        f"{report.total_s:.1f} s: templates {report.onboarding_s:.1f}, read {stages.read:.1f}, crop {stages.crop:.1f}, "
        f"network {stages.network:.1f} ({report.device}, {report.precision}), PnP {stages.pnp:.1f}, "
        f"refine {stages.refine:.1f}; "
        f"peak memory {report.peak_memory_mb:.0f} MB",
        *(_node_text(node) for node in report.nodes),
        *_depth_lines(report),
        *_some("warning", report.warnings),
        *_some("problem", report.problems),
        *_some("skipped", [skip_text(skip) for skip in report.skipped]),
        *_some("check", report.findings),
    ]


def _node_text(node: dict[str, Any]) -> str:
    lost = f", {node['lost']} workers lost" if node["lost"] else ""
    return f"{node['node']}: {node['images']} images in {node['seconds']:.1f} s by {node['workers']} workers{lost}"


def _depth_lines(report: InferReport) -> list[str]:
    """Return what a run with depth did with it."""
    if report.modality == "RGB":
        return []
    reasons = _some("by RGB alone", [skip_text(one) for one in report.by_rgb])
    by_rgb = report.estimates - report.depth_poses
    return [f"{report.modality}: {report.depth_poses} poses are finished on depth, {by_rgb} are by RGB alone", *reasons]


def _some(title: str, lines: list[str]) -> list[str]:
    more = len(lines) - SHOWN_LINES
    rest = [f"{title}: and {more} more, all listed in the report beside the result file"] if more > 0 else []
    return [f"{title}: {line}" for line in lines[:SHOWN_LINES]] + rest


def skip_text(skip: Skip) -> str:
    """Return a skip as a line."""
    what = f"scene {skip.scene_id}, image {skip.im_id}" + (f", object {skip.obj_id}" if skip.obj_id is not None else "")
    return f"{what}: {skip.reason}"
