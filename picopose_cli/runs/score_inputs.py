"""Everything that the scores of a result file are computed from: estimates, ground truth, cameras, depth and meshes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from picopose_cli.base.cameras import Camera, CameraModel, Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import ScoreOptions, resolve_dataset
from picopose_cli.base.symmetries import symmetry_transforms
from picopose_cli.base.types import AnyTarget, Array, GroundTruth, ImageTarget, Mesh, ObjectInfo, Target
from picopose_cli.bop.datasets import (
    Dataset,
    mesh_path,
    models_info_path,
    open_dataset,
    read_object_infos,
    read_scene_cameras,
)
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.image_headers import read_image_header
from picopose_cli.bop.images import read_depth_m, read_image_rgb
from picopose_cli.bop.known_datasets import known_splits, toolkit_split
from picopose_cli.bop.result_names import parse_result_name
from picopose_cli.bop.results import ResultTable, read_results
from picopose_cli.bop.targets import ChosenTargets, choose_targets
from picopose_cli.rendering.closed_meshes import FaceTable, make_face_table, render_table
from picopose_cli.rendering.mesh_size import check_diameter, exact_diameter_m
from picopose_cli.rendering.meshes import read_shape, unit_in_file
from picopose_cli.scoring.pair_errors import ObjectModel
from picopose_cli.scoring.parallel import ImageJob, ImageScorer
from picopose_cli.scoring.selection import Estimates, ImageKey, Selection, select_detection, select_localisation
from picopose_cli.scoring.vsd import BoxXyxy

_SHOWN_ROWS = 10
UPLOAD_SITE = "https://bop.felk.cvut.cz"


@dataclass(frozen=True)
class ScoreInputs:
    """The images of one result file to score, the scorer with the objects' models, and remarks for the user.

    `mean_time_s` per image, None when the file has no times.
    """

    dataset: Dataset
    targets: ChosenTargets
    jobs: tuple[ImageJob, ...]
    scorer: ImageScorer
    mean_time_s: float | None
    notes: tuple[str, ...]


def read_score_inputs(path: Path, options: ScoreOptions) -> ScoreInputs:
    """Read a result file and what it is compared with; raises PicoPoseError when any of it cannot be used."""
    table = read_results(path)
    mean_time_s = table.mean_time_s()
    dataset = _open_dataset(path, options)
    targets = choose_targets(dataset, options.targets)
    selection = _select(dataset, table, targets)
    localisation = targets.kind == "bop19"
    cameras = _read_cameras(dataset, selection)
    no_vsd_reason = _find_no_vsd_reason(dataset, cameras) if localisation else None
    jobs = _make_jobs(dataset, selection, cameras, with_vsd=localisation and no_vsd_reason is None)
    if not localisation and not any(item.is_target.any() for job in jobs for item in job.objects):
        raise PicoPoseError(
            "no target image has an object that is visible enough",
            where=dataset.split_dir,
            fix="check visib_fract in scene_gt_info",
        )
    notes = [*_row_notes(table), *_selection_notes(selection, len(table.score))]
    if _computes_infos(dataset):
        missing = models_info_path(dataset)
        notes.append(f"there is no {missing}: diameters are computed from the meshes, and no object has symmetries")
    if no_vsd_reason is not None:
        notes.append(f"VSD and AR are not computed: {no_vsd_reason}")
    scorer = _load_scorer(dataset, jobs, options, with_averages=options.per_object and localisation)
    return ScoreInputs(dataset, targets, tuple(jobs), scorer, mean_time_s, tuple(notes))


def _open_dataset(path: Path, options: ScoreOptions) -> Dataset:
    """Open the data set of the options, else that of the file's name; it must have ground truth."""
    name, split = options.dataset, options.split
    if name is None:
        parts = parse_result_name(path)
        name, split = parts.dataset, split or parts.split_folder
    name, data_dir = resolve_dataset(name, options.data_dir)
    private = _private_error(path, name, split)
    try:
        dataset = open_dataset(name, data_dir, split=split, models=options.models)
    except PicoPoseError as error:
        raise private or error from error
    if dataset.has_gt_files():
        return dataset
    raise private or PicoPoseError(
        f"{dataset.split} has no ground truth (scene_gt{dataset.layout.suffix}.json)",
        where=dataset.split_dir,
        fix="scores need it: unpack or add the annotations of the split",
    )


def _private_error(path: Path, name: str, split: str | None) -> PicoPoseError | None:
    """Return the error for a split whose ground truth is private, None when it is public."""
    rows = known_splits(name)
    kind = toolkit_split(split or (rows[0].split if rows else ""))[0]
    if not any(kind in row.private_splits for row in rows):
        return None
    return PicoPoseError(
        f"the ground truth of {name}'s {kind} images is private, so the file cannot be scored here",
        where=path,
        fix=f"upload it at {UPLOAD_SITE}, or score results of the public validation images with --split val",
    )


def _select(dataset: Dataset, table: ResultTable, chosen: ChosenTargets) -> Selection:
    estimates = Estimates(table.scene_id, table.im_id, table.obj_id, table.score, table.T_cam_from_obj)
    instances = _read_instances(dataset, chosen.targets)
    images = [target for target in chosen.targets if isinstance(target, ImageTarget)]
    if images:
        return select_detection(estimates, images, instances)
    objects = [target for target in chosen.targets if isinstance(target, Target)]
    return select_localisation(estimates, objects, instances)


def _read_instances(dataset: Dataset, targets: Iterable[AnyTarget]) -> dict[ImageKey, list[GroundTruth]]:
    wanted = {(target.scene_id, target.im_id) for target in targets}
    found = {}
    for scene_id in sorted({scene_id for scene_id, _ in wanted}):
        for im_id, instances in read_ground_truth(dataset, scene_id).items():
            if (scene_id, im_id) in wanted:
                found[scene_id, im_id] = instances
    missing = sorted(wanted - set(found))
    if missing:
        raise PicoPoseError(
            f"image {missing[0][1]} is a target but has no ground truth ({len(missing)} such images)",
            where=dataset.annotation_path(missing[0][0], "scene_gt"),
            fix="unpack the annotations of the split again",
        )
    return found


def _row_notes(table: ResultTable) -> list[str]:
    if not table.not_finite:
        return []
    numbers = ", ".join(map(str, table.not_finite[:_SHOWN_ROWS])) + (", ..." if table.not_finite[_SHOWN_ROWS:] else "")
    return [f"{len(table.not_finite)} rows have a number that is not finite and match nothing (rows {numbers})"]


def _selection_notes(selection: Selection, rows: int) -> list[str]:
    notes = []
    items = [item for objects in selection.images.values() for item in objects if item.is_target.any()]
    found = sum(len(item.scores) > 0 for item in items)
    if found < len(items):
        notes.append(f"{found} of {len(items)} targets (an object in an image) have estimates")
    if selection.not_targets:
        notes.append(
            f"{selection.not_targets} of {rows} rows are of images or objects that are not targets; they are ignored"
        )
    if selection.beyond_limit:
        notes.append(f"{selection.beyond_limit} of {rows} rows are beyond the counted number of estimates")
    return notes


def _read_cameras(dataset: Dataset, selection: Selection) -> dict[ImageKey, tuple[CameraModel, Camera]]:
    """Return the model and the camera of each image; raises PicoPoseError when one has none."""
    of_scenes = {
        scene_id: read_scene_cameras(dataset, scene_id) for scene_id in {scene for scene, _ in selection.images}
    }
    found = {}
    for scene_id, im_id in selection.images:
        camera = of_scenes[scene_id].get(im_id)
        if camera is None or camera.model is None:
            problem = "no camera" if camera is None else camera.problem
            path = dataset.annotation_path(scene_id, "scene_camera")
            raise PicoPoseError(
                f"image {im_id}: {problem}", where=path, fix="scores need the camera of each target image"
            )
        found[scene_id, im_id] = camera.model, camera
    return found


def _find_no_vsd_reason(dataset: Dataset, images: Mapping[ImageKey, tuple[CameraModel, Camera]]) -> str | None:
    """Return why VSD cannot be computed, or None; raises PicoPoseError when only some depth images are missing."""
    if not dataset.has_vsd:
        return f"BOP defines no VSD for {dataset.name}"
    if any(not isinstance(model, Pinhole) for model, _ in images.values()):
        return "the images are of fisheye cameras"
    missing = [image for image in images if not dataset.depth_path(*image).is_file()]
    if len(missing) == len(images):
        return f"there are no depth images ({dataset.depth_path(*missing[0])})"
    if missing:
        raise PicoPoseError(
            f"this depth image is missing ({len(missing)} of {len(images)} are)",
            where=dataset.depth_path(*missing[0]),
            fix="unpack the depth images of the split again",
        )
    return None


def _make_jobs(
    dataset: Dataset, selection: Selection, cameras: Mapping[ImageKey, tuple[CameraModel, Camera]], *, with_vsd: bool
) -> list[ImageJob]:
    jobs = []
    usual_size_hw: tuple[int, int] | None = None
    for (scene_id, im_id), objects in selection.images.items():
        model, camera = cameras[scene_id, im_id]
        if with_vsd and camera.depth_problem is not None:
            path = dataset.annotation_path(scene_id, "scene_camera")
            raise PicoPoseError(f"image {im_id}: {camera.depth_problem}", where=path, fix="correct it: VSD needs depth")
        depth_path = dataset.depth_path(scene_id, im_id) if with_vsd else None
        size_hw = dataset.known_size_hw(scene_id) or usual_size_hw
        if size_hw is None:
            size_hw = usual_size_hw = _first_size_hw(dataset.image_path(scene_id, im_id), depth_path)
        jobs.append(ImageJob(scene_id, im_id, model, size_hw, objects, depth_path, camera.depth_scale))
    return jobs


@dataclass(frozen=True)
class _MeshRenderer:
    """Renders the depth of objects whose vertices are in the camera frame (see scoring.pair_errors.RenderDepth)."""

    tables: Mapping[int, FaceTable]

    def __call__(self, obj_id: int, T_cam_from_obj: Array, xyz_cam_m: Array, K: Array, box_xyxy: BoxXyxy) -> Array:
        return render_table(self.tables[obj_id], T_cam_from_obj, xyz_cam_m, K, box_xyxy)


def _load_scorer(
    dataset: Dataset, jobs: Sequence[ImageJob], options: ScoreOptions, *, with_averages: bool
) -> ImageScorer:
    obj_ids = sorted({item.obj_id for job in jobs for item in job.objects})
    paths = {obj_id: mesh_path(dataset, obj_id, evaluation=True) for obj_id in obj_ids}
    known = {} if _computes_infos(dataset) else read_object_infos(dataset)
    unit = options.mesh_unit
    units = {
        obj_id: unit_in_file(path, unit, known[obj_id].diameter_m) if obj_id in known else unit
        for obj_id, path in paths.items()
    }
    meshes = {obj_id: read_shape(path, units[obj_id]) for obj_id, path in paths.items()}
    infos = _read_infos(dataset, meshes)
    for obj_id, path in paths.items():
        check_diameter(meshes[obj_id], units[obj_id], infos[obj_id].diameter_m, path)
    models = {
        obj_id: ObjectModel(obj_id, mesh.vertices_m, infos[obj_id].diameter_m, symmetry_transforms(infos[obj_id]))
        for obj_id, mesh in meshes.items()
    }
    renderer = _MeshRenderer({one: make_face_table(mesh.vertices_m, mesh.faces) for one, mesh in meshes.items()})
    return ImageScorer(models, dataset.vsd_delta_m, _DepthReader(dataset), renderer, with_averages)


def _read_infos(dataset: Dataset, meshes: Mapping[int, Mesh]) -> dict[int, ObjectInfo]:
    """Return diameters and symmetries from models_info.json; an own data set without it has those of its meshes."""
    if _computes_infos(dataset):
        no_symmetries = np.zeros((0, 4, 4))
        return {one: ObjectInfo(one, exact_diameter_m(mesh), no_symmetries, ()) for one, mesh in meshes.items()}
    infos = read_object_infos(dataset)
    unknown = [obj_id for obj_id in meshes if obj_id not in infos]
    if unknown:
        raise PicoPoseError(
            f"object {unknown[0]} has no entry, so its diameter and symmetries are unknown",
            where=models_info_path(dataset),
            fix="add the object, or unpack the models of the data set again",
        )
    return infos


def _computes_infos(dataset: Dataset) -> bool:
    return not models_info_path(dataset).is_file() and not known_splits(dataset.name)


def _first_size_hw(image_path: Path, depth_path: Path | None) -> tuple[int, int]:
    """Return (height, width) px of the first image of a sensor that BOP does not know."""
    if image_path.is_file() or depth_path is None:
        return _size_hw(read_image_rgb(image_path))
    return _size_hw(read_depth_m(depth_path, 1.0))


def _size_hw(pixels: Array) -> tuple[int, int]:
    return int(pixels.shape[0]), int(pixels.shape[1])


@dataclass(frozen=True)
class _DepthReader:
    """Reads the depth (H,W) of an image in metres (see scoring.parallel.ReadDepth).

    Raises PicoPoseError when its size is neither that of its image nor the sensor's in BOP's table.
    """

    dataset: Dataset

    def __call__(self, job: ImageJob, path: Path) -> Array:
        depth_m = read_depth_m(path, job.depth_scale)
        image_path = self.dataset.image_path(job.scene_id, job.im_id)
        header = read_image_header(image_path) if image_path.is_file() else None
        found, needed = _size_hw(depth_m), job.size_hw if header is None else header.size_hw
        if found not in (needed, self.dataset.known_size_hw(job.scene_id)):
            sizes = f"the depth image is {found[1]}x{found[0]} px, its image {needed[1]}x{needed[0]}"
            raise PicoPoseError(sizes, where=path, fix="use depth images that are aligned with the images")
        return depth_m
