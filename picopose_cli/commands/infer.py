"""`picopose infer`: the poses of every detection of a split, as a BOP result file with a report beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing
from functools import partial

from rich.console import Console

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import MESH_UNITS, InferOptions
from picopose_cli.base.tasks import ImageTask
from picopose_cli.network.local_matcher import load_local_features
from picopose_cli.pictures.result_overlays import draw_result_overlays
from picopose_cli.pose.depth_refinement import DepthRefiner
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.pose.pipeline import PipelineOptions, estimate_groups
from picopose_cli.pose.refine import Refiner
from picopose_cli.runs.devices import run_on_devices
from picopose_cli.runs.inputs import RunInputs, load_image, notes, read_inputs
from picopose_cli.runs.onboarding import onboard, open_matcher
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
    inputs = read_inputs(options)
    for line in notes(inputs):
        console.print(line)
    if len(inputs.devices) > 1:
        report = run_on_devices(inputs, console, started)
    else:
        with open_run(inputs, started) as opened:
            if opened.groups:
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
    inputs, options = run.inputs, run.inputs.options
    matcher = open_matcher(inputs)
    with recording(options.profile) as record, progress_bar(console) as progress:
        onboard(matcher.store, run, progress)
        meshes = {
            found.obj_id: (found.mesh, found.provenance.mesh_unit)
            for found in inputs.usable_objects.values()
            if found.mesh is not None
        }
        renderer, refines = EstimateRenderer(meshes), bool(meshes) and options.rounds > 0
        silhouettes = matcher.store.silhouettes
        on_depth = DepthRefiner(renderer, matcher.device, silhouettes) if options.depth == "on" else None
        total, left = _detections(inputs.tasks), _detections(task for group in run.groups for task in group)
        bar = add_bar(progress, "poses", total, "poses", total - left)
        results = estimate_groups(
            run.groups,
            load_image,
            matcher,
            PipelineOptions(
                inputs.batch_size, options.workers, options.timing == "sequential", inputs.estimates_extra_detections
            ),
            refiner=Refiner(load_local_features(matcher.device), renderer, options.rounds, matcher.store.silhouettes)
            if refines
            else None,
            depth_refiner=on_depth,
            record=record,
            on_progress=partial(progress.advance, bar),
        )
        run.begin_estimating()
        with closing(results):
            for result in results:
                finished_at = time.perf_counter()
                run.keep(result)
                record("journal", finished_at, time.perf_counter(), result.task.name)
    run.report.problems += [f"object {obj_id} is not refined: {error}" for obj_id, error in renderer.errors.items()]


def _detections(tasks: Iterable[ImageTask]) -> int:
    return sum(len(task.detections) for task in tasks)
