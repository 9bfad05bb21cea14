"""Which estimates are counted and which instances they are compared with, before any error is computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.types import MIN_VISIB_FRACT, Array, GroundTruth, ImageTarget, Target
from picopose_cli.scoring.assignment import best_scored, most_visible
from picopose_cli.scoring.pair_errors import ObjectInImage

ImageKey = tuple[int, int]
"""(scene_id, im_id)."""
Instances = Mapping[ImageKey, Sequence[GroundTruth]]


@dataclass(frozen=True)
class Estimates:
    """N estimates: ids (N,), `score` (N,), `T_cam_from_obj` (N,4,4) f64 metres."""

    scene_id: NDArray[np.int64]
    im_id: NDArray[np.int64]
    obj_id: NDArray[np.int64]
    score: Array
    T_cam_from_obj: Array


@dataclass(frozen=True)
class Selection:
    """The objects to compare in each image, and the number of estimates that are not counted.

    `not_targets` are of an image or object that is not a target; `beyond_limit` are ranked after the counted number.
    """

    images: dict[ImageKey, tuple[ObjectInImage, ...]]
    not_targets: int
    beyond_limit: int


def select_localisation(estimates: Estimates, targets: Iterable[Target], instances: Instances) -> Selection:
    """Return what BOP19 compares: of each target the inst_count best-scored estimates and most visible instances."""
    rows_of = _rows_by(estimates.scene_id, estimates.im_id, estimates.obj_id)
    images: dict[ImageKey, list[ObjectInImage]] = defaultdict(list)
    of_targets = counted = 0
    for target in targets:
        image = (target.scene_id, target.im_id)
        rows = rows_of.get((*image, target.obj_id), np.empty(0, np.intp))
        best = rows[best_scored(estimates.score[rows], target.inst_count)]
        of_targets, counted = of_targets + len(rows), counted + len(best)
        of_object = [instance for instance in instances.get(image, ()) if instance.obj_id == target.obj_id]
        visible = most_visible(np.array([instance.visib_fract for instance in of_object]), target.inst_count)
        chosen = [of_object[index] for index in visible]
        images[image].append(_object_in_image(estimates, best, target.obj_id, chosen, min_visib_fract=0.0))
    return Selection(_with_tuples(images), len(estimates.score) - of_targets, of_targets - counted)


def select_detection(estimates: Estimates, targets: Iterable[ImageTarget], instances: Instances) -> Selection:
    """Return what BOP24 compares: of each image the `max_estimates` best-scored estimates with all instances.

    As in the toolkit, every object with any instance in the image is compared, however little of it is visible;
    estimates of other objects are not counted. Instances that are hardly visible are matched like any other, but are
    not targets.
    """
    rows_of = _rows_by(estimates.scene_id, estimates.im_id)
    images: dict[ImageKey, list[ObjectInImage]] = defaultdict(list)
    of_images = ranked = counted = 0
    for target in targets:
        image = (target.scene_id, target.im_id)
        rows = rows_of.get(image, np.empty(0, np.intp))
        best = rows[best_scored(estimates.score[rows], target.max_estimates)]
        of_images, ranked = of_images + len(rows), ranked + len(best)
        for obj_id in sorted({gt.obj_id for gt in instances.get(image, ())}):
            of_object = [gt for gt in instances[image] if gt.obj_id == obj_id]
            chosen = best[estimates.obj_id[best] == obj_id]
            counted += len(chosen)
            images[image].append(
                _object_in_image(estimates, chosen, obj_id, of_object, min_visib_fract=MIN_VISIB_FRACT)
            )
    return Selection(_with_tuples(images), len(estimates.score) - of_images + ranked - counted, of_images - ranked)


def _rows_by(*keys: NDArray[np.int64]) -> dict[tuple[int, ...], NDArray[np.intp]]:
    """Return the rows of each combination of `keys` (N,), in the order of the file."""
    rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, key in enumerate(zip(*(column.tolist() for column in keys), strict=True)):
        rows[key].append(row)
    return {key: np.array(found, np.intp) for key, found in rows.items()}


def _object_in_image(
    estimates: Estimates,
    rows: NDArray[np.intp],
    obj_id: int,
    instances: Sequence[GroundTruth],
    *,
    min_visib_fract: float,
) -> ObjectInImage:
    poses = [instance.T_cam_from_obj for instance in instances]
    return ObjectInImage(
        obj_id,
        estimates.score[rows],
        estimates.T_cam_from_obj[rows],
        np.array(poses, np.float64).reshape(-1, 4, 4),
        np.array([instance.visib_fract >= min_visib_fract for instance in instances], np.bool_),
    )


def _with_tuples(images: dict[ImageKey, list[ObjectInImage]]) -> dict[ImageKey, tuple[ObjectInImage, ...]]:
    return {image: tuple(objects) for image, objects in images.items()}
