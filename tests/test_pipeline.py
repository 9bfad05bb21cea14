from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from picopose_cli.errors import PicoPoseError
from picopose_cli.estimation.pipeline import estimate_images
from picopose_cli.structs import Detection, ImageTask, LoadedImage

K = np.array([[300.0, 0, 32], [0, 300, 24], [0, 0, 1]])


class FakeEstimator:
    """Returns each detection's identity as its pose, slower for some, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def hypotheses(self, batch):
        self.batches.append(batch.obj_ids.tolist())
        return [(obj_id, A) for obj_id, A in zip(batch.obj_ids.tolist(), batch.A_crop_from_image, strict=True)]

    def solve(self, hypotheses, K):
        obj_id, A = hypotheses
        time.sleep(0.002 * (obj_id % 3))
        T = np.eye(4)
        T[:3, 3] = (obj_id, A[0, 2], K[0, 2])
        return T if obj_id != 9 else np.full((4, 4), np.nan)


def make_task(im_id: int, obj_ids: list[int], **changes) -> ImageTask:
    detections = tuple(Detection(obj_id, 0.5, (4.0 + obj_id, 5.0, 20.0, 20.0), None, 0.1) for obj_id in obj_ids)
    fields = {"scene_id": 1, "im_id": im_id, "image_path": Path(f"{im_id}.png"), "K": K, "detections": detections}
    return ImageTask(**(fields | changes))


def load_grey(task: ImageTask) -> LoadedImage:
    if task.im_id == 13:
        raise PicoPoseError("is truncated", where=task.image_path)
    return LoadedImage(np.full((48, 64, 3), 100, np.uint8), (None,) * len(task.detections))


def run(tasks, batch_size=4, workers=2, known=range(100), estimator=None, load=load_grey):
    estimator = estimator or FakeEstimator()
    return list(estimate_images(tasks, load, estimator, set(known), batch_size=batch_size, workers=workers))


def test_results_come_in_order_with_every_detection():
    tasks = [make_task(im_id, [1, 2, 3][: im_id % 4]) for im_id in range(11)]
    results = run(tasks)
    assert [result.task.im_id for result in results] == list(range(11))
    for result in results:
        assert [estimate.obj_id for estimate in result.estimates] == [d.obj_id for d in result.task.detections]
        for estimate in result.estimates:
            assert estimate.T_cam_from_obj[0, 3] == estimate.obj_id


def test_batches_mix_images_and_are_full():
    estimator = FakeEstimator()
    run([make_task(im_id, [1, 2, 3]) for im_id in range(5)], batch_size=4, estimator=estimator)
    assert [len(batch) for batch in estimator.batches] == [4, 4, 4, 3]


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 4), (64, 2)])
def test_results_do_not_depend_on_batches_or_threads(batch_size, workers):
    tasks = [make_task(im_id, [1, 2, 3, 4]) for im_id in range(9)]
    expected = [e.T_cam_from_obj for r in run(tasks) for e in r.estimates]
    actual = [e.T_cam_from_obj for r in run(tasks, batch_size=batch_size, workers=workers) for e in r.estimates]
    np.testing.assert_array_equal(actual, expected)


def test_time_is_the_same_on_all_rows_of_an_image_and_holds_the_detectors():
    (result,) = run([make_task(0, [1, 2, 4])])
    times = {estimate.time_s for estimate in result.estimates}
    assert len(times) == 1
    seconds = result.seconds
    assert times.pop() == pytest.approx(0.1 + seconds.crop + seconds.network + seconds.pnp)
    assert seconds.pnp >= 0.002 * (1 + 2 + 1) * 0.9


def test_unusable_parts_are_recorded_and_the_rest_goes_on():
    tasks = [
        make_task(0, [1]),
        make_task(13, [1]),
        make_task(2, []),
        make_task(3, [1], problem="cam_K is missing", K=None),
        make_task(4, [1, 50]),
        make_task(5, [9, 2]),
    ]
    results = run(tasks, known=[1, 2, 9])
    reasons = {(skip.im_id, skip.obj_id): skip.reason for result in results for skip in result.skips}
    assert "truncated" in reasons[13, None]
    assert "no detections" in reasons[2, None]
    assert "cam_K" in reasons[3, None]
    assert "templates" in reasons[4, 50]
    assert "finite" in reasons[5, 9]
    assert len(reasons) == 5
    assert [(e.im_id, e.obj_id) for r in results for e in r.estimates] == [(0, 1), (4, 1), (5, 2)]


def test_bad_masks_and_boxes_are_recorded():
    outside = Detection(1, 0.5, (100.0, 100.0, 10.0, 10.0), None, 0.1)
    wrong_size = Detection(2, 0.5, (5.0, 5.0, 10.0, 10.0), None, 0.1)
    undecodable = Detection(3, 0.5, (5.0, 5.0, 10.0, 10.0), None, 0.1)
    empty_with_box = Detection(4, 0.5, (5.0, 5.0, 10.0, 10.0), None, 0.1)
    empty_without_box = Detection(5, 0.5, (0.0, 0.0, 0.0, 0.0), None, 0.1)
    masks = (
        None,
        np.ones((10, 10), bool),
        PicoPoseError("run lengths do not fill the mask"),
        np.zeros((48, 64), bool),
        np.zeros((48, 64), bool),
    )
    detections = (outside, wrong_size, undecodable, empty_with_box, empty_without_box)
    task = make_task(0, [], detections=detections)
    (result,) = run([task], load=lambda _: LoadedImage(np.zeros((48, 64, 3), np.uint8), masks))
    reasons = {skip.obj_id: skip.reason for skip in result.skips}
    assert set(reasons) == {1, 2, 3, 5}
    assert "neither mask nor box" in reasons[1]
    assert "10x10" in reasons[2]
    assert "run lengths" in reasons[3]
    assert [estimate.obj_id for estimate in result.estimates] == [4]


def test_an_unexpected_error_in_a_thread_is_not_lost():
    def broken(_):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        run([make_task(0, [1])], load=broken)


def test_at_most_a_few_images_are_read_ahead():
    opened: list[int] = []

    def load(task):
        opened.append(task.im_id)
        return load_grey(task)

    tasks = [make_task(im_id, [1]) for im_id in range(200)]
    results = estimate_images(tasks, load, FakeEstimator(), {1}, batch_size=2, workers=2)
    next(results)
    assert len(opened) < 40
    results.close()
