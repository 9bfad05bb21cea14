"""`picopose render-templates`: one template bank per object, from its mesh or from ready-made template images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from rich.console import Console

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import require_writable
from picopose_cli.base.options import RenderTemplatesOptions
from picopose_cli.pictures.contact_sheets import write_contact_sheet
from picopose_cli.rendering.renderers import choose_renderer
from picopose_cli.runs.cluster import open_cluster
from picopose_cli.runs.cluster_banks import make_banks_on_cluster
from picopose_cli.runs.progress import add_bar, progress_bar
from picopose_cli.runs.template_banks import BankJob, RenderReport, jobs_to_do, make_banks, photographs_text, plan_banks
from picopose_cli.templates.bank import read_bank
from picopose_cli.templates.from_images import IMAGES_KIND


def run(options: RenderTemplatesOptions) -> RenderReport:
    """Make the banks of a data set's objects; see `picopose render-templates --help`.

    Raises PicoPoseError when nothing can be done: data set, object ids, renderer or templates folder unusable.
    """
    console, started = Console(markup=False, highlight=False, soft_wrap=True), time.perf_counter()
    report = RenderReport()
    folder, jobs = plan_banks(options, report)
    require_writable(jobs[0].bank)
    report.folder = str(folder)
    todo = jobs_to_do(jobs, options.overwrite, report)
    if todo:
        # The nodes of a cluster may have other GPUs, or none: `auto` would choose by this machine's.
        wanted = "software" if options.ray is not None and options.renderer == "auto" else todo[0].renderer
        renderer = _choose_renderer(wanted, report, console)
        with (
            nullcontext() if options.ray is None else open_cluster(options.ray) as cluster,
            progress_bar(console) as progress,
        ):
            bar = add_bar(progress, "banks", len(todo), "objects")
            advance = partial(progress.advance, bar)
            if cluster is None:
                make_banks(todo, renderer, options.workers, report, advance)
            else:
                make_banks_on_cluster(todo, renderer, cluster, report, advance)
    _print_photographs(console, jobs, report)
    if options.contact_sheet:
        _write_contact_sheets(jobs, report)
    report.seconds = time.perf_counter() - started
    _print_summary(console, report)
    return report


def _choose_renderer(requested: str, report: RenderReport, console: Console) -> str:
    """Return and report the renderer to use; raises PicoPoseError when the requested one fails its test."""
    report.renderer = requested
    if requested != IMAGES_KIND:
        choice = choose_renderer(requested)
        report.renderer, report.renderer_detail = choice.kind, choice.detail
        console.print(f"renderer: {choice}", soft_wrap=True)
    return report.renderer


def _print_photographs(console: Console, jobs: Sequence[BankJob], report: RenderReport) -> None:
    """Print how many views of each bank are reference images, where there are any."""
    for job in jobs if any(job.reference for job in jobs) else ():
        if job.obj_id not in report.failed:
            console.print(f"object {job.obj_id}: {photographs_text(job.bank)}", soft_wrap=True)


def _write_contact_sheets(jobs: Sequence[BankJob], report: RenderReport) -> None:
    """Write the contact sheets of new banks, and of kept ones that have none."""
    for job in jobs:
        sheet = job.bank.with_suffix(".png")
        if job.obj_id in report.written or (job.obj_id in report.kept and not sheet.exists()):
            try:
                write_contact_sheet(sheet, read_bank(job.bank).crops_rgb)
            except PicoPoseError as error:
                report.failed[job.obj_id] = str(error)


def _print_summary(console: Console, report: RenderReport) -> None:
    counts = f"{len(report.written)} written, {len(report.kept)} kept, {len(report.failed)} failed"
    console.print(f"{counts} in {report.seconds:.1f} s -> {report.folder}", soft_wrap=True)
    for obj_id, reason in sorted(report.failed.items()):
        console.print(f"object {obj_id}: {reason}", soft_wrap=True)
    for obj_id, note in sorted(report.notes.items()):
        console.print(f"object {obj_id}, warning: {note}", soft_wrap=True)
    if report.unchecked:
        console.print(f"the unit of the meshes is not checked: {report.unchecked}", soft_wrap=True)
