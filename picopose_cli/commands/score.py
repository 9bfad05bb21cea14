"""`picopose score`: the scores of result files, as the BOP toolkit computes them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.options import ScoreOptions, resolve_data_dir
from picopose_cli.base.symmetries import symmetry_transforms
from picopose_cli.base.types import AnyTarget, Array, GroundTruth, Mesh
from picopose_cli.bop.datasets import Dataset, mesh_path, open_dataset, read_object_infos, read_scene_cameras
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.images import read_depth_m, read_image_rgb
from picopose_cli.bop.known_datasets import known_splits, toolkit_split
from picopose_cli.bop.results import ResultTable, parse_result_name, read_results
from picopose_cli.bop.targets import read_image_targets, read_targets
from picopose_cli.bop.toolkit import find_script, run_toolkit
from picopose_cli.pictures.plots import Bars, Panel, draw_scores
from picopose_cli.rendering.ply import read_plain_ply
from picopose_cli.rendering.software import render_depth
from picopose_cli.scoring.detection import DetectionScores, detection_precisions
from picopose_cli.scoring.localisation import LocalisationScores, localisation_tallies
from picopose_cli.scoring.pair_errors import PairErrors, ScoredObject
from picopose_cli.scoring.parallel import ImageJob, ImageScorer, score_images
from picopose_cli.scoring.selection import Estimates, ImageKey, Selection, select_detection, select_localisation
from picopose_cli.scoring.surfaces import BoxXyxy
from picopose_cli.scoring.tables import Scores, comparison_table, difference_table, scores_tables
from picopose_cli.scoring.thresholds import (
    MSPD_THRESHOLDS_PX,
    MSSD_THRESHOLDS,
    MSSD_THRESHOLDS_MM,
    VSD_THRESHOLDS,
)

WITHOUT_VSD = frozenset({"handal", "hopev2", "hot3d", "ipd", "itoddmv", "xyzibd"})
"""Data sets that BOP scores by detection only: it defines no VSD tolerance for them."""
UPLOAD_SITE = "https://bop.felk.cvut.cz"
WIDE_COLUMNS = 160
"""Width of the tables where no terminal says its own."""
_PANELS = {
    "vsd": ("VSD", "share of the pixels", VSD_THRESHOLDS),
    "mssd": ("MSSD", "share of the diameter", MSSD_THRESHOLDS),
    "mspd": ("MSPD", "px of an image 640 px wide", MSPD_THRESHOLDS_PX),
    "mssd_mm": ("MSSD in mm", "mm", MSSD_THRESHOLDS_MM),
}


@dataclass(frozen=True)
class ScoreReport:
    """What a run of `picopose score` found: the exit code, and each file's scores under the toolkit's names."""

    exit_code: int
    scores: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ScoredFile:
    """The scores of one result file, and what a reader of them must know."""

    path: Path
    dataset: Dataset
    scores: Scores
    notes: tuple[str, ...]


def run(options: ScoreOptions) -> ScoreReport:
    """Score each result file, print the tables and write what was asked for.

    Raises PicoPoseError when no file can be scored; of several, those that cannot are reported (exit code 1).
    """
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDE_COLUMNS)
    if options.toolkit:
        find_script(options.targets)  # said before the work, not after
    files, failures = _score_files(options)
    summaries = _named(files, [file.scores.summary(per_object=options.per_object) for file in files])
    _print_scores(console, files, options)
    if options.output is not None:
        content = summaries if len(options.results) > 1 else next(iter(summaries.values()))
        atomic_write_bytes(options.output, (json.dumps(content, indent=2) + "\n").encode())
    if options.plot is not None:
        _plot(options.plot, _named(files, [file.scores for file in files]))
    if options.toolkit:
        failures += _compare_with_toolkit(console, files, options)
    for failure in failures:
        console.print(f"failed: {failure}", soft_wrap=True)
    return ScoreReport(1 if failures else 0, summaries)


def _score_files(options: ScoreOptions) -> tuple[list[ScoredFile], list[PicoPoseError]]:
    files, failures = [], []
    for path in options.results:
        try:
            files.append(score_file(path, options))
        except PicoPoseError as error:
            if len(options.results) == 1:
                raise
            failures.append(error)
    if not files:
        raise failures[0]
    return files, failures


def score_file(path: Path, options: ScoreOptions) -> ScoredFile:
    """Return the scores of one result file; raises PicoPoseError when it or its data set cannot be used."""
    table = read_results(path)
    dataset = _open(path, options)
    scored = _select(dataset, table, options)
    notes = _selection_notes(scored, len(table.score))
    vsd_gap = None if options.targets == "bop24" else _why_no_vsd(dataset, list(scored.images))
    if vsd_gap is not None:
        notes.append(f"no VSD and so no AR: {vsd_gap}")
    with_vsd = options.targets == "bop19" and vsd_gap is None
    jobs = _image_jobs(dataset, scored, with_vsd)
    if not jobs:
        raise PicoPoseError("no target image shows an object that is visible enough", where=dataset.split_dir)
    scorer = _load_scorer(dataset, jobs, with_averages=options.per_object and options.targets == "bop19")
    errors = _compute_errors(scorer, jobs, options.workers)
    mean_time_s = table.mean_time_s()
    if options.targets == "bop24":
        scores: Scores = DetectionScores(detection_precisions(errors), mean_time_s)
    else:
        scores = LocalisationScores(localisation_tallies(errors), mean_time_s)
    return ScoredFile(path, dataset, scores, tuple(notes))


def _open(path: Path, options: ScoreOptions) -> Dataset:
    """Open the data set that the options name, or else the file's name; it must have ground truth to score with."""
    name, split = options.dataset, options.split
    if name is None:
        parts = parse_result_name(path)
        name, split = parts.dataset, split or parts.split_folder
    private = _private_error(path, name, split)
    try:
        dataset = open_dataset(name, resolve_data_dir(options.data_dir), split=split, models=options.models)
    except PicoPoseError as error:
        raise private or error from error
    if any(dataset.annotation_path(scene_id, "scene_gt").is_file() for scene_id in dataset.scene_ids()):
        return dataset
    raise private or PicoPoseError(
        f"{dataset.split} has no ground truth (scene_gt{dataset.layout.suffix}.json)",
        where=dataset.split_dir,
        fix="unpack the annotations of the split",
    )


def _private_error(path: Path, name: str, split: str | None) -> PicoPoseError | None:
    """Return what to say when the ground truth of a split isn't public, None when it is."""
    rows = known_splits(name)
    kind = toolkit_split(split or (rows[0].split if rows else ""))[0]
    if not any(kind in row.private_splits for row in rows):
        return None
    return PicoPoseError(
        f"the ground truth of {name}'s {kind} images is private, so the file cannot be scored here",
        where=path,
        fix=f"upload it at {UPLOAD_SITE}, or score results of the public validation images with --split val",
    )


def _select(dataset: Dataset, table: ResultTable, options: ScoreOptions) -> Selection:
    estimates = Estimates(table.scene_id, table.im_id, table.obj_id, table.score, table.T_cam_from_obj)
    if options.targets == "bop24":
        images = read_image_targets(dataset)
        return select_detection(estimates, images, _read_instances(dataset, images))
    targets = read_targets(dataset)
    return select_localisation(estimates, targets, _read_instances(dataset, targets))


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


def _selection_notes(selection: Selection, rows: int) -> list[str]:
    notes = []
    if selection.unasked:
        notes.append(
            f"{selection.unasked} of {rows} rows are for images or objects that are not asked for; they don't count"
        )
    if selection.surplus:
        notes.append(f"{selection.surplus} of {rows} rows come after the number of estimates that counts")
    return notes


def _why_no_vsd(dataset: Dataset, images: Sequence[ImageKey]) -> str | None:
    """Return why VSD cannot be computed, or None; raises PicoPoseError when only some depth images are missing."""
    if dataset.name in WITHOUT_VSD:
        return f"BOP defines no VSD for {dataset.name}"
    missing = [image for image in images if not dataset.depth_path(*image).is_file()]
    if len(missing) == len(images):
        return f"there are no depth images ({dataset.depth_path(*images[0])})"
    if missing:
        raise PicoPoseError(
            f"this depth image is missing ({len(missing)} of {len(images)} are)",
            where=dataset.depth_path(*missing[0]),
            fix="unpack the depth images of the split again",
        )
    return None


def _image_jobs(dataset: Dataset, selection: Selection, with_vsd: bool) -> list[ImageJob]:
    jobs = []
    cameras = {scene_id: read_scene_cameras(dataset, scene_id) for scene_id in {scene for scene, _ in selection.images}}
    for (scene_id, im_id), candidates in selection.images.items():
        camera = cameras[scene_id].get(im_id)
        if camera is None or camera.K is None:
            problem = "no camera" if camera is None else camera.problem
            path = dataset.annotation_path(scene_id, "scene_camera")
            raise PicoPoseError(f"image {im_id}: {problem}", where=path, fix="scores need cam_K of each target image")
        depth_path = dataset.depth_path(scene_id, im_id) if with_vsd else None
        jobs.append(ImageJob(scene_id, im_id, camera.K, candidates, depth_path, camera.depth_scale))
    return jobs


@dataclass(frozen=True)
class _Renderer:
    """Renders the depth of objects whose vertices are already in the camera frame (a RenderDepth)."""

    meshes: Mapping[int, Mesh]

    def __call__(self, obj_id: int, xyz_cam_m: Array, K: Array, box: BoxXyxy) -> Array:
        return render_depth(Mesh(xyz_cam_m, self.meshes[obj_id].faces), K, np.eye(4), box)


def _load_scorer(dataset: Dataset, jobs: Sequence[ImageJob], *, with_averages: bool) -> ImageScorer:
    infos = read_object_infos(dataset)
    obj_ids = sorted({one.obj_id for job in jobs for one in job.candidates})
    unknown = [obj_id for obj_id in obj_ids if obj_id not in infos]
    if unknown:
        raise PicoPoseError(
            f"object {unknown[0]} is not described, so its diameter and symmetries are not known",
            where=dataset.eval_models_dir / "models_info.json",
            fix="unpack the models of the data set again",
        )
    meshes = {obj_id: _read_model(mesh_path(dataset, obj_id, evaluation=True)) for obj_id in obj_ids}
    objects = {
        obj_id: ScoredObject(obj_id, mesh.vertices_m, infos[obj_id].diameter_m, symmetry_transforms(infos[obj_id]))
        for obj_id, mesh in meshes.items()
    }
    return ImageScorer(
        objects,
        _image_width_px(dataset, jobs[0]),
        dataset.vsd_delta_m,
        read_depth_m,
        _Renderer(meshes),
        with_averages,
    )


def _read_model(path: Path) -> Mesh:
    mesh = read_plain_ply(path)
    if mesh is None:
        from picopose_cli.rendering.meshes import read_mesh  # slow to import, and seldom needed

        mesh = read_mesh(path)
    return mesh


def _image_width_px(dataset: Dataset, job: ImageJob) -> int:
    """Return the width that MSPD is scaled by: BOP's for a known data set, that of the first image otherwise."""
    if dataset.image_size_hw is not None:
        return dataset.image_size_hw[1]
    path = dataset.image_path(job.scene_id, job.im_id)
    if path.is_file() or job.depth_path is None:
        return int(read_image_rgb(path).shape[1])
    return int(read_depth_m(job.depth_path, job.depth_scale).shape[1])


def _compute_errors(scorer: ImageScorer, jobs: Sequence[ImageJob], workers: int) -> list[PairErrors]:
    """Return the errors of all images, in the order of `jobs`."""
    results: list[list[PairErrors]] = [[] for _ in jobs]
    # no refreshing thread: processes are forked while the bar is shown
    bar = Progress(console=Console(stderr=True), auto_refresh=False, transient=True, disable=not sys.stderr.isatty())
    with bar:
        task = bar.add_task("images", total=len(jobs))
        for index, errors in score_images(scorer, jobs, workers):
            results[index] = errors
            bar.update(task, advance=1, refresh=True)
    return [pairs for errors in results for pairs in errors]


def _named(files: Sequence[ScoredFile], values: Sequence[Any]) -> dict[str, Any]:
    """Key what belongs to the files by their stems, or by their paths where stems are the same."""
    stems = [file.path.stem for file in files]
    names = stems if len(set(stems)) == len(stems) else [str(file.path) for file in files]
    return dict(zip(names, values, strict=True))


def _print_scores(console: Console, files: Sequence[ScoredFile], options: ScoreOptions) -> None:
    for file in files:
        if len(options.results) == 1 or options.per_object:
            for table in scores_tables(f"{file.path.name} ({file.dataset.name}, {file.dataset.split})", file.scores):
                console.print(table)
            time_s = file.scores.mean_time_s
            console.print("mean time an image: " + ("not known" if time_s is None else f"{time_s:.3f} s"))
        for note in file.notes:
            console.print(f"{file.path.name}: {note}", soft_wrap=True)
    if len(options.results) > 1:
        console.print(comparison_table(_named(files, [file.scores for file in files])))


def _plot(path: Path, scores: Mapping[str, Scores]) -> None:
    """Draw a panel for each error, a curve for each file, and bars for each object."""
    panels = []
    for error, (title, unit, thresholds) in _PANELS.items():
        lines = {name: one.curve(error) for name, one in scores.items() if error in one.errors}
        mean = f" (mean {next(iter(lines.values())).mean():.3f})" if len(lines) == len(scores) == 1 else ""
        if lines:
            panels.append(Panel(f"{title}{mean}", f"threshold [{unit}]", thresholds, lines))
    value = next(iter(scores.values())).value
    heading = f"{value} over the threshold of correctness" + (f": {next(iter(scores))}" if len(scores) == 1 else "")
    draw_scores(path, heading, value, panels, _bars(scores))


def _bars(scores: Mapping[str, Scores]) -> Bars:
    """Return bars for each object: an error each for one file, a file each (mean of the errors) for several."""
    obj_ids = sorted({obj_id for one in scores.values() for obj_id in one.objects})
    groups = [str(obj_id) for obj_id in obj_ids]
    if len(scores) == 1:
        ((_, only),) = scores.items()
        series = {_PANELS[error][0]: [only.object_mean(obj_id, error) for obj_id in obj_ids] for error in only.errors}
        return Bars(f"mean {only.value} of each object", groups, series)
    common = [error for error in ("vsd", "mssd", "mspd") if all(error in one.errors for one in scores.values())]
    means = {name: [_mean(one, obj_id, common) for obj_id in obj_ids] for name, one in scores.items()}
    return Bars(f"mean of {', '.join(_PANELS[error][0] for error in common)}, by object", groups, means)


def _mean(scores: Scores, obj_id: int, errors: Sequence[str]) -> float | None:
    values = [value for error in errors if (value := scores.object_mean(obj_id, error)) is not None]
    return float(np.mean(values)) if values else None


def _compare_with_toolkit(console: Console, files: Sequence[ScoredFile], options: ScoreOptions) -> list[PicoPoseError]:
    """Print the toolkit's scores beside ours; return the errors of the files on which it failed."""
    failures = []
    for file in files:
        try:
            theirs = run_toolkit(file.path, options.targets, file.dataset.root.parent, options.workers)
        except PicoPoseError as error:
            failures.append(error)
            continue
        ours = {key: value for key, value in file.scores.summary().items() if isinstance(value, float)}
        console.print(difference_table(f"{file.path.name} beside the toolkit", ours, theirs))
    return failures
