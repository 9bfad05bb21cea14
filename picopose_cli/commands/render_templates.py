"""`picopose render-templates`: one template bank an object, from its mesh or from ready-made template images."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes, require_writable
from picopose_cli.base.options import RenderTemplatesOptions, resolve_data_dir
from picopose_cli.base.processes import WorkerDiedError, run_jobs
from picopose_cli.base.types import TemplateBank
from picopose_cli.bop.datasets import mesh_path, object_ids, open_dataset
from picopose_cli.pictures.overlays import contact_sheet, encode_png
from picopose_cli.rendering.gl import GL_KINDS
from picopose_cli.rendering.meshes import mesh_sha256
from picopose_cli.rendering.renderers import choose_renderer
from picopose_cli.templates.bank import bank_path, read_bank, read_provenance, write_bank
from picopose_cli.templates.build import render_bank
from picopose_cli.templates.from_images import IMAGES_KIND, image_object_ids, images_sha256, read_image_bank


@dataclass(frozen=True)
class Job:
    """One bank to make. `source` is the mesh file, or the folder of all template images."""

    obj_id: int
    source: Path
    bank: Path
    renderer: str
    """`images`, a renderer, or `auto` until it is chosen."""
    mesh_unit: str
    contact_sheet: bool


@dataclass
class RenderReport:
    """What a run did, by object id; `renderer` is None when nothing had to be rendered."""

    written: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    """Banks that were there already, made from the same mesh in the same way."""
    failed: dict[int, str] = field(default_factory=dict)
    """Objects without a bank now, each with the reason."""
    renderer: str | None = None
    renderer_detail: str = ""
    folder: str = ""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """1 when an object could not be used."""
        return 1 if self.failed else 0


def run(options: RenderTemplatesOptions) -> RenderReport:
    """Make the banks of a data set's objects; see `picopose render-templates --help`.

    Raises PicoPoseError when nothing can be done: data set, object ids, renderer or templates folder unusable.
    """
    console, started = Console(markup=False, highlight=False, soft_wrap=True), time.perf_counter()
    folder, jobs = _plan(options)
    require_writable(bank_path(folder, jobs[0].obj_id))
    report = RenderReport(folder=str(folder))
    todo = [job for job in jobs if not _keep(job, options.overwrite, report)]
    if todo:
        todo = _with_renderer(todo, report, console)
        _make_all(todo, options.workers, report, console)
    report.seconds = time.perf_counter() - started
    _print_summary(console, report)
    return report


def _plan(options: RenderTemplatesOptions) -> tuple[Path, list[Job]]:
    """Return the templates folder and what there is to make, in the order of the object ids."""
    folder, sources = options.templates, {}
    if options.dataset is not None:
        data_dir = resolve_data_dir(options.data_dir)
        dataset = open_dataset(options.dataset, data_dir, models=options.models, need_images=False)
        folder = folder or dataset.root / "templates"
        if options.from_images is None:
            sources = {obj_id: mesh_path(dataset, obj_id) for obj_id in object_ids(dataset)}
    if options.from_images is not None:
        sources = dict.fromkeys(image_object_ids(options.from_images), options.from_images)
    assert folder is not None  # the options demand it where there is no data set
    renderer, unit = options.renderer, options.mesh_unit
    if options.from_images is not None:
        renderer = unit = IMAGES_KIND
    return folder, [
        Job(obj_id, sources[obj_id], bank_path(folder, obj_id), renderer, unit, options.contact_sheet)
        for obj_id in _chosen_ids(sources, options)
    ]


def _chosen_ids(sources: dict[int, Path], options: RenderTemplatesOptions) -> list[int]:
    unknown = sorted(set(options.object_ids) - set(sources))
    if unknown:
        there = ", ".join(map(str, sources))
        raise PicoPoseError(
            f"--object-ids names {', '.join(map(str, unknown))}, which is not there",
            where=options.dataset or options.from_images,
            fix=f"choose from {there}",
        )
    return sorted(set(options.object_ids)) or list(sources)


def _keep(job: Job, overwrite: bool, report: RenderReport) -> bool:
    """Record a job whose bank fits already, or whose source cannot be read; return whether that settles it."""
    try:
        sha256 = images_sha256(job.source, job.obj_id) if job.renderer == IMAGES_KIND else mesh_sha256(job.source)
    except PicoPoseError as error:
        report.failed[job.obj_id] = str(error)
        return True
    if overwrite or not _fits(job, sha256):
        return False
    report.kept.append(job.obj_id)
    return True


def _fits(job: Job, source_sha256: str) -> bool:
    """Return whether the bank is there, of this format, and made from the same mesh, read in the same unit.

    One that another renderer made fits unless the renderer was asked for by name: they agree to a fraction of a pixel.
    A bank that cannot be read does not fit: it is made again.
    """
    try:
        made = read_provenance(job.bank)
        same = (made.source_sha256, made.mesh_unit) == (source_sha256, job.mesh_unit)
        if not same or job.renderer not in ("auto", made.renderer):
            return False
        if job.contact_sheet and not _sheet_path(job).exists():
            _write_sheet(job, read_bank(job.bank))
    except PicoPoseError:
        return False
    return True


def _with_renderer(jobs: list[Job], report: RenderReport, console: Console) -> list[Job]:
    """Return the jobs with the renderer that they will use; raises PicoPoseError when the one asked for fails."""
    report.renderer = jobs[0].renderer
    if report.renderer != IMAGES_KIND:
        choice = choose_renderer(report.renderer)
        report.renderer, report.renderer_detail = choice.kind, choice.detail
        console.print(f"renderer: {choice}", soft_wrap=True)
    return [replace(job, renderer=report.renderer) for job in jobs]


def _make_all(jobs: list[Job], workers: int, report: RenderReport, console: Console) -> None:
    # A single process would only have to be started; GL, which can take it down with it, always gets one.
    in_process = report.renderer not in GL_KINDS and min(workers, len(jobs)) == 1
    with _progress(console) as progress:
        bar = progress.add_task("objects", total=len(jobs))
        for index, outcome in run_jobs(make_bank, jobs, workers, in_process=in_process):
            obj_id = jobs[index].obj_id
            if isinstance(outcome, PicoPoseError):
                report.failed[obj_id] = failure_text(outcome, report.renderer)
            else:
                report.written.append(obj_id)
            progress.advance(bar)
    report.written.sort()


def failure_text(error: PicoPoseError, renderer: str | None) -> str:
    """Return why an object has no bank; of a GL process that died, all that is known is what it was doing."""
    if renderer in GL_KINDS and isinstance(error, WorkerDiedError):
        return f"{error}, rendering with {renderer}; pass --renderer software"
    return str(error)


def make_bank(job: Job, share: int) -> float:
    """Make and write the bank of one object, in a worker process or here; return the seconds it took.

    `share` is how many of the workers' cores it may use. Raises PicoPoseError when the object cannot be used.
    """
    started = time.perf_counter()
    if job.renderer == IMAGES_KIND:
        bank = read_image_bank(job.source, job.obj_id)
    else:
        bank = render_bank(job.obj_id, job.source, mesh_unit=job.mesh_unit, kind=job.renderer, threads=share)
    write_bank(job.bank, bank)
    if job.contact_sheet:
        _write_sheet(job, bank)
    return time.perf_counter() - started


def _sheet_path(job: Job) -> Path:
    return job.bank.with_suffix(".png")


def _write_sheet(job: Job, bank: TemplateBank) -> None:
    atomic_write_bytes(_sheet_path(job), encode_png(contact_sheet(bank.crops_rgb)))


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _print_summary(console: Console, report: RenderReport) -> None:
    counts = f"{len(report.written)} written, {len(report.kept)} kept, {len(report.failed)} failed"
    console.print(f"{counts} in {report.seconds:.1f} s -> {report.folder}", soft_wrap=True)
    for obj_id, reason in sorted(report.failed.items()):
        console.print(f"object {obj_id}: {reason}", soft_wrap=True)
