"""Square crops of the detections of an image, the network's queries; a detection that cannot be used is skipped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from picopose_cli.base.cameras import CameraModel, Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T
from picopose_cli.base.tasks import ImageTask, LoadedImage, Skip
from picopose_cli.base.types import Array, Detection, QueryBatch
from picopose_cli.pose.close_ups import CloseUp, cut_close_up, cut_virtual_close_up
from picopose_cli.pose.depth_samples import DepthSamples, sample_depth
from picopose_cli.pose.occluders import OtherMasks
from picopose_cli.templates.crops import (
    SMALLEST_MASK_PX,
    crop_affine,
    crop_colour,
    crop_mask,
    normalise_bgr,
    square_box,
)
from picopose_cli.templates.perspective_crops import VirtualCamera, aim_camera, make_crop, mask_outline

MIN_BOX_PX = 1.0
"""Smallest width and height of a box's part inside the image where the box decides the crop."""
OFF_AXIS_DEG = 25.0
"""Angle to the axis from which the default rules use virtual cameras for pinholes. Nearer to it the plain crop is at
least as good on photographs (benchmarks/README.md)."""


@dataclass(frozen=True)
class Query:
    """The crop of one detection.

    `crop_rgb` (224,224,3) f32 in [0,1], `mask` (224,224) bool, `A_crop_from_image` (3,3), `K` (3,3) of the image;
    `position` is the detection's index in its image's list. With `R_cam_from_virtual` (3,3) the image is that of a
    virtual pinhole camera, and the poses that it gives are rotated back by `pose_in_camera`. `close_up` is what
    refinement needs, `depth` what was measured, in the frame of this crop's camera.
    """

    position: int
    detection: Detection
    crop_rgb: Array
    mask: Array
    A_crop_from_image: Array
    K: Array
    R_cam_from_virtual: Array | None = None
    close_up: CloseUp | None = None
    depth: DepthSamples | None = None

    def pose_in_camera(self, T: Array) -> Array:
        """Return the pose T_cam_from_obj (4,4) in the image's camera of a pose in the camera of this crop."""
        if self.R_cam_from_virtual is None:
            return T
        return make_T(self.R_cam_from_virtual @ T[:3, :3], self.R_cam_from_virtual @ T[:3, 3])


def virtual_camera(
    camera: CameraModel, detection: Detection, mask: Array, *, perspective_crops: bool
) -> VirtualCamera | None:
    """Return the virtual camera that makes a detection's crop, None where the image itself is cropped.

    In a fisheye's image there always is one; in a pinhole's, with `perspective_crops`, far off the axis. Raises
    PicoPoseError when neither the mask (H,W) bool nor the box is seen by such a camera.
    """
    if isinstance(camera, Pinhole) and not perspective_crops:
        return None
    if np.count_nonzero(mask) <= SMALLEST_MASK_PX:
        if not np.isfinite(detection.box_xywh).all():
            raise PicoPoseError("the mask is empty or a few pixels, and there is no box", fix="remove the detection")
        mask = _box_mask(detection.box_xywh, *mask.shape)
    outline = mask_outline(mask)
    centre = (outline.min(axis=0) + outline.max(axis=0)) / 2 + camera.first_pixel_px
    if isinstance(camera, Pinhole) and camera.unproject(centre)[2] > np.cos(np.deg2rad(OFF_AXIS_DEG)):
        return None
    return aim_camera(camera, outline)


def crop_queries(
    task: ImageTask,
    image: LoadedImage,
    known_objects: Collection[int],
    *,
    perspective_crops: bool = False,
    close_ups: bool = False,
) -> tuple[tuple[Query, ...], tuple[Skip, ...]]:
    """Return the crops of an image's detections, and the reasons why others cannot be used.

    `known_objects`: ids of the objects that have templates; `perspective_crops`: see `virtual_camera`; `close_ups`: cut
    what refinement needs, too.
    """
    queries, skips = [], []
    camera = task.camera
    assert camera is not None  # the image has no problem
    others = _other_masks(image) if close_ups else None
    for position, (detection, mask) in enumerate(zip(task.detections, image.masks, strict=True)):
        try:
            if detection.obj_id not in known_objects:
                raise PicoPoseError("the object has no usable templates")
            if isinstance(mask, PicoPoseError):
                raise mask
            mask = _usable_mask(detection, mask, image.image_rgb)
            virtual = virtual_camera(camera, detection, mask, perspective_crops=perspective_crops)
            if virtual is None:
                one = _crop(position, detection, mask, image.image_rgb, camera, others)
            else:
                one = _virtual_crop(position, detection, mask, image.image_rgb, camera, virtual, others)
            if isinstance(image.depth_m, np.ndarray):
                view = camera, one.A_crop_from_image, one.K, one.R_cam_from_virtual
                one = replace(one, depth=sample_depth(image.depth_m, mask, *view))
            queries.append(one)
        except PicoPoseError as error:
            skips.append(Skip(task.scene_id, task.im_id, detection.obj_id, str(error)))
    return tuple(queries), tuple(skips)


def _other_masks(image: LoadedImage) -> OtherMasks:
    shape = image.image_rgb.shape[:2]
    return OtherMasks([mask if isinstance(mask, np.ndarray) and mask.shape == shape else None for mask in image.masks])


def _crop(
    position: int,
    detection: Detection,
    mask: Array,
    image_rgb: Array,
    camera: CameraModel,
    others: OtherMasks | None,
) -> Query:
    """Return the crop of the image itself, which is a pinhole's; with a close-up if `others` are given."""
    assert isinstance(camera, Pinhole)
    box = square_box(mask, detection.box_xywh)
    A, K = crop_affine(box), camera.K
    close_up = None if others is None else cut_close_up(image_rgb, mask, A, K, others.hidden_from(position, mask))
    return Query(position, detection, crop_colour(image_rgb, box), crop_mask(mask, box), A, K, close_up=close_up)


def _virtual_crop(
    position: int,
    detection: Detection,
    mask: Array,
    image_rgb: Array,
    camera: CameraModel,
    virtual: VirtualCamera,
    others: OtherMasks | None,
) -> Query:
    """Return the crop that a virtual camera sees along the detection's ray; with a close-up if `others` are given."""
    crop, close_up = make_crop(camera, virtual), None
    if others is not None:
        close_up = cut_virtual_close_up(image_rgb, mask, camera, virtual, others.hidden_from(position, mask))
    return Query(
        position,
        detection,
        crop.colour(image_rgb),
        crop.mask(mask),
        virtual.A_crop_from_image,
        virtual.K,
        virtual.R_cam_from_virtual,
        close_up,
    )


def _usable_mask(detection: Detection, mask: Array | None, image_rgb: Array) -> Array:
    """Return the mask (H,W) bool of a detection, that of its box where it has none.

    Raises PicoPoseError when it has another size than the image, or neither mask nor box is in the image.
    """
    height, width = image_rgb.shape[:2]
    if mask is None:
        return _box_mask(detection.box_xywh, height, width)
    if mask.shape != (height, width):
        raise PicoPoseError(f"the mask is {mask.shape[1]}x{mask.shape[0]}, the image {width}x{height}")
    if np.count_nonzero(mask) <= SMALLEST_MASK_PX:
        _require_in_image(detection.box_xywh, height, width)  # the box decides the crop
    return mask


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
