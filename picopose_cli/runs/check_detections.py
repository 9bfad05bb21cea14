"""Detections checked before a run: what cannot be used, what `infer` would estimate, and how good the masks are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import mask_iou
from picopose_cli.base.options import DEFAULT_EXTRA_DETECTIONS
from picopose_cli.base.types import MIN_VISIB_FRACT, AnyTarget, Array, Detection, GroundTruth, ImageTarget
from picopose_cli.bop.check import ERROR, WARNING, Finding
from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.detection_set import DetectionSet
from picopose_cli.bop.detections import read_detections, select_detections
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.images import read_mask, read_mask_image
from picopose_cli.bop.targets import targets_by_image
from picopose_cli.runs.check_inputs import CheckInputs
from picopose_cli.scoring.assignment import UNMATCHED, match_greedily, most_visible

RECALL_IOUS = (0.5, 0.75)
"""A visible mask is found by a detection of its object whose mask has at least this intersection over union."""
_SUFFIXES = (".json", ".json.gz")
ImageKey = tuple[int, int]


@dataclass
class DetectionReview:
    """The faults of detections, and lines with what `infer` would do with them."""

    findings: list[Finding] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def warn(self, text: str, kind: str) -> None:
        """Add a warning; `kind` is the same for all of a sort."""
        self.findings.append(Finding(WARNING, None, text, kind))


def is_detections(path: Path) -> bool:
    """Return whether a path names detections (JSON, or a folder of masks) and not a result file."""
    return path.is_dir() or path.name.endswith(_SUFFIXES)


def check_detections(path: Path, inputs: CheckInputs, on_progress: Callable[[int], None]) -> DetectionReview:
    """Return the faults of detections and what `infer` would do with them.

    Without targets only the entries are checked; masks are compared where the data set has ground truth with masks.
    `on_progress(n)` is called with the number of images that were compared.
    Raises PicoPoseError when the file or folder as a whole, or the ground truth, cannot be read.
    """
    found, review = read_detections(path), DetectionReview()
    for problem in found.problems:
        review.warn(problem.removeprefix(f"{path}: "), "unusable entry")
    count = sum(map(len, found.by_image.values()))
    usable = f"{count} detections of {len(found.by_image)} images can be used, {len(found.problems)} entries cannot"
    review.lines.append(usable)
    if not count:
        review.findings.append(Finding(ERROR, None, "there is no detection that can be used", "no detections"))
    if inputs.targets is not None:
        chosen = _choose(inputs.targets, found, review)
        if inputs.dataset is not None and inputs.dataset.has_public_gt:
            _compare_masks(inputs.dataset, inputs.targets, chosen, review, on_progress)
    return review


def _choose(
    targets: Sequence[AnyTarget], found: DetectionSet, review: DetectionReview
) -> dict[ImageKey, list[Detection]]:
    """Return the detections of each target image that `infer` would estimate, and add the lines about targets."""
    chosen: dict[ImageKey, list[Detection]] = {}
    own = relabelled = 0
    for image, of_image in targets_by_image(targets).items():
        detections = found.by_image.get(image, [])
        chosen[image] = []
        for target in of_image:
            selected = select_detections([target], detections, DEFAULT_EXTRA_DETECTIONS)
            chosen[image] += selected[: target.max_estimates] if isinstance(target, ImageTarget) else selected
            has_own = isinstance(target, ImageTarget) or any(one.obj_id == target.obj_id for one in detections)
            own, relabelled = own + bool(selected and has_own), relabelled + bool(selected and not has_own)
            if not selected:
                place = "" if isinstance(target, ImageTarget) else f"object {target.obj_id} of "
                review.warn(f"target without a detection: {place}scene {image[0]}, image {image[1]}", "no detection")
    share = f"{own} of {len(targets)} targets ({own / len(targets):.1%}) have a detection"
    missing = len(targets) - own - relabelled
    review.lines.append(f"{share}, {relabelled} get one of another object, relabelled, {missing} get none")
    estimated, total = sum(map(len, chosen.values())), sum(map(len, found.by_image.values()))
    if not estimated:
        text = "none of the detections is of a target image: check scene and image ids"
        review.findings.append(Finding(ERROR, None, text, "no detections"))
    review.lines.append(f"infer would estimate {estimated} poses from the {total} detections")
    return chosen


def _compare_masks(
    dataset: Dataset,
    targets: Sequence[AnyTarget],
    chosen: Mapping[ImageKey, Sequence[Detection]],
    review: DetectionReview,
    on_progress: Callable[[int], None],
) -> None:
    """Add the recall of the visible masks by the masks of the chosen detections."""
    by_image = targets_by_image(targets)
    hits, count, unknown = np.zeros(len(RECALL_IOUS), np.int64), 0, 0
    for image, instances in _instances(dataset, by_image):
        for obj_id, wanted in _wanted(instances, by_image[image]).items():
            masks = [_mask_or_none(dataset.mask_visib_path(*image, one.gt_id)) for one in wanted]
            of_object = [one for one in chosen[image] if one.obj_id == obj_id]
            known = [mask for mask in masks if mask is not None]
            unknown, count = unknown + len(masks) - len(known), count + len(known)
            if known:
                hits += _hits([*_detected_masks(image, of_object, known[0].shape, review)], known)
        on_progress(1)
    if count:
        shares = ", ".join(f"{n / count:.1%} at IoU {iou:g}" for n, iou in zip(hits, RECALL_IOUS, strict=True))
        review.lines.append(f"recall of {count} visible masks by the masks that infer would use: {shares}")
    if unknown:
        review.lines.append(f"{unknown} instances have no mask in mask_visib: not compared")


def _instances(
    dataset: Dataset, by_image: Mapping[ImageKey, Sequence[AnyTarget]]
) -> Iterator[tuple[ImageKey, list[GroundTruth]]]:
    for scene_id in sorted({scene_id for scene_id, _ in by_image} & set(dataset.scene_ids())):
        for im_id, instances in read_ground_truth(dataset, scene_id, problems=[]).items():
            if (scene_id, im_id) in by_image:
                yield (scene_id, im_id), instances


def _wanted(instances: Sequence[GroundTruth], targets: Sequence[AnyTarget]) -> dict[int, list[GroundTruth]]:
    """Return the instances that are to be found, by object: those that scores count."""
    wanted: dict[int, list[GroundTruth]] = {}
    for target in targets:
        if isinstance(target, ImageTarget):
            for one in instances:
                if one.visib_fract >= MIN_VISIB_FRACT:
                    wanted.setdefault(one.obj_id, []).append(one)
            continue
        of_object = [one for one in instances if one.obj_id == target.obj_id]
        visible = most_visible(np.array([one.visib_fract for one in of_object]), target.inst_count)
        wanted[target.obj_id] = [of_object[index] for index in visible]
    return wanted


def _mask_or_none(path: Path) -> Array | None:
    try:
        return read_mask_image(path)
    except PicoPoseError:
        return None


def _detected_masks(
    image: ImageKey, detections: Sequence[Detection], size_hw: tuple[int, ...], review: DetectionReview
) -> Iterator[Array]:
    """Yield the mask of each detection, of its box where it has none; a mask that cannot be used becomes a warning."""
    for one in detections:
        try:
            yield _box_mask(one, size_hw) if one.mask is None else read_mask(one.mask, (size_hw[0], size_hw[1]))
        except PicoPoseError as error:
            place = f"scene {image[0]}, image {image[1]}, object {one.obj_id}"
            review.warn(f"{place}: {error}", "unusable mask")


def _box_mask(detection: Detection, size_hw: tuple[int, ...]) -> Array:
    x, y, w, h = detection.box_xywh
    rows, columns = (np.arange(side) + 0.5 for side in size_hw)
    return ((rows > y) & (rows < y + h))[:, None] & ((columns > x) & (columns < x + w))


def _hits(detected: Sequence[Array], wanted: Sequence[Array]) -> Array:
    """Return how many of the masks (H,W) in `wanted` are found at each IoU of RECALL_IOUS, best detection first."""
    ious = np.array([[mask_iou(a, b) for b in wanted] for a in detected]).reshape(len(detected), len(wanted))
    thresholds = np.nextafter(1 - np.array(RECALL_IOUS), 1)  # at least this IoU
    matched: Array = (match_greedily(1 - ious, thresholds) != UNMATCHED).sum(axis=1)
    return matched
