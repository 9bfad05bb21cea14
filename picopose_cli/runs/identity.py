"""The identity of a run: all that its results depend on.

A journal continues a run of the same identity only, and shards of one run differ in `shard` alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picopose_cli.base.cameras import CameraModel, Pinhole
from picopose_cli.base.environment import package_versions
from picopose_cli.base.option_fields import options_record
from picopose_cli.base.tasks import ImageTask
from picopose_cli.base.types import ObjectInfo
from picopose_cli.bop.detections import detections_sha256
from picopose_cli.bop.targets import targets_kind
from picopose_cli.runs.objects import refinement_text

if TYPE_CHECKING:
    from picopose_cli.runs.inputs import RunInputs  # which reads the identity of a begun run

_OPTIONS_NOT_IN_IDENTITY = {
    "data_dir", "templates", "detections", "weights", "targets", "output", "workers", "limit", "restart", "profile",
    "cache", "refine", "extra_detections", "overlays", "ray", "gpus", "workers_per_gpu", "ship_images",
}  # fmt: skip
"""Options that change no result, or whose content is in the identity as a hash; a new option is in it by default."""
RESULT_VERSIONS = ("picopose", "torch", "numpy", "opencv-python-headless")
_MISSING = "missing"


def run_identity(inputs: RunInputs) -> dict[str, Any]:
    """Return all that the results of a run depend on, as JSON values."""
    options, versions, objects = inputs.options, package_versions(), inputs.objects
    detections = inputs.detections_file
    return {name: value for name, value in options_record(options).items() if name not in _OPTIONS_NOT_IN_IDENTITY} | {
        "dataset": inputs.dataset.name,
        "split": inputs.dataset.result_split,
        "device": inputs.devices[0].partition(":")[0],
        "precision": inputs.precision,
        "batch_size": inputs.batch_size,
        "weights_sha256": inputs.weights_sha256,
        "versions": {name: versions[name] for name in RESULT_VERSIONS},
        "shard": options.part and list(options.part),
        "refinement": refinement_text(options.rounds, inputs.usable_objects.values()),
        "targets": targets_kind(inputs.targets),
        "hypotheses": options.tried_templates,
        "extra_detections": options.extra,
        "detections_sha256": options.detections if detections is None else detections_sha256(detections),
        "images": len(inputs.all_tasks),
        "tasks_sha256": tasks_sha256(inputs.all_tasks),
        "banks": {str(obj_id): found and _sha256(asdict(found.provenance)) for obj_id, found in objects.items()},
        "symmetries": {
            str(obj_id): _symmetries_sha256(found.symmetries)
            for obj_id, found in inputs.usable_objects.items()
            if found.symmetries is not None
        },
    }


def tasks_sha256(tasks: Iterable[ImageTask]) -> str:
    """Return a hash of the images, cameras and detections of tasks, in their order; of paths only the file names."""
    digest = hashlib.sha256()
    for task in tasks:
        detections = [asdict(detection) for detection in task.detections]
        content = [task.scene_id, task.im_id, task.image_path.name, _numbers(task.camera), task.problem, detections]
        if task.depth is not None:
            content += [task.depth.path.name, task.depth.scale, task.depth.problem]
        digest.update(json.dumps(content, default=_json_value).encode() + b"\n")
    return digest.hexdigest()


def _numbers(camera: CameraModel | None) -> object:
    """Return what a camera is made of as JSON."""
    return camera.K.tolist() if isinstance(camera, Pinhole) else camera and list(camera.numbers)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return what differs between two identities, as `name: theirs there, ours here`, nested names with dots."""
    flat_ours, flat_theirs = dict(_flat(ours)), dict(_flat(theirs))
    names = [*flat_ours, *(name for name in flat_theirs if name not in flat_ours)]
    return [
        f"{name}: {_short(flat_theirs.get(name, _MISSING))} there, {_short(flat_ours.get(name, _MISSING))} here"
        for name in names
        if flat_ours.get(name, _MISSING) != flat_theirs.get(name, _MISSING)
    ]


def is_same_run(identity: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two identities, whole runs or shards, are of one run: all but `shard` is equal as JSON."""
    one, two = (json.loads(json.dumps({**values, "shard": None})) for values in (identity, other))
    return bool(one == two)


def shard_of(identity: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the shard (i, n) of an identity, None for a run that is not sharded."""
    shard = identity.get("shard")
    return (int(shard[0]), int(shard[1])) if isinstance(shard, list) and len(shard) == 2 else None


def _json_value(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return value.name if isinstance(value, Path) else float(value)  # type: ignore[arg-type]  # a NumPy number


def _symmetries_sha256(info: ObjectInfo) -> str:
    continuous = [[axis.tolist(), offset.tolist()] for axis, offset in info.symmetries_continuous]
    return _sha256({"discrete": info.symmetries_discrete.tolist(), "continuous": continuous})


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
