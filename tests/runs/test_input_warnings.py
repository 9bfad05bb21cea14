"""Warnings of images, cameras and boxes that can be used and may yet be wrong."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import ImageTask
from picopose_cli.base.types import NO_BOX, Detection
from picopose_cli.runs.input_warnings import input_warnings, relabelled_warnings

K = np.array([[300.0, 0, 32], [0, 310, 24], [0, 0, 1]])


def make_task(folder, im_id=0, scene_id=1, boxes=(), pixels=None, ext=".png"):
    path = folder / f"{scene_id}_{im_id}{ext}"
    cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8) if pixels is None else pixels)
    detections = tuple(Detection(1, 0.5, box, None, 0.1) for box in boxes)
    return ImageTask(scene_id, im_id, path, Pinhole(K), detections)


def test_sound_images_have_no_warning(tmp_path):
    tasks = [make_task(tmp_path, im_id, boxes=[(10.0, 5.0, 20.0, 12.0), (1.0, 2.0, 60.0, 40.0)]) for im_id in (0, 1)]
    tasks.append(replace(tasks[0], im_id=2, image_path=tmp_path / "missing.png"))
    tasks.append(replace(tasks[0], im_id=3, camera=None, problem="cam_K is missing"))
    assert input_warnings(tasks) == []


@pytest.mark.parametrize("factor", [0.4, 2.0])
def test_camera_of_another_resolution_is_named_once_a_scene(tmp_path, factor):
    """K of an image of half or twice the size: distances would be off by the same factor."""
    other = K * np.array([[factor], [factor], [1]])
    tasks = [
        replace(make_task(tmp_path, im_id, scene_id), camera=Pinhole(other)) for scene_id in (1, 2) for im_id in (0, 1)
    ]
    warnings = input_warnings([replace(tasks[0], camera=Pinhole(K)), *tasks[1:]])
    assert [line.partition(":")[0] for line in warnings] == ["scene 1", "scene 2"]
    for words in ("image 1", "64x48 px", f"fx {300 * factor:g}", f"cx {32 * factor:g}, cy {24 * factor:g}"):
        assert words in warnings[0]


@pytest.mark.parametrize("ext", [".jpg", ".png", ".tif"])
def test_exif_rotation_is_named_with_the_number_of_images(tmp_path, ext):
    tasks = [make_task(tmp_path, im_id, ext=ext) for im_id in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 3
    for task in tasks[1:]:
        Image.new("RGB", (64, 48)).save(task.image_path, exif=exif)
    (warning,) = input_warnings(tasks)
    assert warning.startswith("scene 1: 2 of 3 images have an EXIF rotation (image 1: shown rotated by 180 degrees)")
    assert "not applied" in warning


def test_used_bits_are_recorded(tmp_path):
    pixels = np.full((48, 64), 4000, np.uint16)
    (warning,) = input_warnings([make_task(tmp_path, im_id, pixels=pixels) for im_id in (0, 1)])
    assert "scene 1: image 0 uses 12 of its 16 bits" in warning
    assert input_warnings([make_task(tmp_path, pixels=pixels * 16)]) == []


CORNERS = [(40.0, 20.0, 60.0, 45.0), (30.0, 30.0, 64.0, 48.0), (5.0, 5.0, 20.0, 12.0)]


def test_corner_boxes_are_named(tmp_path):
    with pytest.raises(PicoPoseError, match=r"are the corners x1, y1, x2, y2 \(for example 5, 5, 20, 12\)"):
        input_warnings([make_task(tmp_path, boxes=CORNERS)])
    (warning,) = input_warnings([make_task(tmp_path, boxes=CORNERS[:1])])
    assert "corners" in warning


def test_boxes_beside_masks_and_boxes_that_leave_the_image_are_no_corners(tmp_path):
    task = make_task(tmp_path, boxes=CORNERS)
    masked = tuple(replace(one, mask=tmp_path / "mask.png") for one in task.detections)
    assert input_warnings([replace(task, detections=masked)]) == []
    assert input_warnings([replace(task, detections=(replace(masked[0], box_xywh=NO_BOX),))]) == []
    amodal = [(40.0, 20.0, 30.0, 35.0), (50.0, 30.0, 20.0, 25.0), (5.0, 5.0, 20.0, 12.0)]
    assert input_warnings([make_task(tmp_path, boxes=amodal)]) == []


def test_objects_with_detections_of_others_are_named(tmp_path):
    """As `select_detections` relabels them."""
    box = Detection(1, 0.9, (1.0, 2.0, 30.0, 20.0), None, 0.1)
    sound = replace(make_task(tmp_path, 0), detections=(box,))
    relabelled = replace(make_task(tmp_path, 4), detections=(box, replace(box, obj_id=7)))
    found = {(1, 0): [box], (1, 4): [box]}
    assert relabelled_warnings([sound], found) == []
    (text,) = relabelled_warnings([sound, relabelled], found)
    assert text.startswith("1 targets have no detection of their object")
    assert text.endswith("first scene 1, image 4, object 7")
