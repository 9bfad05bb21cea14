"""What an inference run is to do: its inputs, its groups of images, and all that its results depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from picopose_cli.base.environment import machine, package_versions
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256, require_writable
from picopose_cli.base.option_fields import options_record
from picopose_cli.base.options import InferOptions, resolve_data_dir
from picopose_cli.base.tasks import ImageTask
from picopose_cli.base.types import AnyTarget, Detection, ObjectInfo, Provenance
from picopose_cli.bop.datasets import Dataset, mesh_path, models_info_path, open_dataset, read_object_infos
from picopose_cli.bop.detections import find_detections, ground_truth_detections, read_detections
from picopose_cli.bop.result_names import parse_result_name, result_file_name
from picopose_cli.bop.targets import choose_targets, targets_kind
from picopose_cli.network.bundled import bundled_weights
from picopose_cli.network.checkpoint import read_config
from picopose_cli.network.devices import choose_devices, choose_precision, device_name, suggest_batch_size
from picopose_cli.pose.pipeline import ImageGroup, plan_groups, shard_of_groups
from picopose_cli.rendering.meshes import mesh_sha256
from picopose_cli.runs.journal import journal_path, read_header
from picopose_cli.runs.merge import shard_path, shard_paths
from picopose_cli.runs.report import SHOWN_LINES, InferReport
from picopose_cli.runs.tasks import keep_what_counts, make_image_tasks, tasks_sha256
from picopose_cli.templates.bank import bank_path, read_provenance

METHOD = "picopose"
RELEASED_WEIGHTS = "the checkpoint that the PicoPose authors released (see weights/README.md)"
_NOT_IN_HEADER = {
    "data_dir", "templates", "detections", "weights", "targets", "output", "workers", "limit", "restart", "profile",
    "cache", "refine",
}  # fmt: skip
"""Options that change no result, or whose content the header has as a digest."""
_HEADER_VERSIONS = ("picopose", "torch", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class Plan:
    """What a run is to do, known before the network is loaded."""

    options: InferOptions
    dataset: Dataset
    targets: Sequence[AnyTarget]
    output: Path
    templates: Path
    objects: set[int]
    """Of the detected objects those with a usable bank."""
    meshes: dict[int, tuple[Path, str]]
    """Of these objects the mesh and its unit, where poses are refined; none where they are not."""
    symmetric: dict[int, ObjectInfo]
    """The data set's objects that have symmetries."""
    weights: Path
    devices: Sequence[str]
    precision: str
    batch_size: int
    groups: Sequence[ImageGroup]
    """Of this run's shard."""

    @property
    def tasks(self) -> list[ImageTask]:
        """The images of this run's shard, in order."""
        return [task for group in self.groups for task in group]


def make_plan(options: InferOptions, console: Console) -> tuple[Plan, InferReport]:
    """Read all that says what is to be done, and begin the report.

    Raises PicoPoseError when data set, targets, detections, banks, weights, device or output cannot be used.
    """
    data_dir = resolve_data_dir(options.data_dir)
    dataset = open_dataset(options.dataset, data_dir, split=options.split)
    devices = choose_devices(options.device)
    precision = choose_precision(options.precision, devices[0])
    output = _output(options, dataset)
    targets, targets_source = choose_targets(dataset, options.targets)
    console.print(f"targets: {targets_source}")
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
        weights_sha256=file_sha256(weights),
        targets=targets_source,
        detections="ground-truth masks" if source is None else str(source),
        problems=problems,
    )
    templates = options.templates or dataset.root / "templates"
    banks = _usable_banks(dataset, templates, tasks, report)
    usable = {obj_id for obj_id, bank in banks.items() if bank is not None}
    tasks = keep_what_counts(tasks, targets, usable)
    meshes = _meshes(options, dataset, banks)
    symmetric = _symmetric_objects(dataset, report)
    report.refinement = _refinement_text(options.rounds, banks, meshes)
    batch_size = _batch_size(options, shard_paths(output, len(devices)), weights, devices[0])
    found = options.detections if source is None else file_sha256(source)
    report.header = _header(report, dataset, devices[0], batch_size) | {
        "shard": options.part and list(options.part),
        "refinement": report.refinement,
        "targets": targets_kind(targets),
        "detections_sha256": found,
        "images": len(tasks),
        "tasks_sha256": tasks_sha256(tasks),
        "banks": {str(obj_id): bank and _digest(asdict(bank)) for obj_id, bank in banks.items()},
        "symmetries": {str(obj_id): _symmetries_digest(symmetric[obj_id]) for obj_id in banks if obj_id in symmetric},
    }
    sequential = options.timing == "sequential"
    groups = [(task,) for task in tasks] if sequential else plan_groups(tasks, batch_size)
    if options.part is not None:
        groups = shard_of_groups(groups, options.part[0] - 1, options.part[1])
    return Plan(
        options,
        dataset,
        targets,
        output,
        templates,
        usable,
        meshes,
        symmetric,
        weights,
        devices,
        precision,
        batch_size,
        groups,
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
    options: InferOptions, dataset: Dataset, data_dir: Path, targets: Sequence[AnyTarget]
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


def _meshes(
    options: InferOptions, dataset: Dataset, banks: Mapping[int, Provenance | None]
) -> dict[int, tuple[Path, str]]:
    """Return the mesh and its unit of each object whose poses can be refined; none without rounds of refinement.

    Raises PicoPoseError where refinement was asked for and a mesh is missing.
    """
    meshes: dict[int, tuple[Path, str]] = {}
    for obj_id, bank in banks.items() if options.rounds else ():
        if bank is None:
            continue
        try:
            if bank.mesh_unit == "images":
                raise PicoPoseError("its bank is made from images, not from a mesh")
            meshes[obj_id] = mesh_path(dataset, obj_id), bank.mesh_unit
        except PicoPoseError as error:
            if options.refine is not None:
                what, fix = f"object {obj_id} cannot be refined: {error.what}", "put it there, or pass --refine 0"
                raise PicoPoseError(what, where=error.where, fix=fix) from error
    return meshes


def _refinement_text(rounds: int, banks: Mapping[int, Provenance | None], meshes: Collection[int]) -> str:
    """Return how poses are refined, which the results depend on."""
    without = [str(obj_id) for obj_id, bank in banks.items() if bank is not None and obj_id not in meshes]
    but = f", but for objects {', '.join(without)}, whose meshes are missing" if rounds and without else ""
    return f"{rounds if meshes else 0} rounds{but}"


def _batch_size(options: InferOptions, outputs: Sequence[Path], weights: Path, device: str) -> int:
    """Return the batch size that is asked for, else that of the run that is continued, else what the device takes."""
    if options.batch_size is not None:
        return options.batch_size
    headers = [] if options.restart else [read_header(journal_path(output)) for output in outputs]
    begun = [header["batch_size"] for header in headers if header and isinstance(header.get("batch_size"), int)]
    return begun[0] if begun else suggest_batch_size(device, read_config(weights))


def _symmetric_objects(dataset: Dataset, report: InferReport) -> dict[int, ObjectInfo]:
    """Return the objects that have symmetries; without models_info.json none is known, and a broken one is recorded."""
    if not models_info_path(dataset).is_file():
        return {}
    try:
        infos = read_object_infos(dataset)
    except PicoPoseError as error:
        report.problems.append(f"symmetries are not used: {error}")
        return {}
    return {obj_id: info for obj_id, info in infos.items() if info.is_symmetric}


def _symmetries_digest(info: ObjectInfo) -> str:
    lines = [[axis.tolist(), offset.tolist()] for axis, offset in info.symmetries_continuous]
    return _digest({"discrete": info.symmetries_discrete.tolist(), "continuous": lines})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
