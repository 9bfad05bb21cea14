"""Which estimates count and which instances they may be matched with, before any error is computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.types import MIN_VISIB_FRACT, Array, GroundTruth, ImageTarget, Target
from picopose_cli.scoring.assignment import best_scored, most_visible
from picopose_cli.scoring.pair_errors import Candidates

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
    """The candidates of each image, and how many estimates don't count.

    `unasked` are for an image or an object that isn't asked for; `surplus` come after the number that is asked for.
    """

    images: dict[ImageKey, tuple[Candidates, ...]]
    unasked: int
    surplus: int


def select_localisation(estimates: Estimates, targets: Iterable[Target], instances: Instances) -> Selection:
    """Return what BOP19 compares: of each target the inst_count best-scored estimates and most visible instances."""
    rows_of = _rows_by(estimates.scene_id, estimates.im_id, estimates.obj_id)
    images: dict[ImageKey, list[Candidates]] = defaultdict(list)
    asked = used = 0
    for target in targets:
        image = (target.scene_id, target.im_id)
        rows = rows_of.get((*image, target.obj_id), np.empty(0, np.intp))
        best = rows[best_scored(estimates.score[rows], target.inst_count)]
        asked, used = asked + len(rows), used + len(best)
        found = [instance for instance in instances.get(image, ()) if instance.obj_id == target.obj_id]
        visible = most_visible(np.array([instance.visib_fract for instance in found]), target.inst_count)
        images[image].append(_candidates(estimates, best, target.obj_id, [found[index] for index in visible], 0.0))
    return Selection(_fixed(images), len(estimates.score) - asked, asked - used)


def select_detection(estimates: Estimates, targets: Iterable[ImageTarget], instances: Instances) -> Selection:
    """Return what BOP24 compares: of each image the `most` best-scored estimates with all instances of their object.

    As in the toolkit, estimates of an object of which an image has nothing to find count for nothing.
    """
    rows_of = _rows_by(estimates.scene_id, estimates.im_id)
    images: dict[ImageKey, list[Candidates]] = defaultdict(list)
    asked = used = counted = 0
    for target in targets:
        image = (target.scene_id, target.im_id)
        rows = rows_of.get(image, np.empty(0, np.intp))
        best = rows[best_scored(estimates.score[rows], target.max_estimates)]
        asked, used = asked + len(rows), used + len(best)
        for obj_id in sorted({gt.obj_id for gt in instances.get(image, ()) if gt.visib_fract >= MIN_VISIB_FRACT}):
            found = [gt for gt in instances[image] if gt.obj_id == obj_id]
            of_object = best[estimates.obj_id[best] == obj_id]
            counted += len(of_object)
            images[image].append(_candidates(estimates, of_object, obj_id, found, MIN_VISIB_FRACT))
    return Selection(_fixed(images), len(estimates.score) - asked + used - counted, asked - used)


def _rows_by(*keys: NDArray[np.int64]) -> dict[tuple[int, ...], NDArray[np.intp]]:
    """Return the rows of each combination of `keys` (N,), in the order of the file."""
    rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, key in enumerate(zip(*(column.tolist() for column in keys), strict=True)):
        rows[key].append(row)
    return {key: np.array(found, np.intp) for key, found in rows.items()}


def _candidates(
    estimates: Estimates,
    rows: NDArray[np.intp],
    obj_id: int,
    instances: Sequence[GroundTruth],
    least_visible: float,
) -> Candidates:
    poses = [instance.T_cam_from_obj for instance in instances]
    return Candidates(
        obj_id,
        estimates.score[rows],
        estimates.T_cam_from_obj[rows],
        np.array(poses, np.float64).reshape(-1, 4, 4),
        np.array([instance.visib_fract >= least_visible for instance in instances], np.bool_),
    )


def _fixed(images: dict[ImageKey, list[Candidates]]) -> dict[ImageKey, tuple[Candidates, ...]]:
    return {image: tuple(candidates) for image, candidates in images.items()}
