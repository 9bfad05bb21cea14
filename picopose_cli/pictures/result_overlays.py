"""The estimates of a result file drawn on the images of its data set, one PNG per image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.symmetries import symmetry_transforms
from picopose_cli.base.types import Mesh
from picopose_cli.bop.datasets import Dataset, mesh_path, read_object_infos, read_scene_cameras
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.images import read_image_rgb
from picopose_cli.bop.results import ResultTable, read_results
from picopose_cli.pictures.overlays import pose_overlay, render_silhouette
from picopose_cli.pictures.png import write_png
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.scoring.pose_errors import mssd

MAX_CORRECT_MSSD = 0.1
"""Fraction of the object's diameter: an estimate with at most this MSSD is drawn as correct."""
LEGEND = (f"MSSD within {MAX_CORRECT_MSSD:.0%} of the object's diameter", "larger error")


def draw_result_overlays(dataset: Dataset, results: Path, folder: Path) -> list[bool]:
    """Draw the estimates of a result file into one PNG per image; return whether each of them is correct.

    Raises PicoPoseError when an image, a mesh or the ground truth cannot be read, or a picture cannot be written.
    """
    table = read_results(results)
    if table.not_finite:
        raise PicoPoseError(f"row {table.not_finite[0]} has a number that is not finite", where=results)
    meshes = {obj_id: read_mesh(mesh_path(dataset, obj_id)) for obj_id in sorted(set(table.obj_id.tolist()))}
    correct = _judge(dataset, table, meshes)
    for scene_id in dataset.scene_ids():
        for im_id, camera in read_scene_cameras(dataset, scene_id).items():
            assert camera.K is not None  # the caller's data set is complete
            image_rgb = read_image_rgb(dataset.image_path(scene_id, im_id))
            rows = np.flatnonzero((table.scene_id == scene_id) & (table.im_id == im_id))
            silhouettes = [
                render_silhouette(meshes[table.obj_id[row]], camera.K, table.T_cam_from_obj[row], image_rgb.shape[:2])
                for row in rows
            ]
            picture = pose_overlay(image_rgb, silhouettes, [correct[row] for row in rows], LEGEND)
            write_png(folder / f"{scene_id:06d}_{im_id:06d}.png", picture)
    return correct


def _judge(dataset: Dataset, table: ResultTable, meshes: Mapping[int, Mesh]) -> list[bool]:
    """Return for each row whether its MSSD to the nearest instance of its object is small enough."""
    infos = read_object_infos(dataset)
    truth = {scene_id: read_ground_truth(dataset, scene_id) for scene_id in dataset.scene_ids()}
    correct = []
    for scene_id, im_id, obj_id, T in zip(table.scene_id, table.im_id, table.obj_id, table.T_cam_from_obj, strict=True):
        info = infos[obj_id]
        T_gt = np.stack([one.T_cam_from_obj for one in truth[scene_id][im_id] if one.obj_id == obj_id])
        error_m = mssd(T[None], T_gt, meshes[obj_id].vertices_m, symmetry_transforms(info)).min()
        correct.append(bool(error_m <= MAX_CORRECT_MSSD * info.diameter_m))
    return correct
