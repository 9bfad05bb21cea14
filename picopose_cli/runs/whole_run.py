"""The steps of `picopose run`: what of them exists, what is to be made, and what that will take."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from picopose_cli.base.environment import available_cores
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256
from picopose_cli.base.guide_options import RunOptions
from picopose_cli.base.options import InferOptions, RenderTemplatesOptions, resolve_dataset
from picopose_cli.base.types import ImageTarget
from picopose_cli.bop.datasets import Dataset, open_dataset
from picopose_cli.bop.detections import select_detections
from picopose_cli.bop.result_names import result_file_name
from picopose_cli.bop.targets import targets_by_image
from picopose_cli.network.devices import choose_device
from picopose_cli.runs.doctor_machine import BANK_MB, config_of, feature_mb
from picopose_cli.runs.identity import is_same_run, run_identity
from picopose_cli.runs.inputs import METHOD, read_inputs
from picopose_cli.runs.journal import journal_path
from picopose_cli.runs.report import read_report
from picopose_cli.runs.target_detections import read_target_detections
from picopose_cli.runs.template_banks import RenderReport, jobs_to_do, plan_banks

_BANK_S = 4.0
"""One core renders the bank of an object of 50,000 textured faces."""
_POSE_MS_PER_MB, _FEATURES_S_PER_MB = {"cpu": 4.0, "cuda": 0.2}, {"cpu": 0.06, "cuda": 0.002}
"""By the size of an object's features, which stands for that of the network: rough, from the times of the released and
of the shipped network on two cores and on an H100 (benchmarks/README.md)."""


@dataclass(frozen=True)
class WholeRun:
    """Options of the steps, and where their files go."""

    dataset: Dataset
    data_dir: Path
    render: RenderTemplatesOptions
    infer: InferOptions
    output: Path
    page: Path


def open_whole_run(options: RunOptions) -> WholeRun:
    """Return the steps of a run; raises PicoPoseError when there is no such data set."""
    name, data_dir = resolve_dataset(options.dataset, options.data_dir)
    dataset = open_dataset(name, data_dir, split=options.split)
    output = options.output or Path(result_file_name(METHOD, dataset.name, dataset.result_split))
    render = RenderTemplatesOptions(options.dataset, options.data_dir)
    infer = InferOptions(
        options.dataset,
        options.data_dir,
        detections=options.detections,
        weights=options.weights,
        split=options.split,
        targets=options.targets,
        output=output,
        depth=options.depth,
        device=options.device,
    )
    return WholeRun(dataset, data_dir, render, infer, output, output.with_suffix(".html"))


def plan_lines(run: WholeRun) -> Iterator[str]:
    """Yield a line for each step: what is there, what will be made, and about how long it takes and what it stores.

    Raises PicoPoseError when a step cannot be done: no meshes, no detections, no targets.
    """
    report = RenderReport()
    folder, jobs = plan_banks(run.render, report)
    todo = len(jobs_to_do(jobs, overwrite=False, report=report))
    seconds, disk_mb = todo * _BANK_S / available_cores(), float(todo * BANK_MB)
    yield f"render-templates  {len(jobs) - todo} of {len(jobs)} banks are in {folder}{_cost(todo, seconds, disk_mb)}"
    yield _infer_line(run, folder)
    yield f"check             the faults of {run.output}"
    yield f"score             {_score_text(run.dataset)}"
    yield f"report            {run.page}"
    free = shutil.disk_usage(run.dataset.root).free / 1e9
    yield f"{free:.1f} GB are free in {run.dataset.root}; the same command continues a stopped run"


def finished_output(run: WholeRun) -> bool:
    """Return whether the result file is there, whole, and of a run with the same inputs and options.

    Raises PicoPoseError when the inputs cannot be used.
    """
    inputs = read_inputs(run.infer)
    try:
        report = read_report(run.output)
        same = is_same_run(run_identity(inputs), report.identity)
        return same and not journal_path(run.output).is_file() and file_sha256(run.output) == report.output_sha256
    except PicoPoseError:
        return False


def task_of(run: WholeRun) -> str:
    """Return `bop19` or `bop24` for the task that a finished run was for."""
    return str(read_report(run.output).identity["targets"])


def _infer_line(run: WholeRun, folder: Path) -> str:
    found = read_target_detections(run.dataset, run.data_dir, run.infer)
    poses, ids = 0, set[int]()
    for image, wanted in targets_by_image(found.targets.targets).items():
        detected = found.detections.by_image.get(image, [])
        for target in wanted:
            most = target.max_estimates if isinstance(target, ImageTarget) else None
            poses += len(select_detections([target], detected, run.infer.extra)[:most])
            ids |= {one.obj_id for one in detected} if isinstance(target, ImageTarget) else {target.obj_id}
    stored = {path.name.partition(".")[0] for path in folder.glob("obj_*.features-*.h5")}
    missing = max(len(ids) - len(stored), 0)
    size_mb, kind = feature_mb(config_of(run.infer.weights)), choose_device(run.infer.device).partition(":")[0]
    seconds = missing * size_mb * _FEATURES_S_PER_MB[kind] + poses * size_mb * _POSE_MS_PER_MB[kind] / 1000
    begun = ", continues" if journal_path(run.output).is_file() else ""
    what = f"{poses} poses of {len(ids)} objects -> {run.output}{begun}"
    return f"infer             {what}{_cost(poses, seconds, missing * size_mb)}"


def _cost(count: int, seconds: float, disk_mb: float) -> str:
    if not count:
        return ", nothing to do"
    disk = f", {disk_mb / 1000:.2f} GB" if disk_mb else ""
    return f"; about {timedelta(seconds=max(round(seconds), 1))}{disk}"


def _score_text(dataset: Dataset) -> str:
    if dataset.has_private_gt:
        return "not here: BOP keeps the ground truth private; upload the file at https://bop.felk.cvut.cz"
    return "with the ground truth on disk" if dataset.has_public_gt else "not possible: there is no ground truth"
