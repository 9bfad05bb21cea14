"""`picopose infer`: the poses of every detection of a split, as a BOP result file with a report beside it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from picopose_cli.base.environment import peak_memory_mb
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256
from picopose_cli.base.option_fields import command_line, options_record
from picopose_cli.base.options import InferOptions
from picopose_cli.base.tasks import ImageResult
from picopose_cli.bop.check import check_results, grouped_lines
from picopose_cli.bop.results import write_results
from picopose_cli.network.checkpoint import load_network
from picopose_cli.network.devices import (
    peak_device_memory_mb,
    thread_count,
)
from picopose_cli.network.picopose import store_in_bf16
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.pose.matcher import Estimator
from picopose_cli.pose.pipeline import (
    ImageGroup,
    Record,
    estimate_groups,
    groups_after,
)
from picopose_cli.pose.refine import Refiner
from picopose_cli.pose.template_store import FeatureFile, feature_file
from picopose_cli.runs.children import Children
from picopose_cli.runs.interrupts import stoppable
from picopose_cli.runs.journal import Journal, JournalFollower, journal_path, kept_text
from picopose_cli.runs.merge import merge_shards, remove_shards, shard_path, shard_paths
from picopose_cli.runs.plan import Plan, make_plan
from picopose_cli.runs.progress import add_bar, progress_bar
from picopose_cli.runs.report import InferReport, no_estimate_error, summary_lines, write_report
from picopose_cli.runs.tasks import load_image
from picopose_cli.runs.trace import recording
from picopose_cli.templates.bank import bank_path, read_bank

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.2


def run(options: InferOptions) -> InferReport:
    """Estimate the poses of a split; see `picopose infer --help`.

    Raises PicoPoseError when nothing can be done: data set, targets, detections, weights or output unusable, or another
    run's journal beside the output; StoppedError when Ctrl-C or SIGTERM ended it.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    started = time.perf_counter()
    plan, report = make_plan(options, console)
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


def _run_here(plan: Plan, report: InferReport, console: Console, started: float) -> None:
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


def _estimate(plan: Plan, journal: Journal, report: InferReport, console: Console) -> None:
    """Estimate the images after the journal's; a group of which it has a part is computed again whole."""
    options, device, images = plan.options, plan.devices[0], len(plan.tasks)
    groups, again = groups_after(plan.groups, journal.done)
    network = load_network(plan.weights, device)
    estimator = Estimator(
        store_in_bf16(network) if plan.precision == "bf16" else network,
        device=device,
        precision=plan.precision,
        hypotheses=options.hypotheses,
        paper=options.rules == "paper",
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
            refiner=Refiner(estimator, EstimateRenderer(plan.meshes), options.rounds) if plan.meshes else None,
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
    estimator: Estimator, plan: Plan, groups: Iterable[ImageGroup], report: InferReport, progress: Progress
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
        file = _feature_file(plan, obj_id, report)
        estimator.add_object(bank, partial(progress.advance, bar), file, plan.symmetric.get(obj_id))
        progress.remove_task(bar)
        known.add(obj_id)
    report.onboarding_s = time.perf_counter() - started
    return known


def _feature_file(plan: Plan, obj_id: int, report: InferReport) -> FeatureFile | None:
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


def _run_on_devices(plan: Plan, console: Console, started: float) -> InferReport:
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


def _of_shard(plan: Plan, device: str, output: Path, index: int) -> InferOptions:
    count, profile = len(plan.devices), plan.options.profile
    return replace(
        plan.options,
        device=device,
        shard=f"{index}/{count}",
        output=output,
        batch_size=plan.batch_size,
        profile=profile and shard_path(profile, index, count),
    )
