"""From targets and detections to the units of work: one ImageTask an image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from picopose_cli.base.cameras import Camera
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import ImageTask, LoadedImage
from picopose_cli.base.types import AnyTarget, Array, Detection, ImageTarget
from picopose_cli.bop.datasets import Dataset, read_scene_cameras
from picopose_cli.bop.detections import select_detections
from picopose_cli.bop.images import read_image_rgb, read_mask
from picopose_cli.bop.targets import targets_by_image


def make_image_tasks(
    dataset: Dataset, targets: Sequence[AnyTarget], detections: Mapping[tuple[int, int], Sequence[Detection]]
) -> list[ImageTask]:
    """Return one task for each image with targets, sorted by scene and image, with the detections to estimate.

    An image without detections is there too, with none; one without a usable camera has K None and `problem` set.
    """
    by_image = targets_by_image(targets)
    cameras: dict[int, dict[int, Camera] | PicoPoseError] = {}
    tasks = []
    for scene_id, im_id in sorted(by_image):
        if scene_id not in cameras:
            cameras[scene_id] = _cameras_or_error(dataset, scene_id)
        camera = _camera_of(cameras[scene_id], im_id)
        chosen = select_detections(by_image[scene_id, im_id], detections.get((scene_id, im_id), ()))
        path = dataset.image_path(scene_id, im_id)
        tasks.append(ImageTask(scene_id, im_id, path, camera.K, tuple(chosen), camera.problem))
    return tasks


def keep_what_counts(
    tasks: Iterable[ImageTask], targets: Iterable[AnyTarget], usable: Collection[int]
) -> list[ImageTask]:
    """Return the tasks without the detections for which the detection task has no place.

    An image that is a target as a whole keeps the `max_estimates` best detections, of `usable` objects only: others
    would take their places. The tasks of other images stay as they are.
    """
    limits = {
        (target.scene_id, target.im_id): target.max_estimates for target in targets if isinstance(target, ImageTarget)
    }
    kept = []
    for task in tasks:
        places = limits.get((task.scene_id, task.im_id))
        if places is not None:
            able = [detection for detection in task.detections if detection.obj_id in usable]
            task = replace(task, detections=tuple(able[:places]))
        kept.append(task)
    return kept


def tasks_sha256(tasks: Iterable[ImageTask]) -> str:
    """Return a digest of all that the tasks ask for, in their order; folders do not count, only names in them."""
    digest = hashlib.sha256()
    for task in tasks:
        K = None if task.K is None else task.K.tolist()
        detections = [asdict(detection) for detection in task.detections]
        content = [task.scene_id, task.im_id, task.image_path.name, K, task.problem, detections]
        digest.update(json.dumps(content, default=_plain).encode() + b"\n")
    return digest.hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return value.name if isinstance(value, Path) else float(value)  # type: ignore[arg-type]  # a NumPy number


def load_image(task: ImageTask) -> LoadedImage:
    """Read a task's image and masks; a mask that cannot be read is replaced by the error.

    Raises PicoPoseError when the image itself cannot be read.
    """
    image_rgb = read_image_rgb(task.image_path)
    size_hw = (image_rgb.shape[0], image_rgb.shape[1])
    return LoadedImage(image_rgb, tuple(_mask_or_error(detection, size_hw) for detection in task.detections))


def _mask_or_error(detection: Detection, size_hw: tuple[int, int]) -> Array | PicoPoseError | None:
    if detection.mask is None:
        return None
    try:
        return read_mask(detection.mask, size_hw)
    except PicoPoseError as error:
        return error


def _cameras_or_error(dataset: Dataset, scene_id: int) -> dict[int, Camera] | PicoPoseError:
    try:
        return read_scene_cameras(dataset, scene_id)
    except PicoPoseError as error:
        return error


def _camera_of(cameras: dict[int, Camera] | PicoPoseError, im_id: int) -> Camera:
    if isinstance(cameras, PicoPoseError):
        return Camera(None, problem=str(cameras))
    return cameras.get(im_id, Camera(None, problem="scene_camera has no entry for the image"))
