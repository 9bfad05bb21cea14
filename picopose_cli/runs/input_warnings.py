"""What may be wrong with images, cameras and boxes although they can be used: said before a run, and in its report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import ImageTask
from picopose_cli.base.types import Array, Detection
from picopose_cli.bop.image_headers import ORIENTATION_TEXTS, ImageHeader, read_image_header
from picopose_cli.bop.images import read_used_bits

_FEWEST_BOXES = 3
"""Fewer boxes are not enough to call all boxes of a file corners."""
_U16_BITS = 16

OpenedImage = tuple[ImageTask, ImageHeader]


def input_warnings(tasks: Sequence[ImageTask]) -> list[str]:
    """Return the warnings of a run's images, at most one of each kind a scene; only headers are read.

    An image that cannot be read is reported when it is estimated. Raises PicoPoseError when the boxes of a run without
    masks are those of corners.
    """
    headers = ((task, read_image_header(task.image_path)) for task in tasks)
    opened = [(task, header) for task, header in headers if header is not None]
    warnings = _corner_warnings(opened)
    for scene_id, images in groupby(opened, key=lambda image: image[0].scene_id):
        of_scene = list(images)
        found = (*_camera_warnings(of_scene), *_rotation_warnings(of_scene), *_bits_warnings(of_scene))
        warnings += [f"scene {scene_id}: {text}" for text in found]
    return warnings


def relabelled_warnings(
    tasks: Iterable[ImageTask], detections: Mapping[tuple[int, int], Sequence[Detection]]
) -> list[str]:
    """Return a warning when objects get the detections of others (see `select_detections`); `detections` by image."""
    relabelled = [
        (task.name, obj_id)
        for task in tasks
        for obj_id in sorted({detection.obj_id for detection in task.detections})
        if not any(found.obj_id == obj_id for found in detections.get((task.scene_id, task.im_id), ()))
    ]
    if not relabelled:
        return []
    (image, obj_id), what = relabelled[0], "by BOP's rule the best detections of other objects are taken for them"
    return [f"{len(relabelled)} targets have no detection of their object; {what}: first {image}, object {obj_id}"]


def _camera_warnings(images: Sequence[OpenedImage]) -> Iterator[str]:
    for task, header in images:
        if task.camera is None:
            continue
        fx, fy, cx, cy = task.camera.pinhole_numbers
        height, width = header.size_hw
        if not (width / 4 <= cx <= width * 3 / 4 and height / 4 <= cy <= height * 3 / 4):
            name = "cam_model" if task.K is None else "cam_K"
            yield (
                f"the principal point of image {task.im_id} is far from the middle of its {width}x{height} px ({name}: "
                f"fx {fx:g}, fy {fy:g}, cx {cx:g}, cy {cy:g}); if {name} belongs to another resolution, distances are "
                "wrong by the same factor"
            )
            return


def _rotation_warnings(images: Sequence[OpenedImage]) -> Iterator[str]:
    rotated = [(task.im_id, header.orientation) for task, header in images if header.orientation in ORIENTATION_TEXTS]
    if rotated:
        im_id, orientation = rotated[0]
        yield (
            f"{len(rotated)} of {len(images)} images have an EXIF rotation (image {im_id}: shown "
            f"{ORIENTATION_TEXTS[orientation]}), which is not applied: cam_K, masks and boxes must belong to the "
            "pixels in the order in which they are stored"
        )


def _bits_warnings(images: Sequence[OpenedImage]) -> Iterator[str]:
    for task, header in images:
        if header.bits == _U16_BITS:
            try:
                bits = read_used_bits(task.image_path)
            except PicoPoseError:
                continue  # reported when it is estimated
            if bits is not None and bits < _U16_BITS:
                yield (
                    f"image {task.im_id} uses {bits} of its 16 bits: each image is scaled to 8 bits by the bits that "
                    "it uses"
                )
            return


def _corner_warnings(images: Sequence[OpenedImage]) -> list[str]:
    """Return a warning where the boxes of few detections without masks are corners, and stop where many are."""
    detections = [(detection, header.size_hw) for task, header in images for detection in task.detections]
    if not detections or any(detection.mask is not None for detection, _ in detections):
        return []
    found = sorted({(detection.box_xywh, size_hw) for detection, size_hw in detections})
    boxes, sizes_hw = np.array([box for box, _ in found]), np.array([size_hw for _, size_hw in found])
    if not _are_corners(boxes, sizes_hw):
        return []
    shown = ", ".join(f"{value:g}" for value in boxes[0])
    what = f"the boxes must be x, y, width, height, but are the corners x1, y1, x2, y2 (for example {shown})"
    if len(boxes) >= _FEWEST_BOXES:
        raise PicoPoseError(what, fix="write width and height, x2 - x1 and y2 - y1, into the detections")
    return [what]


def _are_corners(boxes: Array, sizes_hw: Array) -> bool:
    """Return whether all boxes (B,4) are inside their images as corners, and most are not as x, y, width, height."""
    limits = sizes_hw[:, ::-1]  # width, height
    low, high = boxes[:, :2], boxes[:, 2:]
    corners = ((low < high) & (low >= -1) & (high <= limits + 1)).all(axis=1)
    beyond = (low + high > limits + 1).any(axis=1)
    return bool(corners.all() and beyond.mean() > 1 / 2)
