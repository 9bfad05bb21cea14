"""`picopose infer`: the poses of every detection of a split, as a BOP result file with a report beside it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from picopose_cli.bop.check import check_results, grouped_lines
from picopose_cli.bop.datasets import Dataset, mesh_path, open_dataset
from picopose_cli.bop.detections import find_detections, ground_truth_detections, read_detections
from picopose_cli.bop.journal import Journal, JournalFollower, journal_path, kept_text, read_header
from picopose_cli.bop.report import SHOWN_LINES, InferReport, no_estimate_error, summary_lines, write_report
from picopose_cli.bop.results import parse_result_name, result_file_name, write_results
from picopose_cli.bop.shards import merge_shards, remove_shards, shard_path, shard_paths
from picopose_cli.bop.targets import read_targets
from picopose_cli.bop.tasks import load_image, make_image_tasks, tasks_sha256
from picopose_cli.children import Children
from picopose_cli.environment import machine, package_versions, peak_memory_mb
from picopose_cli.errors import PicoPoseError
from picopose_cli.estimation.estimator import Estimator
from picopose_cli.estimation.features import FeatureFile, feature_file
from picopose_cli.estimation.pipeline import (
    Group,
    estimate_groups,
    groups_after,
    plan_groups,
    share_of_groups,
)
from picopose_cli.files import file_sha256, require_writable
from picopose_cli.interrupts import stoppable
from picopose_cli.network.bundled import bundled_weights
from picopose_cli.network.checkpoint import load_network, read_config, weights_sha256
from picopose_cli.network.device import (
    choose_devices,
    choose_precision,
    device_name,
    peak_device_memory_mb,
    suggest_batch_size,
    thread_count,
)
from picopose_cli.network.picopose import store_in_bf16
from picopose_cli.options import InferOptions, command_line, options_record, resolve_data_dir
from picopose_cli.progress import add_bar, progress_bar
from picopose_cli.structs import Detection, ImageResult, ImageTask, Provenance, Target
from picopose_cli.templates.bank import bank_path, read_bank, read_provenance
from picopose_cli.templates.mesh import mesh_sha256
from picopose_cli.trace import Record, recording

_LOG = logging.getLogger(__name__)
METHOD = "picopose"
RELEASED_WEIGHTS = "the checkpoint that the PicoPose authors released (see weights/README.md)"
_NOT_IN_HEADER = {
    "data_dir", "templates", "detections", "weights", "targets", "output", "workers", "limit", "restart", "profile",
    "cache",
}  # fmt: skip
"""Options that change no result, or whose content the header has as a digest."""
_HEADER_VERSIONS = ("picopose", "torch", "numpy", "opencv-python-headless")
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class _Plan:
    """What a run is to do, known before the network is loaded."""

    options: InferOptions
    dataset: Dataset
    targets: Sequence[Target]
    output: Path
    templates: Path
    objects: set[int]
    """Of the detected objects those with a usable bank."""
    weights: Path
    devices: Sequence[str]
    precision: str
    batch_size: int
    groups: Sequence[Group]
    """Of this run's shard."""

    @property
    def tasks(self) -> list[ImageTask]:
        return [task for group in self.groups for task in group]


def run(options: InferOptions) -> InferReport:
    """Estimate the poses of a split; see `picopose infer --help`.

    Raises PicoPoseError when nothing can be done: data set, targets, detections, weights or output unusable, or another
    run's journal beside the output; StoppedError when Ctrl-C or SIGTERM ended it.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    started = time.perf_counter()
    plan, report = _plan(options, console)
    if len(plan.devices) > 1:
        report = _run_on_devices(plan, console, started)
    else:
        _run_here(plan, report, console, started)
    asked_images = {(task.scene_id, task.im_id) for task in plan.tasks}
    asked = [target for target in plan.targets if (target.scene_id, target.im_id) in asked_images]
    findings = grouped_lines(check_results(plan.output, plan.dataset, asked)) if report.estimates else []
    for line in summary_lines(report, findings):
        console.print(line)
    return report


def _plan(options: InferOptions, console: Console) -> tuple[_Plan, InferReport]:
    """Read all that says what is to be done, and begin the report."""
    data_dir = resolve_data_dir(options.data_dir)
    dataset = open_dataset(options.dataset, data_dir, split=options.split)
    devices = choose_devices(options.device)
    precision = choose_precision(options.precision, devices[0])
    output = _output(options, dataset)
    targets = read_targets(dataset, options.targets)
    source, detections, problems = _read_detections(options, dataset, data_dir, targets)
    tasks = make_image_tasks(dataset, targets, detections)[: options.limit]
    weights = options.weights or _default_weights(console)
    report = InferReport(
        output=str(output),
        options=options_record(options),
        versions=package_versions(),
        machine=machine(),
        device=device_name(devices[0]),
        precision=precision,
        weights=str(weights),
        weights_sha256=weights_sha256(weights),
        detections="ground-truth masks" if source is None else str(source),
        problems=problems,
    )
    templates = options.templates or dataset.root / "templates"
    banks = _usable_banks(dataset, templates, tasks, report)
    batch_size = _batch_size(options, shard_paths(output, len(devices)), weights, devices[0])
    found = options.detections if source is None else file_sha256(source)
    report.header = _header(report, dataset, devices[0], batch_size) | {
        "shard": options.part and list(options.part),
        "detections_sha256": found,
        "images": len(tasks),
        "tasks_sha256": tasks_sha256(tasks),
        "banks": {str(obj_id): bank and _digest(bank) for obj_id, bank in banks.items()},
    }
    sequential = options.timing == "sequential"
    groups = [(task,) for task in tasks] if sequential else plan_groups(tasks, batch_size)
    if options.part is not None:
        groups = share_of_groups(groups, options.part[0] - 1, options.part[1])
    usable = {obj_id for obj_id, bank in banks.items() if bank is not None}
    return _Plan(
        options, dataset, targets, output, templates, usable, weights, devices, precision, batch_size, groups
    ), report


def _header(report: InferReport, dataset: Dataset, device: str, batch_size: int) -> dict[str, Any]:
    """Return what the results depend on besides the inputs; an option that is new is in it until it is left out."""
    return {name: value for name, value in report.options.items() if name not in _NOT_IN_HEADER} | {
        "dataset": dataset.name,
        "split": dataset.result_split,
        "device": device.partition(":")[0],
        "precision": report.precision,
        "batch_size": batch_size,
        "weights_sha256": report.weights_sha256,
        "versions": {name: report.versions[name] for name in _HEADER_VERSIONS},
    }


def _output(options: InferOptions, dataset: Dataset) -> Path:
    output = options.output or Path(result_file_name(METHOD, dataset.name, dataset.result_split))
    if options.output is None and options.part is not None:
        output = shard_path(output, *options.part)
    parse_result_name(output)
    require_writable(output)
    return output


def _read_detections(
    options: InferOptions, dataset: Dataset, data_dir: Path, targets: Sequence[Target]
) -> tuple[Path | None, dict[tuple[int, int], list[Detection]], list[str]]:
    """Return the detections' file (None: the masks), the detections by image, and the entries that are unreadable."""
    if options.detections == "gt":
        found, path = ground_truth_detections(dataset, targets), None
    else:
        path = Path(options.detections) if options.detections else find_detections(dataset, data_dir)
        found = read_detections(path)
    return path, found.by_image, found.problems


def _default_weights(console: Console) -> Path:
    weights = bundled_weights()
    console.print(
        f"weights: {weights.name}, a small network for trying picopose out; for results pass --weights FILE: "
        f"{RELEASED_WEIGHTS}"
    )
    return weights


def _usable_banks(
    dataset: Dataset, templates: Path, tasks: Iterable[ImageTask], report: InferReport
) -> dict[int, Provenance | None]:
    """Return where the bank of each detected object is from, None where none can be used, which the report records.

    Raises PicoPoseError when not one can be used.
    """
    banks: dict[int, Provenance | None] = {}
    for obj_id in sorted({detection.obj_id for task in tasks for detection in task.detections}):
        try:
            banks[obj_id] = bank = _matching_bank(dataset, templates, obj_id)
            report.banks[str(obj_id)] = bank.source_sha256
        except PicoPoseError as error:
            banks[obj_id] = None
            report.problems.append(f"object {obj_id}: {error}")
    if not report.banks:
        why = "; ".join(report.problems[:SHOWN_LINES]) or "there are no detections"
        raise PicoPoseError(f"no object can be estimated ({why})", where=templates, fix="run picopose render-templates")
    return banks


def _matching_bank(dataset: Dataset, templates: Path, obj_id: int) -> Provenance:
    """Return where an object's bank is from and, where its mesh is there too, make sure that it was made from it."""
    bank = read_provenance(bank_path(templates, obj_id))
    try:
        mesh = mesh_path(dataset, obj_id)
    except PicoPoseError:
        return bank  # only the bank is here: nothing to compare with
    if bank.mesh_unit != "images" and mesh_sha256(mesh) != bank.source_sha256:
        fix = f"run picopose render-templates --object-ids {obj_id} again"
        raise PicoPoseError(
            f"the bank was made from another mesh than {mesh}", where=bank_path(templates, obj_id), fix=fix
        )
    return bank


def _batch_size(options: InferOptions, outputs: Sequence[Path], weights: Path, device: str) -> int:
    """Return the batch size that is asked for, else that of the run that is continued, else what the device takes."""
    if options.batch_size is not None:
        return options.batch_size
    headers = [] if options.restart else [read_header(journal_path(output)) for output in outputs]
    begun = [header["batch_size"] for header in headers if header and isinstance(header.get("batch_size"), int)]
    return begun[0] if begun else suggest_batch_size(device, read_config(weights))


def _digest(bank: Provenance) -> str:
    return hashlib.sha256(json.dumps(asdict(bank), sort_keys=True).encode()).hexdigest()


def _run_here(plan: _Plan, report: InferReport, console: Console, started: float) -> None:
    """Estimate what the journal does not have yet, then write the result file and the report from the journal."""
    tasks, is_shard = plan.tasks, plan.options.part is not None
    with Journal(journal_path(plan.output), report.header, tasks, restart=plan.options.restart) as journal:
        with stoppable(lambda: kept_text(len(tasks), [journal.path])):
            report.kept_images = journal.done
            if journal.done < len(tasks):
                _estimate(plan, journal, report, console)
            for result in journal.results():
                report.add(result)
            report.total_s, report.peak_memory_mb = time.perf_counter() - started, peak_memory_mb()
            if report.estimates or is_shard:
                write_results(plan.output, (one for result in journal.results() for one in result.estimates))
                report.output_sha256 = file_sha256(plan.output)
            write_report(plan.output, report)
        if not is_shard:  # a finished shard keeps it until it is merged: it is not computed again with the others
            journal.delete()
    if not report.estimates and not is_shard:
        raise no_estimate_error(plan.output, report)


def _estimate(plan: _Plan, journal: Journal, report: InferReport, console: Console) -> None:
    """Estimate the images after the journal's; a group of which it has a part is computed again whole."""
    options, device, images = plan.options, plan.devices[0], len(plan.tasks)
    groups, again = groups_after(plan.groups, journal.done)
    network = load_network(plan.weights, device)
    estimator = Estimator(
        store_in_bf16(network) if plan.precision == "bf16" else network,
        device=device,
        precision=plan.precision,
        hypotheses=options.hypotheses,
        paper=options.paper,
    )
    with recording(options.profile) as record, progress_bar(console) as progress:
        known = _onboard(estimator, plan, groups, report, progress)
        bar = add_bar(progress, "images", images, "images", journal.done)
        started = time.perf_counter()
        results = estimate_groups(
            groups,
            load_image,
            estimator,
            known,
            batch_size=plan.batch_size,
            workers=options.workers,
            sequential=options.timing == "sequential",
            record=record,
        )
        with closing(results):
            for result in islice(results, again, None):
                _keep(result, journal, record)
                progress.advance(bar)
        report.estimating_s = time.perf_counter() - started
    report.images_per_second = (images - report.kept_images) / report.estimating_s
    report.peak_device_memory_mb = peak_device_memory_mb(device)


def _onboard(
    estimator: Estimator, plan: _Plan, groups: Iterable[Group], report: InferReport, progress: Progress
) -> set[int]:
    """Load the bank of every object of the groups and compute its template features; return the usable objects.

    An object whose bank is broken is skipped with the reason, its detections with it.
    """
    started = time.perf_counter()
    known: set[int] = set()
    detected = {detection.obj_id for group in groups for task in group for detection in task.detections}
    for obj_id in sorted(detected & plan.objects):
        try:
            bank = read_bank(bank_path(plan.templates, obj_id))
        except PicoPoseError as error:
            report.problems.append(f"object {obj_id}: {error}")
            continue
        bar = add_bar(progress, f"object {obj_id}", len(bank.crops_rgb), "views")
        estimator.add_object(bank, partial(progress.advance, bar), _feature_file(plan, obj_id, report))
        progress.remove_task(bar)
        known.add(obj_id)
    report.onboarding_s = time.perf_counter() - started
    return known


def _feature_file(plan: _Plan, obj_id: int, report: InferReport) -> FeatureFile | None:
    if not plan.options.cache:
        return None
    bank, device = bank_path(plan.templates, obj_id), plan.devices[0]
    return feature_file(bank, weights_sha256=report.weights_sha256, precision=plan.precision, device=device)


def _keep(result: ImageResult, journal: Journal, record: Record | None) -> None:
    started = time.perf_counter()
    journal.append(result)
    if record is not None:
        record("journal", started, time.perf_counter(), f"scene {result.task.scene_id}, image {result.task.im_id}")
    for skip in result.skips:
        _LOG.info("skipped %s", skip)


def _run_on_devices(plan: _Plan, console: Console, started: float) -> InferReport:
    """Run a shard on each device in a process of its own, then merge them."""
    shards = shard_paths(plan.output, len(plan.devices))
    journals = [journal_path(shard) for shard in shards]
    followers = [JournalFollower(journal) for journal in journals]

    def done() -> int:
        return sum(follower.done() for follower in followers)

    with stoppable(lambda: kept_text(len(plan.tasks), journals)), Children() as children:
        threads = {"OMP_NUM_THREADS": str(max(1, thread_count() // len(shards)))}
        for device, shard, index in zip(plan.devices, shards, range(1, len(shards) + 1), strict=True):
            children.start(device, ["infer", *command_line(_of_shard(plan, device, shard, index))], threads)
        with progress_bar(console) as progress:
            bar = add_bar(progress, "images", len(plan.tasks), "images", done())
            while children.running():
                time.sleep(_LOOK_EVERY_S)
                progress.update(bar, completed=done())
            progress.update(bar, completed=done())
    report = merge_shards(plan.output, shards)
    report.options, report.total_s = options_record(plan.options), time.perf_counter() - started
    write_report(plan.output, report)
    remove_shards(shards)
    return report


def _of_shard(plan: _Plan, device: str, output: Path, index: int) -> InferOptions:
    count, profile = len(plan.devices), plan.options.profile
    return replace(
        plan.options,
        device=device,
        shard=f"{index}/{count}",
        output=output,
        batch_size=plan.batch_size,
        profile=profile and shard_path(profile, index, count),
    )
