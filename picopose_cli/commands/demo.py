"""`picopose demo`: the whole way from models to scores and pictures, on a small data set made on the spot."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from rich.console import Console

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes, file_sha256, require_writable
from picopose_cli.base.options import DemoOptions, InferOptions, RenderTemplatesOptions, ScoreOptions
from picopose_cli.base.symmetries import symmetry_transforms
from picopose_cli.base.types import Array, Mesh
from picopose_cli.bop.datasets import Dataset, mesh_path, open_dataset, read_object_infos, read_scene_cameras
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.images import read_image_rgb
from picopose_cli.bop.results import ResultTable, read_results
from picopose_cli.network.bundled import bundled_weights
from picopose_cli.network.devices import choose_device
from picopose_cli.pictures.overlays import OUTLINE_FINENESS, encode_png, pose_overlay
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.rendering.software import render_depth
from picopose_cli.scoring.pose_errors import mssd
from picopose_cli.synthesis.bop_dataset import DETECTIONS, write_procedural_dataset

DATASET, SEED = "demo", 2
RESULTS_NAME, SCORES_NAME, OVERLAYS_NAME = "picopose_demo-test.csv", "scores.json", "overlays"
MARK_NAME = "demo.json"
"""Tells the folder of a demo from others, and of which size the demo is."""
RIGHT_SHARE = 0.1
"""Of the object's diameter: an estimate whose MSSD is within it is drawn as right."""
LEGEND = (f"MSSD within {RIGHT_SHARE:.0%} of the object's diameter", "larger error")


class Report(Protocol):
    """What every command returns."""

    @property
    def exit_code(self) -> int:
        """0 when all is done."""


@dataclass(frozen=True)
class DemoReport:
    """What a demo made: `right` says of each estimate, in the order of the result file, whether it is drawn green."""

    output: Path
    right: tuple[bool, ...]
    exit_code: int
    """The highest of the commands that were run."""


def run(
    options: DemoOptions,
    render_templates: Callable[[RenderTemplatesOptions], Report],
    infer: Callable[[InferOptions], Report],
    score: Callable[[ScoreOptions], Report],
) -> DemoReport:
    """Make a data set, run three commands on it as a user would, and draw the poses; see `picopose demo --help`.

    The commands come from the caller, because they never import each other. Raises PicoPoseError when the weights, the
    device or the output folder cannot be used.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    output, seconds = options.output, dict[str, float]()
    file_sha256(options.weights or bundled_weights())  # said before the work, not after
    choose_device(options.device)
    _claim(options)
    with _timed(seconds, "data"):
        root = write_procedural_dataset(output, DATASET, objects=options.objects, images=options.images, seed=SEED)
    with _timed(seconds, "templates"):
        reports = [render_templates(RenderTemplatesOptions(DATASET, output, renderer="software"))]
    with _timed(seconds, "poses"):
        rough, results = str(root / DETECTIONS["rough"]), output / RESULTS_NAME
        asked = InferOptions(
            DATASET,
            output,
            detections=rough,
            weights=options.weights,
            output=results,
            device=options.device,
            restart=True,  # the data set was made anew
        )
        reports.append(infer(asked))
    with _timed(seconds, "scores"):
        # one worker: processes would be forked from this one, which has threads by now
        reports.append(score(ScoreOptions((results,), output, output=output / SCORES_NAME, workers=1)))
    with _timed(seconds, "pictures"):
        right = draw_overlays(open_dataset(DATASET, output), results, output / OVERLAYS_NAME)
    console.print("time: " + ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items()))
    console.print(f"{sum(right)} of {len(right)} poses are right ({LEGEND[0]}): {output / OVERLAYS_NAME}")
    return DemoReport(output, tuple(right), max(report.exit_code for report in reports))


def _claim(options: DemoOptions) -> None:
    """Mark the output folder as a demo's; raises PicoPoseError when it holds anything else, or a demo of another size.

    A demo overwrites its own files and deletes none, so files of another size would stay among the new ones.
    """
    mark = options.output / MARK_NAME
    require_writable(mark)
    size = {"objects": options.objects, "images": options.images}
    content = (json.dumps(size) + "\n").encode()
    if any(options.output.iterdir()) and not (mark.is_file() and mark.read_bytes() == content):
        fix = "choose a new or empty folder with --output"
        raise PicoPoseError("holds something else than a demo of this size", where=options.output, fix=fix)
    atomic_write_bytes(mark, content)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def draw_overlays(dataset: Dataset, results: Path, folder: Path) -> list[bool]:
    """Draw the estimates of a result file into one PNG an image; return for each of them whether it is right.

    Raises PicoPoseError when an image, a mesh or the ground truth cannot be read, or a picture cannot be written.
    """
    table = read_results(results)
    meshes = {obj_id: read_mesh(mesh_path(dataset, obj_id)) for obj_id in sorted(set(table.obj_id.tolist()))}
    right = _judge(dataset, table, meshes)
    for scene_id in dataset.scene_ids():
        for im_id, camera in read_scene_cameras(dataset, scene_id).items():
            assert camera.K is not None  # the demo wrote it
            image_rgb = read_image_rgb(dataset.image_path(scene_id, im_id))
            rows = np.flatnonzero((table.scene_id == scene_id) & (table.im_id == im_id))
            silhouettes = [
                _silhouette(meshes[table.obj_id[row]], camera.K, table.T_cam_from_obj[row], image_rgb.shape[:2])
                for row in rows
            ]
            picture = pose_overlay(image_rgb, silhouettes, [right[row] for row in rows], LEGEND)
            atomic_write_bytes(folder / f"{scene_id:06d}_{im_id:06d}.png", encode_png(picture))
    return right


def _judge(dataset: Dataset, table: ResultTable, meshes: Mapping[int, Mesh]) -> list[bool]:
    """Return for each row whether its MSSD to the nearest instance of its object is small enough."""
    infos = read_object_infos(dataset)
    truth = {scene_id: read_ground_truth(dataset, scene_id) for scene_id in dataset.scene_ids()}
    right = []
    for scene_id, im_id, obj_id, T in zip(table.scene_id, table.im_id, table.obj_id, table.T_cam_from_obj, strict=True):
        info = infos[obj_id]
        T_gt = np.stack([one.T_cam_from_obj for one in truth[scene_id][im_id] if one.obj_id == obj_id])
        error_m = mssd(T[None], T_gt, meshes[obj_id].vertices_m, symmetry_transforms(info)).min()
        right.append(bool(error_m <= RIGHT_SHARE * info.diameter_m))
    return right


def _silhouette(mesh: Mesh, K: Array, T_cam_from_obj: Array, size_hw: tuple[int, int]) -> Array:
    """Return where an object is seen in an image that is OUTLINE_FINENESS times as fine, (f*H,f*W) bool."""
    height, width = (OUTLINE_FINENESS * side for side in size_hw)
    finer = np.diag([OUTLINE_FINENESS, OUTLINE_FINENESS, 1.0]) @ K
    return np.asarray(render_depth(mesh, finer, T_cam_from_obj, (0, 0, width, height)) > 0)
