"""`picopose infer`: the poses of every detection of a split, as a BOP result file with a report beside it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from picopose_cli.bop.check import check_results, grouped_lines
from picopose_cli.bop.datasets import Dataset, mesh_path, open_dataset
from picopose_cli.bop.detections import find_detections, ground_truth_detections, read_detections
from picopose_cli.bop.results import parse_result_name, result_file_name, write_results
from picopose_cli.bop.targets import read_targets
from picopose_cli.bop.tasks import load_image, make_image_tasks
from picopose_cli.environment import machine, package_versions, peak_memory_mb
from picopose_cli.errors import PicoPoseError
from picopose_cli.estimation.estimator import Estimator
from picopose_cli.estimation.features import FeatureFile, feature_file
from picopose_cli.estimation.pipeline import estimate_images
from picopose_cli.estimation.refine import Refiner
from picopose_cli.files import atomic_write_bytes, require_writable
from picopose_cli.network.bundled import bundled_weights
from picopose_cli.network.checkpoint import load_network, weights_sha256
from picopose_cli.network.device import choose_device, choose_precision, device_name, peak_device_memory_mb
from picopose_cli.options import InferOptions, options_record, resolve_data_dir
from picopose_cli.structs import (
    Detection,
    ImageResult,
    ImageTask,
    PoseEstimate,
    Skip,
    StageSeconds,
    Target,
    TemplateBank,
)
from picopose_cli.templates.bank import bank_path, read_bank, read_provenance
from picopose_cli.templates.estimates import EstimateRenderer
from picopose_cli.templates.mesh import mesh_sha256

_LOG = logging.getLogger(__name__)
METHOD = "picopose"
RELEASED_WEIGHTS = "the checkpoint that the PicoPose authors released (see weights/README.md)"
SHOWN_SKIPS = 5


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
    detections: str
    refinement: str = ""
    """Rounds of refinement, and which objects went without."""
    banks: dict[int, str] = field(default_factory=dict)
    """SHA-256 of each object's mesh as its bank records it."""
    images: int = 0
    estimates: int = 0
    skipped: list[Skip] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Entries of the detections file that could not be read."""
    onboarding_s: float = 0.0
    total_s: float = 0.0
    stages_s: StageSeconds = field(default_factory=StageSeconds)
    peak_memory_mb: float = 0.0
    peak_device_memory_mb: float = 0.0

    @property
    def exit_code(self) -> int:
        """1 when part of the input could not be used."""
        return 1 if self.skipped or self.problems else 0


def run(options: InferOptions) -> InferReport:
    """Estimate the poses of a split; see `picopose infer --help`.

    Raises PicoPoseError when nothing can be done: data set, targets, detections, weights or output unusable.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    started = time.perf_counter()
    data_dir = resolve_data_dir(options.data_dir)
    dataset = open_dataset(options.dataset, data_dir, split=options.split)
    output = options.output or Path(result_file_name(METHOD, dataset.name, dataset.result_split))
    parse_result_name(output)
    require_writable(output)
    targets = read_targets(dataset, options.targets)
    source, detections, problems = _read_detections(options, dataset, data_dir, targets)
    tasks = make_image_tasks(dataset, targets, detections)[: options.limit]
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    weights = options.weights or _default_weights(console)
    report = InferReport(
        output=str(output),
        options=options_record(options),
        versions=package_versions(),
        machine=machine(),
        device=device_name(device),
        precision=precision,
        weights=str(weights),
        weights_sha256=weights_sha256(weights),
        detections=source,
        problems=problems,
    )
    estimator = Estimator(
        load_network(weights, device),
        device=device,
        precision=precision,
        hypotheses=options.hypotheses,
        paper=options.paper,
    )
    with _progress(console) as progress:
        templates = options.templates or dataset.root / "templates"
        known = _onboard(estimator, dataset, templates, tasks, report, progress)
        refiner = _make_refiner(options.rounds, options, dataset, templates, known, estimator, report)
        results = estimate_images(
            tasks,
            load_image,
            estimator,
            known,
            batch_size=options.batch_size,
            workers=options.workers,
            refiner=refiner,
        )
        estimates = _collect(results, report, progress, len(tasks))
    report.total_s = time.perf_counter() - started
    report.peak_device_memory_mb = peak_device_memory_mb(device)
    _write(output, estimates, report)
    done = {(task.scene_id, task.im_id) for task in tasks}
    asked = [target for target in targets if (target.scene_id, target.im_id) in done]
    _print_summary(console, report, grouped_lines(check_results(output, dataset, asked)))
    return report


def _read_detections(
    options: InferOptions, dataset: Dataset, data_dir: Path, targets: Sequence[Target]
) -> tuple[str, dict[tuple[int, int], list[Detection]], list[str]]:
    """Return where the detections come from, the detections by image, and the entries that could not be read."""
    if options.detections == "gt":
        found, source = ground_truth_detections(dataset, targets), "ground-truth masks"
    else:
        path = Path(options.detections) if options.detections else find_detections(dataset, data_dir)
        found, source = read_detections(path), str(path)
    return source, found.by_image, found.problems


def _default_weights(console: Console) -> Path:
    weights = bundled_weights()
    console.print(
        f"weights: {weights.name}, a small network for trying picopose out; for results pass --weights FILE: "
        f"{RELEASED_WEIGHTS}"
    )
    return weights


def _onboard(
    estimator: Estimator,
    dataset: Dataset,
    templates: Path,
    tasks: Iterable[ImageTask],
    report: InferReport,
    progress: Progress,
) -> set[int]:
    """Load the bank of every detected object and compute its template features; return the usable objects.

    An object whose bank is missing or broken is skipped with the reason, its detections with it.
    """
    started = time.perf_counter()
    known: set[int] = set()
    for obj_id in sorted({detection.obj_id for task in tasks for detection in task.detections}):
        try:
            bank = _read_matching_bank(dataset, templates, obj_id)
        except PicoPoseError as error:
            report.problems.append(f"object {obj_id}: {error}")
            continue
        bar = progress.add_task(f"object {obj_id}", total=len(bank.crops_rgb), unit="views")
        on_views = partial(progress.advance, bar)
        estimator.add_object(bank, on_views, _feature_file(templates, obj_id, report))
        progress.remove_task(bar)
        report.banks[obj_id] = bank.provenance.source_sha256
        known.add(obj_id)
    report.onboarding_s = time.perf_counter() - started
    if not known:
        why = "; ".join(report.problems[:SHOWN_SKIPS]) or "there are no detections"
        raise PicoPoseError(f"no object can be estimated ({why})", where=templates, fix="run picopose render-templates")
    return known


def _feature_file(templates: Path, obj_id: int, report: InferReport) -> FeatureFile | None:
    if not report.options["cache"]:
        return None
    weights, precision, device = report.weights_sha256, report.precision, report.device
    return feature_file(bank_path(templates, obj_id), weights_sha256=weights, precision=precision, device=device)


def _read_matching_bank(dataset: Dataset, templates: Path, obj_id: int) -> TemplateBank:
    """Read an object's bank and, where its mesh is there too, make sure that the bank was made from it."""
    bank = read_bank(bank_path(templates, obj_id))
    try:
        mesh = mesh_path(dataset, obj_id)
    except PicoPoseError:
        return bank  # only the bank is here: nothing to compare with
    if bank.provenance.mesh_unit != "images" and mesh_sha256(mesh) != bank.provenance.source_sha256:
        fix = f"run picopose render-templates --object-ids {obj_id} again"
        raise PicoPoseError(
            f"the bank was made from another mesh than {mesh}", where=bank_path(templates, obj_id), fix=fix
        )
    return bank


def _make_refiner(
    rounds: int,
    options: InferOptions,
    dataset: Dataset,
    templates: Path,
    known: Collection[int],
    estimator: Estimator,
    report: InferReport,
) -> Refiner | None:
    """Return what refines the poses of the objects with a mesh, None without rounds or meshes; the report says which.

    Raises PicoPoseError where refinement was asked for and a mesh is missing.
    """
    meshes: dict[int, tuple[Path, str]] = {}
    for obj_id in known if rounds else ():
        unit = read_provenance(bank_path(templates, obj_id)).mesh_unit
        try:
            if unit == "images":
                raise PicoPoseError("its bank is made from images, not from a mesh")
            meshes[obj_id] = mesh_path(dataset, obj_id), unit
        except PicoPoseError as error:
            if options.refine is not None:
                fix = "put the models there, or pass --refine 0"
                raise PicoPoseError(
                    f"object {obj_id} cannot be refined: {error.what}", where=error.where, fix=fix
                ) from error
    without = sorted(set(known) - set(meshes))
    missing = (
        f", but for objects {', '.join(map(str, without))}, whose meshes are missing" if rounds and without else ""
    )
    report.refinement = f"{rounds if meshes else 0} rounds{missing}"
    return Refiner(estimator, EstimateRenderer(meshes), rounds) if meshes else None


def _collect(
    results: Iterable[ImageResult], report: InferReport, progress: Progress, images: int
) -> list[PoseEstimate]:
    estimates: list[PoseEstimate] = []
    bar = progress.add_task("images", total=images, unit="images")
    for result in results:
        estimates += result.estimates
        report.images += 1
        report.skipped += result.skips
        report.stages_s.add(result.seconds)
        for skip in result.skips:
            _LOG.info("skipped %s", skip)
        progress.advance(bar)
    report.estimates = len(estimates)
    return estimates


def _write(output: Path, estimates: Sequence[PoseEstimate], report: InferReport) -> None:
    """Write the report and the result file; raises PicoPoseError when there is not one estimate to write."""
    report.peak_memory_mb = peak_memory_mb()
    beside = output.with_suffix(".json")
    atomic_write_bytes(beside, json.dumps(asdict(report), indent=1).encode())
    if not estimates:
        reasons = [_skip_text(skip) for skip in report.skipped[:1]] + report.problems[:1]
        fix = f"see {beside} for every reason"
        raise PicoPoseError(f"there is not one estimate to write ({'; '.join(reasons)})", where=output, fix=fix)
    write_results(output, estimates)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _print_summary(console: Console, report: InferReport, findings: Sequence[str]) -> None:
    console.print(f"{report.estimates} estimates of {report.images} images -> {report.output}")
    stages = report.stages_s
    console.print(
        f"{report.total_s:.1f} s: templates {report.onboarding_s:.1f}, read {stages.read:.1f}, crop {stages.crop:.1f}, "
        f"network {stages.network:.1f} ({report.device}, {report.precision}), PnP {stages.pnp:.1f}; "
        f"peak memory {report.peak_memory_mb:.0f} MB"
    )
    _print_some(console, "not readable", report.problems)
    _print_some(console, "skipped", [_skip_text(skip) for skip in report.skipped])
    _print_some(console, "check", findings)


def _print_some(console: Console, title: str, lines: Sequence[str]) -> None:
    for line in lines[:SHOWN_SKIPS]:
        console.print(f"{title}: {line}")
    if len(lines) > SHOWN_SKIPS:
        console.print(f"{title}: and {len(lines) - SHOWN_SKIPS} more, all listed in the report beside the result file")


def _skip_text(skip: Skip) -> str:
    what = f"scene {skip.scene_id}, image {skip.im_id}" + (f", object {skip.obj_id}" if skip.obj_id is not None else "")
    return f"{what}: {skip.reason}"
