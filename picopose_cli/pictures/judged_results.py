"""The estimates of a result file with their errors, where the data set has ground truth to compare them with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.symmetries import symmetry_transforms
from picopose_cli.base.types import Array, GroundTruth, Mesh, ObjectInfo
from picopose_cli.bop.datasets import Dataset, mesh_path, models_info_path, read_object_infos
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.results import ResultTable
from picopose_cli.rendering.mesh_size import exact_diameter_m
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.scoring.pose_errors import mssd

MAX_CORRECT_MSSD = 0.1
"""Fraction of the object's diameter: an estimate with at most this MSSD is drawn as correct."""
LEGEND = (f"MSSD within {MAX_CORRECT_MSSD:.0%} of the object's diameter", "larger error")
_NO_SYMMETRIES = np.zeros((0, 4, 4))


@dataclass(frozen=True)
class JudgedResults:
    """The rows of a result file and what they are compared with.

    `error` (N,): MSSD over the object's diameter, to the nearest instance of the object in the image; infinite where
    the image has none, NaN where there is no ground truth. `nearest` are those instances. `meshes` lacks the objects
    whose mesh cannot be read, for reasons in `problems`.
    """

    dataset: Dataset
    table: ResultTable
    meshes: Mapping[int, Mesh]
    infos: Mapping[int, ObjectInfo]
    error: Array
    nearest: tuple[GroundTruth | None, ...]
    problems: tuple[str, ...]

    @property
    def has_truth(self) -> bool:
        """Whether any row is compared with ground truth."""
        return bool((~np.isnan(self.error)).any())

    def is_correct(self, row: int) -> bool | None:
        """Return whether a row's error is small enough, None without ground truth."""
        return None if np.isnan(self.error[row]) else bool(self.error[row] <= MAX_CORRECT_MSSD)


def judge_results(dataset: Dataset, table: ResultTable, mesh_unit: str = "mm") -> JudgedResults:
    """Read meshes and ground truth and compare each row with the nearest instance of its object.

    What cannot be read becomes a problem, and its rows have no error. Raises PicoPoseError when a row is not finite.
    """
    if table.not_finite:
        raise PicoPoseError(f"row {table.not_finite[0]} has a number that is not finite", where=table.path)
    problems: list[str] = []
    meshes = _read_meshes(dataset, table, mesh_unit, problems)
    infos = _infos(dataset, meshes, problems)
    truth = _read_truth(dataset, table, problems)
    error, nearest = np.full(len(table.score), np.nan), [None] * len(table.score)
    compared: list[GroundTruth | None] = list(nearest)
    ids = zip(table.scene_id.tolist(), table.im_id.tolist(), table.obj_id.tolist(), strict=True)
    for row, (scene_id, im_id, obj_id) in enumerate(ids):
        instances = truth.get((scene_id, im_id))
        if instances is None or obj_id not in infos or obj_id not in meshes:
            continue
        of_object = [one for one in instances if one.obj_id == obj_id]
        error[row] = np.inf
        if of_object:
            T, T_gt = table.T_cam_from_obj[row], np.stack([one.T_cam_from_obj for one in of_object])
            errors_m = mssd(T[None], T_gt, meshes[obj_id].vertices_m, symmetry_transforms(infos[obj_id])).reshape(-1)
            best = int(errors_m.argmin())
            error[row], compared[row] = errors_m[best] / infos[obj_id].diameter_m, of_object[best]
    return JudgedResults(dataset, table, meshes, infos, error, tuple(compared), tuple(problems))


def _read_meshes(dataset: Dataset, table: ResultTable, unit: str, problems: list[str]) -> dict[int, Mesh]:
    meshes = {}
    for obj_id in sorted(set(table.obj_id.tolist())):
        try:
            meshes[obj_id] = read_mesh(mesh_path(dataset, obj_id), unit)
        except PicoPoseError as error:
            problems.append(f"object {obj_id} is not drawn: {error}")
    return meshes


def _infos(dataset: Dataset, meshes: Mapping[int, Mesh], problems: list[str]) -> dict[int, ObjectInfo]:
    """Return diameters and symmetries of models_info.json; without it those of the meshes."""
    if not models_info_path(dataset).is_file():
        return {one: ObjectInfo(one, exact_diameter_m(mesh), _NO_SYMMETRIES, ()) for one, mesh in meshes.items()}
    try:
        return read_object_infos(dataset)
    except PicoPoseError as error:
        problems.append(f"errors are not computed: {error}")
        return {}


def _read_truth(dataset: Dataset, table: ResultTable, problems: list[str]) -> dict[tuple[int, int], list[GroundTruth]]:
    if not dataset.has_public_gt:
        return {}
    truth = {}
    for scene_id in sorted(set(table.scene_id.tolist()) & set(dataset.scene_ids())):
        try:
            for im_id, instances in read_ground_truth(dataset, scene_id, problems=problems).items():
                truth[scene_id, im_id] = instances
        except PicoPoseError as error:
            problems.append(f"scene {scene_id} is not compared: {error}")
    return truth
