"""Targets of the benchmark: numbers of instances of objects in images (BOP19), or whole images (BOP24)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.json_numbers import whole_number
from picopose_cli.base.options import TARGET_KINDS
from picopose_cli.base.types import MIN_VISIB_FRACT, AnyTarget, ImageTarget, Target
from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.json_files import read_json_list
from picopose_cli.bop.known_datasets import known_splits, max_estimates_per_image, scored_suffixes, toolkit_split
from picopose_cli.bop.layouts import split_folders
from picopose_cli.bop.multiview_targets import has_views, single_images, views_text

_LOG = logging.getLogger(__name__)

_EXAMPLES = {
    "bop19": '[{"scene_id": 1, "im_id": 0, "obj_id": 5, "inst_count": 1}]',
    "bop24": '[{"scene_id": 1, "im_id": 0}]',
}
"""Targets files by kind."""

Key = TypeVar("Key", bound=tuple[int, ...])


@dataclass(frozen=True)
class ChosenTargets:
    """Targets, all of one kind, in the order of their file; `path` None: made from the ground truth in `source`."""

    targets: Sequence[AnyTarget]
    path: Path | None
    source: str
    """Where they come from, and their task."""

    @property
    def kind(self) -> str:
        """`bop19` (localisation) or `bop24` (detection)."""
        return targets_kind(self.targets)


def choose_targets(dataset: Dataset, wanted: str | None = None) -> ChosenTargets:
    """Return the targets that `wanted` names: `bop19`, `bop24`, or the path of a file of either kind.

    Those of a kind are read from the data set's own file, else made from the ground truth. None: the data set's own
    BOP19 file, else its BOP24 file, else made from the ground truth as for BOP19.
    Raises PicoPoseError when the file is invalid, or when there is neither a file nor public ground truth.
    """
    path = _find_wanted(dataset, wanted)
    targets: Sequence[AnyTarget]
    if path is not None and wanted not in TARGET_KINDS:
        entries, sensors = read_json_list(path), _sensors_in_use(dataset)
        targets = read_target_file(path, dataset.name, sensors)
        if has_views(entries):
            return ChosenTargets(targets, path, f"{targets_text(targets, path)}; {views_text(sensors)}")
    else:
        targets = read_image_targets(dataset) if wanted == "bop24" else read_targets(dataset)
    return ChosenTargets(
        targets, path, targets_text(targets, path or f"made from the ground truth in {dataset.split_dir}")
    )


def _sensors_in_use(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of the sensors whose images are estimated: the one asked for, else those that BOP scores."""
    if dataset.sensor is not None:
        return (dataset.sensor,)
    return tuple(suffix.removeprefix("_") for suffix in scored_suffixes(dataset.name))


def needs_detected_targets(dataset: Dataset, wanted: str | None) -> bool:
    """Return whether targets can follow from the detections alone (see `detected_targets`).

    That is so for own data without target files and ground truth, unless `wanted` names a file or BOP19. Of a data set
    of BOP the target file decides what counts, so it is not replaced.
    """
    has_files = (find_targets(dataset) or find_image_targets(dataset)) is not None
    return wanted in (None, "bop24") and not (has_files or dataset.has_public_gt or known_splits(dataset.name))


def detected_targets(dataset: Dataset, detected: Collection[tuple[int, int]]) -> ChosenTargets:
    """Return the targets that follow from detections: each (scene_id, im_id) with a detection is one of BOP24's kind.

    `detected` has at least one.
    """
    max_estimates = max_estimates_per_image(dataset.name)
    targets = [ImageTarget(*image, max_estimates) for image in sorted(detected)]
    return ChosenTargets(targets, None, targets_text(targets, "every image with a detection, and no other"))


def _find_wanted(dataset: Dataset, wanted: str | None) -> Path | None:
    if wanted is None:
        return find_targets(dataset) or find_image_targets(dataset)
    if wanted in TARGET_KINDS:
        return find_image_targets(dataset) if wanted == "bop24" else find_targets(dataset)
    return _existing_file(wanted)


def _existing_file(wanted: str) -> Path:
    if not Path(wanted).is_file():
        fix = f"pass {', '.join(TARGET_KINDS)} or a file with --targets"
        raise PicoPoseError("the target file does not exist", where=wanted, fix=fix)
    return Path(wanted)


def targets_text(targets: Sequence[AnyTarget], source: Path | str) -> str:
    """Return the source and the task of targets as text."""
    kind = "BOP24, detection" if targets_kind(targets) == "bop24" else "BOP19, localisation"
    return f"{source} ({kind})"


def targets_kind(targets: Sequence[AnyTarget]) -> str:
    """Return `bop19` (localisation) or `bop24` (detection)."""
    return "bop24" if isinstance(targets[0], ImageTarget) else "bop19"


def kind_of(wanted: str) -> str:
    """Return `bop19` or `bop24` for what `choose_targets` takes; raises PicoPoseError for a file that is invalid."""
    return wanted if wanted in TARGET_KINDS else targets_kind(read_target_file(_existing_file(wanted), ""))


def targets_by_image(targets: Iterable[AnyTarget]) -> dict[tuple[int, int], list[AnyTarget]]:
    """Return the targets of each (scene_id, im_id), in their order."""
    by_image: dict[tuple[int, int], list[AnyTarget]] = {}
    for target in targets:
        by_image.setdefault((target.scene_id, target.im_id), []).append(target)
    return by_image


def read_target_file(path: Path, dataset_name: str, sensors: Collection[str] | None = None) -> Sequence[AnyTarget]:
    """Return the targets of a BOP19 or BOP24 file in its order, scene by scene.

    A BOP24 file lists images without objects, a multi-view file several views of `sensors` (None: of the scored ones).
    `dataset_name` decides how many estimates of an image are counted. Raises PicoPoseError when the file is empty or
    invalid.
    """
    entries = read_json_list(path)
    if has_views(entries):
        if sensors is None:
            sensors = [suffix.removeprefix("_") for suffix in scored_suffixes(dataset_name)]
        return _image_targets(single_images(entries, sensors, path), path, dataset_name)
    with_objects = any(isinstance(entry, dict) and entry.keys() & {"obj_id", "inst_count"} for entry in entries)
    if with_objects or not entries:
        return _object_targets(entries, path)
    return _image_targets(entries, path, dataset_name)


def read_targets(dataset: Dataset) -> list[Target]:
    """Return the localisation targets.

    They are read from the data set's own file (see `find_targets`), in its order, else made from the ground truth:
    every object with the number of its instances that are visible by MIN_VISIB_FRACT, sorted.
    Raises PicoPoseError when the file is invalid, or when there is neither a file nor public ground truth.
    """
    path = find_targets(dataset)
    targets = _made_from_ground_truth(dataset) if path is None else _object_targets(read_json_list(path), path)
    _LOG.info("%d targets from %s", len(targets), path or "the ground truth")
    return targets


def read_image_targets(dataset: Dataset) -> list[ImageTarget]:
    """Return the targets of the detection task.

    They are read from the split's BOP24 file, in its order, else they are all images with ground truth, sorted.
    Raises PicoPoseError when the file is invalid, or when there is neither a file nor public ground truth.
    """
    path = find_image_targets(dataset)
    if path is not None:
        return _image_targets(read_json_list(path), path, dataset.name)
    _require_ground_truth(dataset, "bop24")
    max_estimates = max_estimates_per_image(dataset.name)
    images = {scene_id: sorted(read_ground_truth(dataset, scene_id)) for scene_id in dataset.scene_ids()}
    return [ImageTarget(scene_id, im_id, max_estimates) for scene_id, im_ids in images.items() for im_id in im_ids]


def find_targets(dataset: Dataset) -> Path | None:
    """Return the data set's BOP19 target file for its split, or None.

    The file is named after the split. test_targets_bop19.json is also used for another split when the data set has no
    test split on disk and the ground truth of this one has every target.
    """
    own = _file_of_split(dataset, "bop19")
    if own is not None:
        return own
    path = dataset.root / "test_targets_bop19.json"
    has_test = any(toolkit_split(folder)[0] == "test" for folder in split_folders(dataset.root))
    if has_test or not dataset.has_public_gt or not path.is_file():
        return None
    return path if _fits(dataset, _object_targets(read_json_list(path), path)) else None


def find_image_targets(dataset: Dataset) -> Path | None:
    """Return the data set's BOP24 target file for its split, or None."""
    return _file_of_split(dataset, "bop24")


def _file_of_split(dataset: Dataset, kind: str) -> Path | None:
    names = (dataset.split, toolkit_split(dataset.split)[0])
    paths = (dataset.root / f"{name}_targets_{kind}.json" for name in names)
    return next((path for path in paths if path.is_file()), None)


def _object_targets(entries: Sequence[Any], path: Path) -> list[Target]:
    """Return the targets of a BOP19 file in its order, scene by scene; raises PicoPoseError naming an invalid entry.

    As in the toolkit the last of repeated entries counts, and an inst_count of 0 adds nothing.
    """
    counts: dict[tuple[int, int, int], int] = {}
    for index, entry in enumerate(entries):
        *key, inst_count = _numbers(entry, ("scene_id", "im_id", "obj_id", "inst_count"), path, index)
        counts[key[0], key[1], key[2]] = inst_count
    if len(counts) < len(entries):
        _LOG.warning("%s: %d entries repeat a target; the last one counts", path, len(entries) - len(counts))
    targets = [Target(*key, counts[key]) for key in _scene_by_scene(counts) if counts[key]]
    _require_some(targets, path)
    return targets


def _scene_by_scene(keys: Iterable[Key]) -> list[Key]:
    """Return keys that begin with a scene id with those of a scene together, otherwise in their order.

    That is the order in which the toolkit scores, and in which estimates of equal score are ranked.
    """
    by_scene: dict[int, list[Key]] = {}
    for key in keys:
        by_scene.setdefault(key[0], []).append(key)
    return [key for of_scene in by_scene.values() for key in of_scene]


def _image_targets(entries: Sequence[Any], path: Path, dataset_name: str) -> list[ImageTarget]:
    """Return the targets of a BOP24 file in its order, scene by scene, without duplicates."""
    images = dict.fromkeys(_numbers(entry, ("scene_id", "im_id"), path, index) for index, entry in enumerate(entries))
    _require_some(images, path)
    max_estimates = max_estimates_per_image(dataset_name)
    return [ImageTarget(scene_id, im_id, max_estimates) for scene_id, im_id in _scene_by_scene(images)]


def _require_some(targets: Collection[Any], where: Path) -> None:
    if not targets:
        raise PicoPoseError("there are no targets", where=where, fix="pass others with --targets")


def _made_from_ground_truth(dataset: Dataset) -> list[Target]:
    _require_ground_truth(dataset, "bop19")
    targets = []
    for scene_id in dataset.scene_ids():
        for im_id, instances in sorted(read_ground_truth(dataset, scene_id).items()):
            visible = (instance.obj_id for instance in instances if instance.visib_fract >= MIN_VISIB_FRACT)
            counts = sorted(Counter(visible).items())
            targets += [Target(scene_id, im_id, obj_id, count) for obj_id, count in counts]
    _require_some(targets, dataset.split_dir)
    return targets


def _require_ground_truth(dataset: Dataset, kind: str) -> None:
    if not dataset.has_public_gt:
        name, public = f"{toolkit_split(dataset.split)[0]}_targets_{kind}.json", "public " * dataset.has_private_gt
        known = "download the target file (it is in the data set's base archive) or pass it with --targets"
        own = (
            "pass a file of detections, whose images are the targets then, or write targets there, or anywhere and "
            f"pass them with --targets: a JSON list such as {_EXAMPLES[kind]}"
        )
        raise PicoPoseError(
            f"there is no {name}, and no {public}ground truth to make targets from",
            where=dataset.root,
            fix=known if known_splits(dataset.name) else own,
        )


def _fits(dataset: Dataset, targets: list[Target]) -> bool:
    """Return whether the ground truth of this split has every target."""
    counts: Counter[tuple[int, int, int]] = Counter()
    scenes = {target.scene_id for target in targets}
    if not scenes.issubset(dataset.scene_ids()):
        return False
    for scene_id in scenes:
        ignored: list[str] = []  # invalid instances are reported where they are used
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
