"""Square crops of the detections of an image, the network's queries; a detection that cannot be used is skipped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import ImageTask, LoadedImage, Skip
from picopose_cli.base.types import Array, Detection, QueryBatch
from picopose_cli.templates.crops import (
    SMALLEST_MASK_PX,
    crop_affine,
    crop_colour,
    crop_mask,
    normalise_bgr,
    square_box,
)

MIN_BOX_PX = 1.0
"""Smallest width and height of a box's part inside the image where the box decides the crop."""


@dataclass(frozen=True)
class Query:
    """The crop of one detection.

    `crop_rgb` (224,224,3) f32 in [0,1], `mask` (224,224) bool, `A_crop_from_image` (3,3), `K` (3,3) of the image;
    `position` is the detection's index in its image's list.
    """

    position: int
    detection: Detection
    crop_rgb: Array
    mask: Array
    A_crop_from_image: Array
    K: Array


def crop_queries(
    task: ImageTask, image: LoadedImage, known_objects: Collection[int]
) -> tuple[tuple[Query, ...], tuple[Skip, ...]]:
    """Return the crops of an image's detections, and the reasons why others cannot be used.

    `known_objects`: ids of the objects that have templates.
    """
    queries, skips = [], []
    for position, (detection, mask) in enumerate(zip(task.detections, image.masks, strict=True)):
        try:
            if detection.obj_id not in known_objects:
                raise PicoPoseError("the object has no usable templates")
            if isinstance(mask, PicoPoseError):
                raise mask
            if task.K is None:
                raise PicoPoseError("the image is of a fisheye camera, which is not supported")
            queries.append(_crop(position, detection, mask, image.image_rgb, task.K))
        except PicoPoseError as error:
            skips.append(Skip(task.scene_id, task.im_id, detection.obj_id, str(error)))
    return tuple(queries), tuple(skips)


def _crop(position: int, detection: Detection, mask: Array | None, image_rgb: Array, K: Array) -> Query:
    height, width = image_rgb.shape[:2]
    if mask is None:
        mask = _box_mask(detection.box_xywh, height, width)
    elif mask.shape != (height, width):
        raise PicoPoseError(f"the mask is {mask.shape[1]}x{mask.shape[0]}, the image {width}x{height}")
    elif np.count_nonzero(mask) <= SMALLEST_MASK_PX:
        _require_in_image(detection.box_xywh, height, width)  # the box decides the crop
    box = square_box(mask, detection.box_xywh)
    return Query(position, detection, crop_colour(image_rgb, box), crop_mask(mask, box), crop_affine(box), K)


def _box_mask(box_xywh: tuple[float, float, float, float], height: int, width: int) -> Array:
    """Return a box as a mask (H,W) bool, for a detection without a mask."""
    left, top, right, bottom = _require_in_image(box_xywh, height, width)
    mask = np.zeros((height, width), bool)
    mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    return mask


def _require_in_image(box_xywh: tuple[float, float, float, float], height: int, width: int) -> tuple[float, ...]:
    """Return the part (left, top, right, bottom) of a box inside the image; raises PicoPoseError when it has none."""
    x, y, w, h = box_xywh
    left, right = np.clip([x, x + w], 0, width)
    top, bottom = np.clip([y, y + h], 0, height)
    if right - left < MIN_BOX_PX or bottom - top < MIN_BOX_PX:
        raise PicoPoseError(f"neither mask nor box [{x:g}, {y:g}, {w:g}, {h:g}] covers any of the image")
    return left, top, right, bottom


def stack_queries(queries: Sequence[Query]) -> QueryBatch:
    """Return queries as one batch for the network, in their order."""
    return QueryBatch(
        inputs=normalise_bgr(np.stack([query.crop_rgb for query in queries])),
        masks=np.stack([query.mask for query in queries]),
        A_crop_from_image=np.stack([query.A_crop_from_image for query in queries]),
        K=np.stack([query.K for query in queries]),
        obj_ids=np.array([query.detection.obj_id for query in queries]),
    )
