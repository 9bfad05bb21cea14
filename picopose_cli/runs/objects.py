"""What a run uses of each detected object: its template bank, its mesh and its symmetries."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.option_fields import command_line
from picopose_cli.base.options import InferOptions, RenderTemplatesOptions
from picopose_cli.base.types import ObjectInfo, Provenance
from picopose_cli.bop.datasets import Dataset, mesh_path, models_info_path, read_object_infos
from picopose_cli.bop.layouts import mesh_files
from picopose_cli.rendering.mesh_size import DIAMETER_RATIOS
from picopose_cli.rendering.meshes import mesh_sha256
from picopose_cli.templates.bank import bank_path, read_diameter_m, read_provenance

_SHOWN_PROBLEMS = 2
_SHOWN_IDS = 10


@dataclass(frozen=True)
class ObjectInputs:
    """One object whose poses can be estimated."""

    obj_id: int
    bank: Path
    provenance: Provenance
    mesh: Path | None
    """Rendered to refine poses and to compare with depth, in the unit of `provenance`; None: poses stay as they are."""
    symmetries: ObjectInfo | None
    """None where no symmetry is known."""


def read_objects(
    dataset: Dataset, options: InferOptions, obj_ids: Sequence[int]
) -> tuple[dict[int, ObjectInputs | None], list[str]]:
    """Return the inputs of each object, None where its bank cannot be used, and what is wrong with the files.

    Raises PicoPoseError when no bank at all can be used, and when refinement is asked for and a mesh is missing.
    """
    folder = _templates_folder(dataset, options)
    infos, info_problems = _read_infos(dataset)
    banks, problems = _read_banks(dataset, options, obj_ids, infos)
    symmetric = {obj_id: info for obj_id, info in infos.items() if info.is_symmetric}
    objects: dict[int, ObjectInputs | None] = dict.fromkeys(obj_ids)
    for obj_id, provenance in banks.items():
        mesh = _mesh_to_refine(dataset, options, obj_id, provenance)
        objects[obj_id] = ObjectInputs(obj_id, bank_path(folder, obj_id), provenance, mesh, symmetric.get(obj_id))
    return objects, problems + info_problems


def symmetry_warnings(dataset: Dataset) -> list[str]:
    """Return a warning where there is no models_info.json, which describes symmetries."""
    path = models_info_path(dataset)
    if path.is_file():
        return []
    return [f"there is no {path}: every object is estimated as one without symmetries"]


def refinement_text(rounds: int, objects: Iterable[ObjectInputs]) -> str:
    """Return how poses are refined; results depend on it."""
    refined = {found.obj_id: found.mesh is not None for found in objects}
    missing = [str(obj_id) for obj_id, has_mesh in refined.items() if not has_mesh]
    exception = f", except objects {', '.join(missing)}, whose meshes are missing" if rounds and missing else ""
    return f"{rounds if any(refined.values()) else 0} rounds{exception}"


def _read_banks(
    dataset: Dataset, options: InferOptions, obj_ids: Sequence[int], infos: Mapping[int, ObjectInfo]
) -> tuple[dict[int, Provenance], list[str]]:
    folder = _templates_folder(dataset, options)
    missing = _missing_banks(dataset, options, [one for one in obj_ids if not bank_path(folder, one).is_file()])
    banks, broken = {}, []
    for obj_id in (one for one in obj_ids if bank_path(folder, one).is_file()):
        try:
            provenance = _matching_bank(dataset, options, obj_id)
            if obj_id in infos and provenance.mesh_unit != "images":
                _check_bank_size(bank_path(folder, obj_id), infos[obj_id].diameter_m, options)
            banks[obj_id] = provenance
        except PicoPoseError as error:
            broken.append(f"object {obj_id}: {error}")
    if not banks:
        raise PicoPoseError("no object can be estimated: " + "; ".join([*missing, *broken[:_SHOWN_PROBLEMS]]))
    return banks, missing + broken


def _templates_folder(dataset: Dataset, options: InferOptions) -> Path:
    return options.templates or dataset.root / "templates"


def _missing_banks(dataset: Dataset, options: InferOptions, obj_ids: Sequence[int]) -> list[str]:
    """Return what is missing of the objects without a bank, and the command that makes the banks."""
    folder, meshes = _templates_folder(dataset, options), mesh_files(dataset.models_dir)
    without_mesh = [obj_id for obj_id in obj_ids if obj_id not in meshes]
    to_make = [obj_id for obj_id in obj_ids if obj_id in meshes]
    lines = []
    if to_make:
        lines.append(f"{folder} has no bank of {_objects(to_make)}; run {_render_command(options)}")
    if without_mesh:
        lines.append(
            f"{folder} has no bank of {_objects(without_mesh)}, and {dataset.models_dir} no mesh to make it from; pass "
            "the folder of the banks with --templates, or detections of other objects"
        )
    return lines


def _objects(obj_ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, obj_ids[:_SHOWN_IDS])) + (", ..." if obj_ids[_SHOWN_IDS:] else "")
    return f"object {shown}" if len(obj_ids) == 1 else f"{len(obj_ids)} objects ({shown})"


def _render_command(options: InferOptions, **changes: Any) -> str:
    """Return the command line that makes the banks of a run's objects."""
    render = RenderTemplatesOptions(options.dataset, options.data_dir, options.templates, **changes)
    return shlex.join(["picopose", "render-templates", *command_line(render)])


def _matching_bank(dataset: Dataset, options: InferOptions, obj_id: int) -> Provenance:
    """Return the provenance of an object's bank; where the mesh is present too, the bank must be made from it."""
    path = bank_path(_templates_folder(dataset, options), obj_id)
    make_again = f"run {_render_command(options, object_ids=(obj_id,))}"
    try:
        provenance = read_provenance(path)
    except PicoPoseError as error:
        raise PicoPoseError(error.what, where=error.where, fix=make_again) from error
    try:
        mesh = mesh_path(dataset, obj_id)
    except PicoPoseError:
        return provenance  # banks without meshes are fine: nothing to compare with
    if provenance.mesh_unit != "images" and mesh_sha256(mesh) != provenance.source_sha256:
        raise PicoPoseError(f"the bank was made from another mesh than {mesh}", where=path, fix=make_again)
    return provenance


def _mesh_to_refine(dataset: Dataset, options: InferOptions, obj_id: int, provenance: Provenance) -> Path | None:
    """Return the mesh that refinement renders; None without refinement and depth, and by default where it is missing.

    Raises PicoPoseError when refinement is asked for and the mesh is missing.
    """
    if not options.rounds and options.depth == "off":
        return None
    try:
        if provenance.mesh_unit == "images":
            raise PicoPoseError("its bank is made from images, not from a mesh")
        return mesh_path(dataset, obj_id)
    except PicoPoseError as error:
        if not options.refine:
            return None
        what, fix = f"object {obj_id} cannot be refined: {error.what}", "put the mesh there, or pass --refine 0"
        raise PicoPoseError(what, where=error.where, fix=fix) from error


def _check_bank_size(path: Path, diameter_m: float, options: InferOptions) -> None:
    """Raise PicoPoseError when a bank's object cannot have a diameter of models_info.json: another unit, most likely.

    The largest distance of two vertices is at most the diagonal of the box, and at least its part in one axis of three.
    """
    diagonal_m = read_diameter_m(path)
    if DIAMETER_RATIOS[0] / 3**0.5 <= diameter_m / diagonal_m <= DIAMETER_RATIOS[1]:
        return
    raise PicoPoseError(
        f"its object measures {diagonal_m * 1000:.4g} mm, but models_info.json has {diameter_m * 1000:.4g} mm",
        where=path,
        fix=f"render it again with the unit of the meshes: {_render_command(options, overwrite=True)} --mesh-unit UNIT",
    )


def _read_infos(dataset: Dataset) -> tuple[dict[int, ObjectInfo], list[str]]:
    """Return the data set's models_info.json by object id: nothing without it or, a problem, where it is broken."""
    if not models_info_path(dataset).is_file():
        return {}, []
    try:
        return read_object_infos(dataset), []
    except PicoPoseError as error:
        return {}, [f"symmetries are not used: {error}"]
