"""Units of work: the order of images, cameras that are missing, masks that cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.bop_folder import HEIGHT, MASK_BOX, WIDTH, K, box_mask, edit_json, write_scene
from helpers.fisheyes import ARIA_RGB, cam_model

from picopose_cli.base.cameras import Pinhole, parse_camera
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import ImageTask
from picopose_cli.base.types import Detection, ImageTarget, Rle, Target
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.rle import encode_rle
from picopose_cli.runs.identity import tasks_sha256
from picopose_cli.runs.inputs import limit_detections, load_image, make_image_tasks


@pytest.fixture
def dataset(tmp_path):
    write_scene(tmp_path / "mine/test/000001", {0: [1], 2: [1]})
    write_scene(tmp_path / "mine/test/000009", {5: [1]})
    return open_dataset("mine", tmp_path)


def detection(obj_id=1, score=0.5, mask=None):
    return Detection(obj_id, score, MASK_BOX, mask, 0.2)


def test_images_in_order_with_their_detections(dataset):
    targets = [Target(9, 5, 1, 1), Target(1, 2, 1, 1), Target(1, 0, 1, 1), Target(1, 0, 2, 2)]
    detections = {(1, 0): [detection(1, 0.3), detection(1, 0.8), detection(2, 0.1)], (9, 5): [detection(7, 0.9)]}
    tasks = make_image_tasks(dataset, targets, detections)
    assert [(task.scene_id, task.im_id) for task in tasks] == [(1, 0), (1, 2), (9, 5)]
    assert [(found.obj_id, found.score) for found in tasks[0].detections] == [(1, 0.8), (2, 0.1)]
    assert tasks[1].detections == ()  # an image without detections is still there
    assert [found.obj_id for found in tasks[2].detections] == [1]  # none of its own: relabelled
    for task in tasks:
        assert task.problem is None
        np.testing.assert_array_equal(task.K.ravel(), K)
        assert task.image_path.is_file()


def test_the_image_as_a_target_gets_all_detections_and_keeps_the_best_that_can_be_estimated(dataset):
    targets = [ImageTarget(1, 2, 2), ImageTarget(1, 0, 3), ImageTarget(9, 5, 3)]
    scores = [(1, 0.3), (2, 0.8), (1, 0.9), (7, 1.0), (1, 0.8), (2, 0.1)]
    detections = {(1, 0): [detection(*one) for one in scores], (9, 5): [detection(7, 0.9)]}
    tasks = make_image_tasks(dataset, targets, detections)
    assert [(task.scene_id, task.im_id) for task in tasks] == [(1, 0), (1, 2), (9, 5)]
    ranked = [(7, 1.0), (1, 0.9), (2, 0.8), (1, 0.8), (1, 0.3), (2, 0.1)]  # the same object as often as it was found
    assert [(found.obj_id, found.score) for found in tasks[0].detections] == ranked
    kept = limit_detections(tasks, targets, {1, 2})
    assert [(found.obj_id, found.score) for found in kept[0].detections] == ranked[1:4]
    assert [task.detections for task in kept[1:]] == [(), ()]  # nothing is relabelled


def test_detections_of_objects_that_are_targets_all_stay(dataset):
    tasks = make_image_tasks(dataset, [Target(1, 0, 1, 1)], {(1, 0): [detection()]})
    assert limit_detections(tasks, [Target(1, 0, 1, 1)], set()) == tasks  # they are skipped with a reason


def test_image_without_camera_is_recorded(dataset):
    scene = dataset.scene_dir(1)
    edit_json(scene / "scene_camera.json", "0", {"cam_K": [float("nan")] * 9})
    targets = [Target(1, 0, 1, 1), Target(1, 2, 1, 1), Target(1, 7, 1, 1), Target(4, 0, 1, 1)]
    broken, fine, unlisted, no_scene = make_image_tasks(dataset, targets, {})
    assert broken.K is None
    assert "cam_K" in broken.problem
    assert fine.problem is None
    assert "no entry" in unlisted.problem
    assert "scene_camera.json: the file does not exist" in no_scene.problem


def test_load_image_reads_pixels_and_masks(dataset, tmp_path):
    good, wrong_size = encode_rle(box_mask()), encode_rle(np.ones((5, 5), bool))
    masks = (good, None, wrong_size, Rle((HEIGHT, WIDTH), b"\xff"), tmp_path / "missing.png")
    found = {(1, 2): [detection(1, 1 - index / 10, mask) for index, mask in enumerate(masks)]}
    (task,) = make_image_tasks(dataset, [Target(1, 2, 1, 5)], found)
    image = load_image(task)
    assert image.image_rgb.shape == (HEIGHT, WIDTH, 3)
    assert (image.image_rgb == 2).all()
    np.testing.assert_array_equal(image.masks[0], box_mask())
    assert image.masks[1] is None
    errors = image.masks[2:]
    assert all(isinstance(error, PicoPoseError) for error in errors)
    for error, words in zip(errors, ("5x5 px, its image 64x48", "cannot be decoded", "does not exist"), strict=True):
        assert words in str(error)


def test_missing_image_is_an_error_when_it_is_read(dataset):
    (task,) = make_image_tasks(dataset, [Target(1, 2, 1, 1)], {(1, 2): [detection()]})
    task.image_path.unlink()
    with pytest.raises(PicoPoseError, match="the image does not exist"):
        load_image(task)


def test_the_digest_tells_whatever_is_asked_apart_and_no_folders():
    rle = Rle((4, 4), b"abc")
    found = Detection(1, np.float64(0.5), (1.0, 2.0, 3.0, 4.0), rle, 0.2)
    task = ImageTask(1, 2, Path("a/rgb/000002.png"), Pinhole(np.eye(3)), (found, replace(found, mask=None)))
    others = [
        replace(task, im_id=3),
        replace(task, image_path=Path("a/rgb/000002.tif")),
        replace(task, camera=Pinhole(np.eye(3) * 2)),
        replace(task, camera=None, problem="no camera"),
        replace(task, camera=parse_camera({"cam_model": cam_model(ARIA_RGB)}).model),
        replace(task, detections=task.detections[::-1]),
        replace(task, detections=task.detections[:1]),
        *[
            replace(task, detections=(replace(found, **change), task.detections[1]))
            for change in (
                {"obj_id": 2}, {"score": 0.25}, {"box_xywh": (1.0, 2.0, 3.0, 5.0)}, {"time_s": -1.0},
                {"mask": Rle((4, 4), b"abd")}, {"mask": Rle((2, 8), b"abc")}, {"mask": Rle((4, 4), (5, 11))},
                {"mask": Path("m.png")},
            )
        ],
    ]  # fmt: skip
    digests = [tasks_sha256(tasks) for tasks in ([], [task], [task, task], *([other] for other in others))]
    assert len(set(digests)) == len(digests)
    moved = replace(
        task, image_path=Path("b/c/000002.png"), detections=(replace(found, score=0.5), *task.detections[1:])
    )
    assert tasks_sha256([moved]) == digests[1]
