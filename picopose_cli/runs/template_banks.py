"""The banks of a data set: which are to be made, which can be kept, and making them in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.locks import remove_stale_lock, writer_lock
from picopose_cli.base.options import RenderTemplatesOptions, resolve_dataset
from picopose_cli.base.types import Provenance, TemplateBank
from picopose_cli.base.workers import WorkerDiedError, run_jobs
from picopose_cli.bop.datasets import (
    Dataset,
    mesh_path,
    models_info_path,
    object_ids,
    open_dataset,
    read_object_infos,
)
from picopose_cli.reconstruction.plain_folder import is_plain_folder
from picopose_cli.reconstruction.reading import find_photographs, load_views
from picopose_cli.rendering.gl import GL_KINDS
from picopose_cli.rendering.meshes import mesh_sha256, read_mesh, read_shape, unit_in_file
from picopose_cli.templates.bank import bank_path, read_provenance, write_bank
from picopose_cli.templates.build import render_bank
from picopose_cli.templates.from_images import IMAGES_KIND, image_object_ids, images_sha256, read_image_bank

_PHOTOGRAPHS = "; photographs "
"""In the detail of a bank's renderer, before the number of views that are photographs and the digest of these."""


@dataclass(frozen=True)
class BankJob:
    """One bank to make. `source` is the mesh file, or the folder of all template images."""

    obj_id: int
    source: Path
    bank: Path
    renderer: str
    """`images`, a renderer, or `auto` until one is chosen."""
    mesh_unit: str
    diameter_m: float | None = None
    """The object's diameter of models_info.json, None where it is not known."""
    reference: Path | None = None
    """The folder of reference images that take the place of renders; None: none of them do."""


@dataclass
class RenderReport:
    """The outcome of a run, by object id; `renderer` is None when nothing had to be rendered."""

    written: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    """Existing banks made from the same mesh with the same options."""
    failed: dict[int, str] = field(default_factory=dict)
    """Objects without a valid bank, each with the reason."""
    notes: dict[int, str] = field(default_factory=dict)
    """What is doubtful about the meshes of objects with a bank, such as missing colours."""
    unchecked: str = ""
    """Why no mesh's size was compared with models_info.json; empty where they were compared."""
    renderer: str | None = None
    renderer_detail: str = ""
    folder: str = ""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """1 when an object could not be used."""
        return 1 if self.failed else 0


def plan_banks(options: RenderTemplatesOptions, report: RenderReport) -> tuple[Path, list[BankJob]]:
    """Return the templates folder and a job for each chosen object, sorted by object id.

    Diameters that are not known are reported. Raises PicoPoseError when the data set, the folder of images or an object
    id does not exist.
    """
    folder, sources, diameters_m = options.templates, dict[int, Path](), dict[int, float]()
    if options.dataset is not None:
        name, data_dir = resolve_dataset(options.dataset, options.data_dir)
        dataset = open_dataset(name, data_dir, models=options.models, need_images=False)
        folder = folder or dataset.root / "templates"
        if options.from_images is None:
            sources = {obj_id: mesh_path(dataset, obj_id) for obj_id in object_ids(dataset)}
            diameters_m = _known_diameters(dataset, report)
    if options.from_images is not None:
        sources = dict.fromkeys(image_object_ids(options.from_images), options.from_images)
    assert folder is not None  # the options require it without a data set
    jobs = []
    for obj_id in _chosen_ids(sources, options):
        source, diameter_m = sources[obj_id], diameters_m.get(obj_id)
        renderer, unit = options.renderer, options.mesh_unit
        if options.from_images is not None:
            renderer = unit = IMAGES_KIND
        elif diameter_m is not None:
            unit = unit_in_file(source, unit, diameter_m)
        jobs.append(
            BankJob(obj_id, source, bank_path(folder, obj_id), renderer, unit, diameter_m, options.from_reference)
        )
    if options.from_reference is not None and is_plain_folder(options.from_reference) and len(jobs) > 1:
        what = f"shows one object, but there are {len(jobs)} to render"
        raise PicoPoseError(what, where=options.from_reference, fix="choose it with --object-ids")
    return folder, jobs


def _known_diameters(dataset: Dataset, report: RenderReport) -> dict[int, float]:
    """Return the diameters in metres of models_info.json by object id; none, with the reason reported, without it."""
    if not models_info_path(dataset).is_file():
        report.unchecked = f"{dataset.models_dir} has no models_info.json"
        return {}
    try:
        return {obj_id: info.diameter_m for obj_id, info in read_object_infos(dataset).items()}
    except PicoPoseError as error:
        report.unchecked = str(error)
        return {}


def _chosen_ids(sources: dict[int, Path], options: RenderTemplatesOptions) -> list[int]:
    unknown = sorted(set(options.object_ids) - set(sources))
    if unknown:
        raise PicoPoseError(
            f"--object-ids names {', '.join(map(str, unknown))}, which does not exist",
            where=options.dataset or options.from_images,
            fix=f"choose from {', '.join(map(str, sources))}",
        )
    return sorted(set(options.object_ids)) or list(sources)


def jobs_to_do(jobs: Sequence[BankJob], overwrite: bool, report: RenderReport) -> list[BankJob]:
    """Return the jobs whose bank must be made; those kept, and those whose source is unreadable, are reported."""
    todo = []
    for job in jobs:
        try:
            sha256 = images_sha256(job.source, job.obj_id) if job.renderer == IMAGES_KIND else mesh_sha256(job.source)
        except PicoPoseError as error:
            report.failed[job.obj_id] = str(error)
            continue
        try:
            photographs = _photographs_digest(job)
        except PicoPoseError as error:
            report.failed[job.obj_id] = str(error)
            continue
        made = None if overwrite else _current_bank(job, sha256, photographs)
        if made is None:
            todo.append(job)
        else:
            remove_stale_lock(job.bank)
            report.kept.append(job.obj_id)
            report.notes |= {job.obj_id: made.notes} if made.notes else {}
    return todo


def photographs_text(bank: Path) -> str:
    """Return how many views of a bank are photographs, empty for none; raises PicoPoseError as `read_provenance`."""
    counted, _, _ = read_provenance(bank).renderer_detail.partition(_PHOTOGRAPHS)[2].rpartition(" ")
    return counted and f"{counted} views are photographs"


def _photographs_digest(job: BankJob) -> str:
    """Return the digest of the reference images that take the place of renders; empty where none do.

    Raises PicoPoseError when the reference images of the object cannot be used.
    """
    if job.reference is None:
        return ""
    return find_photographs(job.reference, job.obj_id, "auto").sha256()[:16]


def _current_bank(job: BankJob, source_sha256: str, photographs: str) -> Provenance | None:
    """Return the provenance of a bank in this format, made from the same mesh, read in the same unit; None without one.

    Another renderer's bank is current unless the renderer was chosen by name: they agree to a fraction of a pixel.
    An unreadable bank is not current.
    """
    try:
        made = read_provenance(job.bank)
    except PicoPoseError:
        return None
    same = (made.source_sha256, made.mesh_unit) == (source_sha256, job.mesh_unit)
    same &= made.renderer_detail.partition(_PHOTOGRAPHS)[2].rpartition(" ")[2] == photographs
    return made if same and job.renderer in ("auto", made.renderer) else None


def make_banks(
    jobs: Sequence[BankJob], renderer: str, workers: int, report: RenderReport, on_progress: Callable[[int], None]
) -> None:
    """Make the banks of the jobs with one renderer and report each as written or failed.

    `on_progress(n)` is called with the number of objects done since the last call.
    """
    jobs = [replace(job, renderer=renderer) for job in jobs]
    # One worker would only cost its start; OpenGL, which can kill its process, always gets one.
    in_process = renderer not in GL_KINDS and min(workers, len(jobs)) == 1
    for index, outcome in run_jobs(make_bank, jobs, workers, in_process=in_process):
        add_bank(report, jobs[index], outcome)
        on_progress(1)
    report.written.sort()


def add_bank(report: RenderReport, job: BankJob, outcome: str | PicoPoseError) -> None:
    """Report a bank as written, with what is doubtful about its mesh, or as failed."""
    if isinstance(outcome, PicoPoseError):
        report.failed[job.obj_id] = failure_text(outcome, job.renderer)
    else:
        report.written.append(job.obj_id)
        report.notes |= {job.obj_id: outcome} if outcome else {}


def make_bank(job: BankJob, share: int) -> str:
    """Make and write the bank of one object on `share` cores; return what is doubtful about its mesh.

    Raises PicoPoseError when the object cannot be used or the bank cannot be written.
    """
    if job.renderer == IMAGES_KIND:
        bank = read_image_bank(job.source, job.obj_id)
    else:
        bank = render_bank(
            job.obj_id,
            job.source,
            mesh_unit=job.mesh_unit,
            kind=job.renderer,
            threads=share,
            known_diameter_m=job.diameter_m,
        )
        if job.reference is not None:
            bank = _with_photographs(bank, job)
    with writer_lock(job.bank):  # for what a killed run has left of it
        write_bank(job.bank, bank)
    return bank.provenance.notes


def _with_photographs(bank: TemplateBank, job: BankJob) -> TemplateBank:
    """Return a bank with reference images in place of renders.

    Raises PicoPoseError when there are none that can be used.
    """
    from picopose_cli.reconstruction.reference_templates import use_photographs  # scipy is slow to import

    assert job.reference is not None
    views, problems = load_views(find_photographs(job.reference, job.obj_id, "auto"), lambda _: None)
    if not views:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(problems.items())[:1]) or "there are none"
        raise PicoPoseError(f"no reference image can be used ({first})", where=job.reference, fix="check the folder")
    mesh, shape = read_mesh(job.source, job.mesh_unit), read_shape(job.source, job.mesh_unit)
    bank, count = use_photographs(bank, mesh, shape, views)
    counted = f"{_PHOTOGRAPHS}{count} of {len(bank.masks)} {_photographs_digest(job)}"
    detail = bank.provenance.renderer_detail + counted
    return replace(bank, provenance=replace(bank.provenance, renderer_detail=detail))


def failure_text(error: PicoPoseError, renderer: str) -> str:
    """Return why an object has no bank; for an OpenGL process that died, with the renderer to use instead."""
    if renderer in GL_KINDS and isinstance(error, WorkerDiedError):
        return f"{error}, rendering with {renderer}; pass --renderer software"
    return str(error)
