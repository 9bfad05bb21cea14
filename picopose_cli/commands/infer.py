"""`picopose infer`: the poses of every detection of a split, as a BOP result file with a report beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial

from rich.console import Console
from rich.progress import Progress

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import MESH_UNITS, InferOptions
from picopose_cli.base.tasks import ImageTask
from picopose_cli.pictures.result_overlays import draw_result_overlays
from picopose_cli.pose.pipeline import OnProgress
from picopose_cli.pose.template_store import TemplateStore
from picopose_cli.runs.cluster import open_cluster
from picopose_cli.runs.cluster_estimates import device_on, estimate_on_cluster
from picopose_cli.runs.devices import run_on_devices
from picopose_cli.runs.inputs import RunInputs, detected_objects, load_image, notes, read_inputs
from picopose_cli.runs.onboarding import onboard, open_estimation, open_matcher, pipeline_options
from picopose_cli.runs.progress import add_bar, progress_bar
from picopose_cli.runs.report import InferReport, summary_lines
from picopose_cli.runs.run import Run, open_run
from picopose_cli.runs.trace import recording


def run(options: InferOptions) -> InferReport:
    """Estimate the poses of a split; see `picopose infer --help`.

    Raises PicoPoseError when nothing can be done: data set, targets, detections, weights or output unusable, or another
    run's journal beside the output; StoppedError when Ctrl-C or SIGTERM ended it.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    started = time.perf_counter()
    with nullcontext() if options.ray is None else open_cluster(options.ray) as cluster:
        inputs = read_inputs(options, None if cluster is None else device_on(cluster, options))
        for line in notes(inputs):
            console.print(line)
        if len(inputs.devices) > 1:
            report = run_on_devices(inputs, console, started)
        else:
            with open_run(inputs, started) as opened:
                if opened.groups and cluster is not None:
                    with progress_bar(console) as progress:
                        estimate_on_cluster(opened, cluster, progress)
                elif opened.groups:
                    _estimate(opened, console)
                report = opened.finish()
    for line in summary_lines(report):
        console.print(line)
    if options.overlays and report.estimates:
        _draw_overlays(inputs, console)
    return report


def _draw_overlays(inputs: RunInputs, console: Console) -> None:
    """Draw some images; the results are complete, so that what cannot be drawn is only said."""
    folder = inputs.output.with_name(f"{inputs.output.stem}_overlays")
    units = {found.provenance.mesh_unit for found in inputs.usable_objects.values()} & set(MESH_UNITS)
    try:
        with progress_bar(console) as progress:
            bar = add_bar(progress, "overlays", min(inputs.options.overlays, len(inputs.tasks)), "images")
            advance = partial(progress.advance, bar)
            count, unit = inputs.options.overlays, next(iter(units), "mm")
            draw_result_overlays(
                inputs.dataset,
                inputs.output,
                folder,
                targets=inputs.targets,
                count=count,
                mesh_unit=unit,
                on_progress=advance,
            )
        console.print(f"overlays: {folder}")
    except PicoPoseError as error:
        console.print(f"overlays: not drawn: {error}")


def _estimate(run: Run, console: Console) -> None:
    """Estimate the images that the journal does not have yet."""
    inputs = run.inputs
    matcher = open_matcher(inputs)
    with recording(inputs.options.profile) as record, progress_bar(console) as progress:
        _onboard(run, matcher.store, progress)
        estimation = open_estimation(inputs, matcher)
        total, left = _detections(inputs.tasks), _detections(task for group in run.groups for task in group)
        bar = add_bar(progress, "poses", total, "poses", total - left)
        run.begin_estimating()
        results = estimation.estimate(
            run.groups,
            load_image,
            pipeline_options(inputs),
            record=record,
            on_progress=partial(progress.advance, bar),
        )
        with closing(results):
            for result in results:
                finished_at = time.perf_counter()
                run.keep(result)
                record("journal", finished_at, time.perf_counter(), result.task.name)
    run.report.problems += estimation.problems()


def _onboard(run: Run, store: TemplateStore, progress: Progress) -> None:
    """Add every object that the images left to estimate need; damaged banks are problems of the run."""

    @contextmanager
    def shown(obj_id: int, views: int) -> Iterator[OnProgress]:
        bar = add_bar(progress, f"object {obj_id}", views, "views")
        yield partial(progress.advance, bar)
        progress.remove_task(bar)

    started = time.perf_counter()
    needed = detected_objects(task for group in run.groups for task in group)
    run.report.problems += onboard(store, run.inputs, needed, shown)
    run.report.onboarding_s = time.perf_counter() - started


def _detections(tasks: Iterable[ImageTask]) -> int:
    return sum(len(task.detections) for task in tasks)
