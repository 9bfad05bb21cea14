"""The estimates of a result file drawn on the images of its data set, one PNG per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from picopose_cli.base.cameras import Camera
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import AnyTarget, Array
from picopose_cli.bop.datasets import Dataset, read_scene_cameras
from picopose_cli.bop.images import read_image_rgb, write_png
from picopose_cli.bop.results import counted_rows, read_results
from picopose_cli.pictures.judged_results import LEGEND, JudgedResults, judge_results
from picopose_cli.pictures.overlays import (
    CORRECT_RGB,
    OBJECT_COLOURS_RGB,
    WRONG_RGB,
    DrawnPose,
    Rgb,
    add_legend,
    draw_poses,
)


def draw_result_overlays(
    dataset: Dataset,
    results: Path,
    folder: Path,
    *,
    targets: Sequence[AnyTarget] = (),
    count: int | None = None,
    mesh_unit: str = "mm",
    on_progress: Callable[[int], None] = lambda _: None,
) -> JudgedResults:
    """Draw the estimates of a result file into one PNG per image; return them with their errors.

    Green and red tell right from wrong where there is ground truth; elsewhere each object has a colour. Of `targets`
    only the rows that count are drawn (see `counted_rows`). `count`: draw as many images, spread evenly over the file.
    `on_progress(n)` is called with the number of images that are done.
    Raises PicoPoseError when the results, an image or its camera cannot be read, or a picture cannot be written.
    """
    judged = judge_results(dataset, counted_rows(read_results(results), targets), mesh_unit)
    images = result_images(judged)
    if count is not None and count < len(images):
        images = [images[index] for index in np.linspace(0, len(images) - 1, count).round().astype(int)]
    cameras = {scene_id: read_scene_cameras(dataset, scene_id) for scene_id in {scene_id for scene_id, _ in images}}
    for scene_id, im_id in images:
        picture = _overlay(judged, cameras[scene_id].get(im_id), scene_id, im_id)
        write_png(folder / f"{scene_id:06d}_{im_id:06d}.png", picture)
        on_progress(1)
    return judged


def result_images(judged: JudgedResults) -> list[tuple[int, int]]:
    """Return the sorted (scene_id, im_id) of the images that have estimates."""
    return sorted(set(zip(judged.table.scene_id.tolist(), judged.table.im_id.tolist(), strict=True)))


def object_colour(obj_id: int) -> Rgb:
    """Return the colour of an object whose poses are not known to be right or wrong."""
    return OBJECT_COLOURS_RGB[obj_id % len(OBJECT_COLOURS_RGB)]


def _overlay(judged: JudgedResults, camera: Camera | None, scene_id: int, im_id: int) -> Array:
    dataset, table = judged.dataset, judged.table
    if camera is None or camera.model is None:
        what = f"scene {scene_id}, image {im_id} cannot be drawn: it has no camera"
        raise PicoPoseError(what, where=dataset.annotation_path(scene_id, "scene_camera"))
    image_rgb = read_image_rgb(dataset.image_path(scene_id, im_id))
    poses = []
    for row in np.flatnonzero((table.scene_id == scene_id) & (table.im_id == im_id)).tolist():
        obj_id, correct = int(table.obj_id[row]), judged.is_correct(row)
        colour = object_colour(obj_id) if correct is None else CORRECT_RGB if correct else WRONG_RGB
        if obj_id in judged.meshes:
            label = f"{obj_id}: {table.score[row]:.2f}"
            poses.append(DrawnPose(judged.meshes[obj_id], table.T_cam_from_obj[row], colour, label))
    picture = draw_poses(image_rgb, camera.model, poses)
    return add_legend(picture, list(zip(LEGEND, (CORRECT_RGB, WRONG_RGB), strict=True)) if judged.has_truth else [])
