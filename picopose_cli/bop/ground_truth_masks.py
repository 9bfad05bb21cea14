"""The masks of the ground truth as detections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import mask_slices
from picopose_cli.base.types import MIN_VISIB_FRACT, AnyTarget, Detection, GroundTruth, ImageTarget
from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.detection_set import DetectionSet
from picopose_cli.bop.ground_truth import read_ground_truth, read_visible_boxes
from picopose_cli.bop.images import read_mask_image
from picopose_cli.bop.targets import targets_by_image


def ground_truth_detections(dataset: Dataset, targets: Sequence[AnyTarget]) -> DetectionSet:
    """Return the annotated instances of the targets as detections with score 1 and time 0, most visible first.

    Those are all instances of a target's object (BOP19), or all of an image with a visible fraction of at least 0.1
    (BOP24). Their masks are the files in mask_visib, which are read later. An annotation that cannot be used is
    recorded. Raises PicoPoseError when a scene has no ground truth.
    """
    detections = DetectionSet()
    by_image = targets_by_image(targets)
    for scene_id in sorted({target.scene_id for target in targets}):
        boxes = read_visible_boxes(dataset, scene_id)
        for im_id, instances in read_ground_truth(dataset, scene_id, problems=detections.problems).items():
            of_image = by_image.get((scene_id, im_id), [])
            chosen = [instance for instance in instances if any(_is_of_target(instance, target) for target in of_image)]
            for instance in sorted(chosen, key=lambda instance: -instance.visib_fract):
                _add_instance(dataset, instance, boxes.get((im_id, instance.gt_id)), detections)
    return detections


def _is_of_target(instance: GroundTruth, target: AnyTarget) -> bool:
    if isinstance(target, ImageTarget):
        return instance.visib_fract >= MIN_VISIB_FRACT
    return instance.obj_id == target.obj_id


def _add_instance(
    dataset: Dataset,
    instance: GroundTruth,
    box_xywh: tuple[float, float, float, float] | None,
    detections: DetectionSet,
) -> None:
    image = (instance.scene_id, instance.im_id)
    mask_path = dataset.mask_visib_path(*image, instance.gt_id)
    if box_xywh is None:
        try:
            box_xywh = _mask_box_xywh(mask_path)
        except PicoPoseError as error:
            detections.problems.append(f"scene {image[0]}, image {image[1]}, object {instance.obj_id}: {error}")
            return
    detection = Detection(instance.obj_id, 1.0, box_xywh, mask_path, 0.0)
    detections.by_image.setdefault(image, []).append(detection)


def _mask_box_xywh(path: Path) -> tuple[float, float, float, float]:
    mask = read_mask_image(path)
    window = mask_slices(mask)
    if window is None:
        raise PicoPoseError("the mask is empty: the instance is not visible", where=path)
    rows, cols = window
    return float(cols.start), float(rows.start), float(cols.stop - cols.start), float(rows.stop - rows.start)
