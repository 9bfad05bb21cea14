"""What the benchmark asks for: objects and instance counts an image (BOP19), or images only (BOP24)."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.json_files import read_json_list, whole_number
from picopose_cli.bop.known_datasets import toolkit_split
from picopose_cli.bop.layout import split_folders
from picopose_cli.errors import PicoPoseError
from picopose_cli.structs import Target

_LOG = logging.getLogger(__name__)
MIN_VISIB_FRACT = 0.1
"""Instances less visible than this are no targets (BOP challenge)."""


def read_targets(dataset: Dataset, targets_path: Path | None = None) -> list[Target]:
    """Return the localisation targets, sorted by scene, image and object.

    They come from `targets_path`, else from the data set's own file (see `find_targets`), else they are made from the
    ground truth: every object with as many instances as are visible by a tenth.
    Raises PicoPoseError when the file is broken, or when there are neither file nor public ground truth.
    """
    path = targets_path or find_targets(dataset)
    targets = _made_from_ground_truth(dataset) if path is None else read_target_file(path)
    _LOG.info("%d targets from %s", len(targets), path or "the ground truth")
    if not targets:
        raise PicoPoseError("there are no targets", where=path or dataset.split_dir, fix="pass others with --targets")
    return targets


def find_targets(dataset: Dataset) -> Path | None:
    """Return the data set's BOP19 target file for its split, or None.

    The file is named after the split. test_targets_bop19.json also serves another split when there is no test split
    here that it could mean and the ground truth of this one holds every target.
    """
    for name in (dataset.split, toolkit_split(dataset.split)[0]):
        path = dataset.root / f"{name}_targets_bop19.json"
        if path.is_file():
            return path
    path = dataset.root / "test_targets_bop19.json"
    has_test = any(toolkit_split(folder)[0] == "test" for folder in split_folders(dataset.root))
    if path.is_file() and not has_test and dataset.has_public_gt and _fits(dataset, read_target_file(path)):
        return path
    return None


def read_target_file(path: Path) -> list[Target]:
    """Return the targets of a BOP19 file, sorted; raises PicoPoseError naming the entry that is broken."""
    targets: dict[tuple[int, int, int], Target] = {}
    for index, entry in enumerate(read_json_list(path)):
        if isinstance(entry, dict) and "obj_id" not in entry and "scene_id" in entry:
            fix = "pass a test_targets_bop19.json with --targets"
            raise PicoPoseError("lists images without objects (a BOP24 detection task)", where=path, fix=fix)
        target = Target(*_numbers(entry, ("scene_id", "im_id", "obj_id", "inst_count"), path, index))
        key = (target.scene_id, target.im_id, target.obj_id)
        if key in targets or target.inst_count < 1:
            fault = "names a target again" if key in targets else "asks for no instance"
            raise PicoPoseError(f"entry {index} {fault}", where=path, fix="correct the file")
        targets[key] = target
    return [targets[key] for key in sorted(targets)]


def read_image_targets(dataset: Dataset, targets_path: Path | None = None) -> list[tuple[int, int]]:
    """Return the (scene_id, im_id) pairs of the detection task, sorted, without duplicates.

    They come from `targets_path`, else from the split's bop24 file, else they are all images with ground truth.
    Raises PicoPoseError when the file is broken, or when there are neither file nor public ground truth.
    """
    names = dict.fromkeys((dataset.split, toolkit_split(dataset.split)[0]))
    usual = (dataset.root / f"{name}_targets_bop24.json" for name in names)
    path = targets_path or next((candidate for candidate in usual if candidate.is_file()), None)
    if path is None:
        _require_ground_truth(dataset, "bop24")
        scenes = dataset.scene_ids()
        return [(scene_id, im_id) for scene_id in scenes for im_id in sorted(read_ground_truth(dataset, scene_id))]
    entries = enumerate(read_json_list(path))
    pairs = {_numbers(entry, ("scene_id", "im_id"), path, index) for index, entry in entries}
    return sorted((scene_id, im_id) for scene_id, im_id in pairs)


def _made_from_ground_truth(dataset: Dataset) -> list[Target]:
    _require_ground_truth(dataset, "bop19")
    targets = []
    for scene_id in dataset.scene_ids():
        for im_id, instances in sorted(read_ground_truth(dataset, scene_id).items()):
            visible = (instance.obj_id for instance in instances if instance.visib_fract >= MIN_VISIB_FRACT)
            counts = sorted(Counter(visible).items())
            targets += [Target(scene_id, im_id, obj_id, count) for obj_id, count in counts]
    return targets


def _require_ground_truth(dataset: Dataset, kind: str) -> None:
    if not dataset.has_public_gt:
        raise PicoPoseError(
            f"there is no {toolkit_split(dataset.split)[0]}_targets_{kind}.json, and no public ground truth to make "
            "the targets from",
            where=dataset.root,
            fix="download the target file (it is in the data set's base archive) or pass it with --targets",
        )


def _fits(dataset: Dataset, targets: list[Target]) -> bool:
    """Tell whether the ground truth of this split holds every target."""
    counts: Counter[tuple[int, int, int]] = Counter()
    scenes = {target.scene_id for target in targets}
    if not scenes.issubset(dataset.scene_ids()):
        return False
    for scene_id in scenes:
        ignored: list[str] = []  # broken instances are reported by whoever uses them
        for im_id, instances in read_ground_truth(dataset, scene_id, problems=ignored).items():
            counts.update((scene_id, im_id, instance.obj_id) for instance in instances)
    return all(counts[target.scene_id, target.im_id, target.obj_id] >= target.inst_count for target in targets)


def _numbers(entry: Any, names: tuple[str, ...], path: Path, index: int) -> tuple[int, ...]:
    if not isinstance(entry, dict):
        raise PicoPoseError(f"entry {index} is not an object", where=path, fix="correct the file")
    values = []
    for name in names:
        value = whole_number(entry.get(name))
        if value is None:
            raise PicoPoseError(f"entry {index}: {name} is not a whole number", where=path, fix="correct the file")
        values.append(value)
    return tuple(values)
