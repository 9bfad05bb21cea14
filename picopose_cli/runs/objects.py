"""What a run uses of each detected object: its template bank, its mesh and its symmetries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import InferOptions
from picopose_cli.base.types import ObjectInfo, Provenance
from picopose_cli.bop.datasets import Dataset, mesh_path, models_info_path, read_object_infos
from picopose_cli.rendering.mesh_size import DIAMETER_RATIOS
from picopose_cli.rendering.meshes import mesh_sha256
from picopose_cli.templates.bank import bank_path, read_diameter_m, read_provenance

_SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class ObjectInputs:
    """One object whose poses can be estimated."""

    obj_id: int
    bank: Path
    provenance: Provenance
    mesh: Path | None
    """Rendered to refine poses, in the unit of `provenance`; None: poses are not refined."""
    symmetries: ObjectInfo | None
    """None where no symmetry is known."""


def read_objects(
    dataset: Dataset, options: InferOptions, obj_ids: Sequence[int]
) -> tuple[dict[int, ObjectInputs | None], list[str]]:
    """Return the inputs of each object, None where its bank cannot be used, and what is wrong with the files.

    Raises PicoPoseError when no bank at all can be used, and when refinement is asked for and a mesh is missing.
    """
    folder = options.templates or dataset.root / "templates"
    infos, info_problems = _read_infos(dataset)
    banks, problems = _read_banks(dataset, folder, obj_ids, infos)
    symmetric = {obj_id: info for obj_id, info in infos.items() if info.is_symmetric}
    objects: dict[int, ObjectInputs | None] = dict.fromkeys(obj_ids)
    for obj_id, provenance in banks.items():
        mesh = _mesh_to_refine(dataset, options, obj_id, provenance)
        objects[obj_id] = ObjectInputs(obj_id, bank_path(folder, obj_id), provenance, mesh, symmetric.get(obj_id))
    return objects, problems + info_problems


def refinement_text(rounds: int, objects: Iterable[ObjectInputs]) -> str:
    """Return how poses are refined; results depend on it."""
    refined = {found.obj_id: found.mesh is not None for found in objects}
    missing = [str(obj_id) for obj_id, has_mesh in refined.items() if not has_mesh]
    exception = f", except objects {', '.join(missing)}, whose meshes are missing" if rounds and missing else ""
    return f"{rounds if any(refined.values()) else 0} rounds{exception}"


def _read_banks(
    dataset: Dataset, folder: Path, obj_ids: Sequence[int], infos: Mapping[int, ObjectInfo]
) -> tuple[dict[int, Provenance], list[str]]:
    banks, problems = {}, []
    for obj_id in obj_ids:
        try:
            provenance = _matching_bank(dataset, folder, obj_id)
            if obj_id in infos and provenance.mesh_unit != "images":
                _check_bank_size(bank_path(folder, obj_id), infos[obj_id].diameter_m)
            banks[obj_id] = provenance
        except PicoPoseError as error:
            problems.append(f"object {obj_id}: {error}")
    if not banks:
        why = "; ".join(problems[:_SHOWN_PROBLEMS]) or "there are no detections"
        raise PicoPoseError(f"no object can be estimated ({why})", where=folder, fix="run picopose render-templates")
    return banks, problems


def _matching_bank(dataset: Dataset, folder: Path, obj_id: int) -> Provenance:
    """Return the provenance of an object's bank; where the mesh is present too, the bank must be made from it."""
    path = bank_path(folder, obj_id)
    provenance = read_provenance(path)
    try:
        mesh = mesh_path(dataset, obj_id)
    except PicoPoseError:
        return provenance  # banks without meshes are fine: nothing to compare with
    if provenance.mesh_unit != "images" and mesh_sha256(mesh) != provenance.source_sha256:
        fix = f"run picopose render-templates --object-ids {obj_id} again"
        raise PicoPoseError(f"the bank was made from another mesh than {mesh}", where=path, fix=fix)
    return provenance


def _mesh_to_refine(dataset: Dataset, options: InferOptions, obj_id: int, provenance: Provenance) -> Path | None:
    """Return the mesh that refinement renders; None without refinement, and by default where the mesh is missing.

    Raises PicoPoseError when refinement is asked for and the mesh is missing.
    """
    if not options.rounds:
        return None
    try:
        if provenance.mesh_unit == "images":
            raise PicoPoseError("its bank is made from images, not from a mesh")
        return mesh_path(dataset, obj_id)
    except PicoPoseError as error:
        if options.refine is None:
            return None
        what, fix = f"object {obj_id} cannot be refined: {error.what}", "put the mesh there, or pass --refine 0"
        raise PicoPoseError(what, where=error.where, fix=fix) from error


def _check_bank_size(path: Path, diameter_m: float) -> None:
    """Raise PicoPoseError when a bank's object cannot have a diameter of models_info.json: another unit, most likely.

    The largest distance of two vertices is at most the diagonal of the box, and at least its part in one axis of three.
    """
    diagonal_m = read_diameter_m(path)
    if DIAMETER_RATIOS[0] / 3**0.5 <= diameter_m / diagonal_m <= DIAMETER_RATIOS[1]:
        return
    raise PicoPoseError(
        f"its object measures {diagonal_m * 1000:.4g} mm, but models_info.json has {diameter_m * 1000:.4g} mm",
        where=path,
        fix="render it again with the unit of the meshes: picopose render-templates --overwrite --mesh-unit UNIT",
    )


def _read_infos(dataset: Dataset) -> tuple[dict[int, ObjectInfo], list[str]]:
    """Return the data set's models_info.json by object id: nothing without it or, a problem, where it is broken."""
    if not models_info_path(dataset).is_file():
        return {}, []
    try:
        return read_object_infos(dataset), []
    except PicoPoseError as error:
        return {}, [f"symmetries are not used: {error}"]
