"""What `picopose doctor` finds of a data set: everything that `infer` and `score` would need of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.guide_options import DoctorOptions
from picopose_cli.base.option_fields import command_line
from picopose_cli.base.options import InferOptions, RenderTemplatesOptions, resolve_dataset
from picopose_cli.base.types import AnyTarget, ImageTarget, ObjectInfo, Target
from picopose_cli.bop.datasets import (
    Dataset,
    mesh_path,
    models_info_path,
    object_ids,
    open_dataset,
    read_object_infos,
    read_scene_cameras,
)
from picopose_cli.bop.detection_set import DetectionSet
from picopose_cli.bop.detections import find_detections, read_detections
from picopose_cli.bop.known_datasets import known_splits
from picopose_cli.bop.targets import choose_targets, detected_targets, needs_detected_targets, targets_by_image
from picopose_cli.rendering.mesh_size import check_diameter
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.runs.doctor_machine import BANK_MB, GREEN, RED, YELLOW, DoctorRow, config_of, disk_row, feature_mb
from picopose_cli.runs.objects import read_objects

_SHOWN = 3
OnProgress = Callable[[int, int], None]


def dataset_rows(options: DoctorOptions, on_progress: OnProgress = lambda _done, _total: None) -> Iterator[DoctorRow]:
    """Yield what is found of the data set of the options; `on_progress(done, total)` counts its meshes."""
    assert options.dataset is not None
    name, data_dir = resolve_dataset(options.dataset, options.data_dir)
    try:
        dataset = open_dataset(name, data_dir, split=options.split)
    except PicoPoseError as error:
        yield DoctorRow("data set", RED, f"{error.where}: {error.what}", _download(options, "base,models,test"))
        return
    scenes = len(dataset.scene_ids())
    yield DoctorRow(
        "data set", GREEN, f"{dataset.split_dir}: {scenes} scenes, images in {dataset.layout.image_folder}/"
    )
    yield from _model_rows(dataset, options, on_progress)
    detections = yield from _detection_file_rows(dataset, data_dir, options)
    targets = yield from _target_rows(dataset, options, detections)
    yield _image_row(dataset, targets, options)
    if detections is not None and targets:
        yield _coverage_row(targets, detections)
    yield from _bank_rows(dataset, options, targets, detections)
    yield _truth_row(dataset)


def _download(options: DoctorOptions, what: str) -> str:
    name = resolve_dataset(options.dataset or "", options.data_dir)[0]
    if not known_splits(name):
        return "see Inputs in the README for the folders that are needed"
    folder = [] if options.data_dir is None else ["--data-dir", str(options.data_dir)]
    return shlex.join(["picopose", "download", name, "--what", what, *folder])


def _model_rows(dataset: Dataset, options: DoctorOptions, on_progress: OnProgress) -> Iterator[DoctorRow]:
    try:
        ids = object_ids(dataset)
    except PicoPoseError as error:
        yield DoctorRow("models", RED, str(error), _download(options, "models"))
        return
    infos: Mapping[int, ObjectInfo] = {}
    if not models_info_path(dataset).is_file():
        text = f"there is no {models_info_path(dataset)}: symmetries and diameters are not known"
        yield DoctorRow("models_info", YELLOW, text, _download(options, "models"))
    else:
        try:
            infos = read_object_infos(dataset)
        except PicoPoseError as error:
            yield DoctorRow("models_info", RED, str(error), _download(options, "models"))
    broken, notes = [], []
    for index, obj_id in enumerate(ids, start=1):
        path = mesh_path(dataset, obj_id)
        try:
            mesh = read_mesh(path)
            if obj_id in infos:
                check_diameter(mesh, "mm", infos[obj_id].diameter_m, path)
            notes += [f"object {obj_id}: {note}" for note in mesh.notes]
        except PicoPoseError as error:
            broken.append(str(error))
        on_progress(index, len(ids))
    known = next((row.object_ids for row in known_splits(dataset.name)), ())
    missing = sorted(set(known) - set(ids))
    if broken:
        yield DoctorRow("models", RED, _some(broken), "correct the meshes, or pass --mesh-unit to the commands")
    elif missing:
        text = f"{len(ids)} in {dataset.models_dir}, missing: {', '.join(map(str, missing[:10]))}"
        yield DoctorRow("models", RED, text, _download(options, "models"))
    else:
        sizes = "sizes fit models_info.json" if infos else "sizes are plausible in mm"
        yield DoctorRow("models", GREEN, f"{len(ids)} meshes in {dataset.models_dir}, {sizes}")
    if notes:
        yield DoctorRow("colours", YELLOW, _some(notes), "add the textures that the meshes name")


def _detection_file_rows(
    dataset: Dataset, data_dir: Path, options: DoctorOptions
) -> Generator[DoctorRow, None, DetectionSet | None]:
    """Yield what is found of the detections, and return them."""
    try:
        path = options.detections or find_detections(dataset, data_dir)
        found = read_detections(path)
    except PicoPoseError as error:
        fix = error.fix if not known_splits(dataset.name) or options.detections else _download(options, "detections")
        yield DoctorRow("detections", RED, f"{error.where or ''} {error.what}".strip(), fix or "")
        return None
    count, problems = sum(map(len, found.by_image.values())), len(found.problems)
    text = f"{count} of objects in {len(found.by_image)} images: {path}" + (
        f"; {problems} unusable" if problems else ""
    )
    level = RED if not count else YELLOW if problems else GREEN
    yield DoctorRow("detections", level, text, "" if level == GREEN else f"picopose check {shlex.quote(str(path))}")
    return found


def _target_rows(
    dataset: Dataset, options: DoctorOptions, detections: DetectionSet | None
) -> Generator[DoctorRow, None, Sequence[AnyTarget]]:
    """Yield what is found of the targets, and return them."""
    try:
        if needs_detected_targets(dataset, None) and detections is not None and detections.by_image:
            chosen = detected_targets(dataset, detections.by_image)
        else:
            chosen = choose_targets(dataset)
    except PicoPoseError as error:
        fix = _download(options, "base") if known_splits(dataset.name) else error.fix or ""
        yield DoctorRow("targets", RED, error.what, fix)
        return ()
    yield DoctorRow("targets", GREEN, f"{len(chosen.targets)}: {chosen.source}")
    return chosen.targets


def _image_row(dataset: Dataset, targets: Sequence[AnyTarget], options: DoctorOptions) -> DoctorRow:
    """Compare the target images, else all images that have a camera, with the files on disk."""
    problems, images, present = [], sorted(targets_by_image(targets)), set(dataset.scene_ids())
    for scene_id in sorted({scene_id for scene_id, _ in images} & present or ([] if images else present)):
        try:
            cameras = read_scene_cameras(dataset, scene_id)
        except PicoPoseError as error:
            problems.append(str(error))
            continue
        if not targets:
            images += [(scene_id, im_id) for im_id in sorted(cameras)]
        wanted = [im_id for scene, im_id in images if scene == scene_id]
        problems += [
            f"scene {scene_id}, image {im_id} has no valid camera"
            for im_id in wanted
            if im_id not in cameras or cameras[im_id].problem is not None
        ]
    missing = [image for image in images if image[0] not in present or not dataset.image_path(*image).is_file()]
    problems += [f"scene {scene_id}, image {im_id} is missing" for scene_id, im_id in missing]
    if problems:
        return DoctorRow("images", RED, f"{len(images)} are wanted; {_some(problems)}", _download(options, "test"))
    return DoctorRow("images", GREEN, f"all {len(images)} are there, with their cameras")


def _coverage_row(targets: Sequence[AnyTarget], detections: DetectionSet) -> DoctorRow:
    covered = 0
    for target in targets:
        found = detections.by_image.get((target.scene_id, target.im_id), [])
        covered += any(isinstance(target, ImageTarget) or one.obj_id == target.obj_id for one in found)
    text = f"{covered} of {len(targets)} targets ({covered / len(targets):.1%}) have a detection"
    level = RED if not covered else YELLOW if covered < len(targets) else GREEN
    fix = "" if level == GREEN else "picopose check on the detections lists the others"
    return DoctorRow("coverage", level, text, fix)


def _bank_rows(
    dataset: Dataset, options: DoctorOptions, targets: Sequence[AnyTarget], detections: DetectionSet | None
) -> Iterator[DoctorRow]:
    ids = {target.obj_id for target in targets if isinstance(target, Target)}
    if not ids and detections is not None:
        ids = {one.obj_id for found in detections.by_image.values() for one in found}
    folder = dataset.root / "templates"
    assert options.dataset is not None
    infer = InferOptions(options.dataset, options.data_dir)
    missing = len(ids)
    try:
        objects, problems = read_objects(dataset, infer, sorted(ids))
        missing = sum(found is None for found in objects.values())
    except PicoPoseError as error:
        problems = [error.what]
    if problems:
        render = RenderTemplatesOptions(options.dataset, options.data_dir)
        fix = shlex.join(["picopose", "render-templates", *command_line(render)])
        yield DoctorRow("banks", RED, f"{len(ids) - missing} of {len(ids)} objects have one that can be used", fix)
    elif ids:
        yield DoctorRow("banks", GREEN, f"all {len(ids)} objects have one in {folder}")
    stored = {path.name.partition(".")[0] for path in folder.glob("obj_*.features-*.h5")}
    per_object = feature_mb(config_of(options.weights))
    text = f"{len(stored)} objects have some in {folder}; others are computed at the first run"
    yield DoctorRow("features", GREEN, text)
    needed = missing * BANK_MB + max(len(ids) - len(stored), 0) * per_object
    yield disk_row("disk", dataset.root, needed, f"banks and features will need {needed / 1000:.1f} GB")


def _truth_row(dataset: Dataset) -> DoctorRow:
    if dataset.has_private_gt:
        text = "BOP keeps it private: results can be scored at https://bop.felk.cvut.cz only"
        return DoctorRow("ground truth", GREEN, text)
    if not dataset.has_public_gt:
        return DoctorRow("ground truth", YELLOW, "there is none: results cannot be scored", "add scene_gt.json")
    return DoctorRow("ground truth", GREEN, "public: results can be scored here")


def _some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
