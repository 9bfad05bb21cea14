"""The targets of a run and the detections that it estimates for them, whichever of the two follows from the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import InferOptions
from picopose_cli.base.tasks import ImageTask
from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.detection_set import DetectionSet
from picopose_cli.bop.detections import find_detections, read_detections
from picopose_cli.bop.ground_truth_masks import ground_truth_detections
from picopose_cli.bop.targets import ChosenTargets, choose_targets, detected_targets, needs_detected_targets

GROUND_TRUTH_MASKS = "ground-truth masks"


@dataclass(frozen=True)
class TargetDetections:
    """Targets and detections; `file` is that of the detections, None for the ground-truth masks."""

    targets: ChosenTargets
    file: Path | None
    detections: DetectionSet


def read_target_detections(dataset: Dataset, data_dir: Path, options: InferOptions) -> TargetDetections:
    """Return the targets and the detections of a run; own data without targets and ground truth needs detections alone.

    Raises PicoPoseError when one of them cannot be used.
    """
    if options.detections == "gt":
        targets = choose_targets(dataset, options.targets)
        return TargetDetections(targets, None, ground_truth_detections(dataset, targets.targets))
    chosen = None if needs_detected_targets(dataset, options.targets) else choose_targets(dataset, options.targets)
    file = Path(options.detections) if options.detections else find_detections(dataset, data_dir)
    found = read_detections(file)
    if chosen is None:
        if not found.by_image:
            require_detections(file, found, ())
        chosen = detected_targets(dataset, found.by_image)
    return TargetDetections(chosen, file, found)


def require_detections(file: Path | None, detections: DetectionSet, tasks: Sequence[ImageTask]) -> None:
    """Raise PicoPoseError when there is nothing to estimate in the images of a run."""
    if any(task.detections for task in tasks):
        return
    if detections.by_image:
        scene_id, im_id = min(detections.by_image)
        what = f"no image of the run has a detection, only others such as scene {scene_id}, image {im_id}"
        fix = "pass the detections of this data set and split with --detections"
    elif detections.problems:
        what, fix = f"no detection can be used ({detections.problems[0]})", "correct the detections"
    else:
        what, fix = "there are no detections", "pass detections of at least one object with --detections"
    raise PicoPoseError(what, where=file or GROUND_TRUTH_MASKS, fix=fix)
