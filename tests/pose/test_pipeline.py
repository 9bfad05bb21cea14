from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import ImageTask, LoadedImage
from picopose_cli.base.types import NO_BOX, Detection
from picopose_cli.pose.image_groups import plan_groups, shard_of_groups
from picopose_cli.pose.pipeline import PipelineOptions, estimate_groups, estimate_images, weighted_score

K = np.array([[300.0, 0, 32], [0, 300, 24], [0, 0, 1]])


class FakePose:
    confidence = 0.8

    def __init__(self, T: np.ndarray) -> None:
        self.T_cam_from_obj = T


class FakeMatcher:
    """In place of matcher, store and rules: returns each detection's identity as its pose and records the batches."""

    def __init__(self, obj_ids=range(100), *, solves_batches=False, device="cuda") -> None:
        self.batches: list[list[int]] = []
        self.obj_ids = set(obj_ids)
        self.store = self.rules = self
        self.perspective_crops = False
        self.device, self.solves_batches = torch.device(device), solves_batches

    def match(self, batch):
        self.batches.append(batch.obj_ids.tolist())
        return tuple(zip(batch.obj_ids.tolist(), batch.A_crop_from_image, strict=True))

    def solve(self, hypotheses, K, _):
        assert self.solves_batches or len(hypotheses) == 1
        return [self.solve_one(*of_detection, K_of) for of_detection, K_of in zip(hypotheses, K, strict=True)]

    def solve_one(self, obj_id, A, K):
        time.sleep(0.002 * (obj_id % 3))  # slower for some
        T = np.eye(4)
        T[:3, 3] = (obj_id, A[0, 2], K[0, 2])
        return [FakePose(T if obj_id != 9 else np.full((4, 4), np.nan))]


def make_task(im_id: int, obj_ids: list[int], **changes) -> ImageTask:
    detections = tuple(Detection(obj_id, 0.5, (4.0 + obj_id, 5.0, 20.0, 20.0), None, 0.1) for obj_id in obj_ids)
    fields = {
        "scene_id": 1,
        "im_id": im_id,
        "image_path": Path(f"{im_id}.png"),
        "camera": Pinhole(K),
        "detections": detections,
    }
    return ImageTask(**(fields | changes))


def load_grey(task: ImageTask) -> LoadedImage:
    if task.im_id == 13:
        raise PicoPoseError("is truncated", where=task.image_path)
    return LoadedImage(np.full((48, 64, 3), 100, np.uint8), (None,) * len(task.detections))


def run(tasks, batch_size=4, workers=2, matcher=None, load=load_grey):
    return list(estimate_images(tasks, load, matcher or FakeMatcher(), PipelineOptions(batch_size, workers)))


def test_results_come_in_order_with_every_detection():
    tasks = [make_task(im_id, [1, 2, 3][: im_id % 4]) for im_id in range(11)]
    results = run(tasks)
    assert [result.task.im_id for result in results] == list(range(11))
    for result in results:
        assert [estimate.obj_id for estimate in result.estimates] == [d.obj_id for d in result.task.detections]
        for estimate in result.estimates:
            assert estimate.T_cam_from_obj[0, 3] == estimate.obj_id
            assert estimate.score == 0.5 * 0.8


def ids(groups) -> list[list[int]]:
    return [[task.im_id for task in group] for group in groups]


def test_groups_are_whole_images_that_fit_a_batch():
    sizes = [2, 2, 1, 9, 0, 3, 1, 0, 0, 4, 1]
    tasks = [make_task(im_id, [1] * size) for im_id, size in enumerate(sizes)]
    assert ids(plan_groups(tasks, 4)) == [[0, 1], [2], [3], [4, 5, 6, 7, 8], [9], [10]]
    assert plan_groups([], 4) == []


def test_shards_are_consecutive_complete_and_balanced():
    rng = np.random.default_rng(0)
    tasks = [make_task(im_id, [1] * int(size)) for im_id, size in enumerate(rng.integers(0, 9, 300))]
    groups = plan_groups(tasks, 8)
    for count in (1, 2, 3, 7):
        shards = [shard_of_groups(groups, index, count) for index in range(count)]
        assert [group for shard in shards for group in shard] == groups
        loads = [sum(len(task.detections) for group in shard for task in group) for shard in shards]
        assert max(loads) - min(loads) <= 2 * 8
    many = [shard_of_groups(groups[:3], index, 8) for index in range(8)]
    assert [group for shard in many for group in shard] == groups[:3]
    assert shard_of_groups([], 0, 2) == []


def test_batches_are_groups_and_a_large_image_is_split():
    matcher = FakeMatcher()
    sizes = [3, 1, 3, 10, 1, 2]
    run([make_task(im_id, [im_id + 1] * size) for im_id, size in enumerate(sizes)], batch_size=4, matcher=matcher)
    assert matcher.batches == [[1, 1, 1, 2], [3] * 3, [4] * 4, [4] * 4, [4] * 2, [5, 6, 6]]


@pytest.mark.parametrize("workers", [1, 3])
def test_on_a_cpu_a_batch_goes_through_the_network_in_parts(workers):
    matcher = FakeMatcher(device="cpu")
    run([make_task(im_id, [im_id] * size) for im_id, size in enumerate([3, 1, 10])], 16, workers, matcher)
    assert sorted(matcher.batches) == [[0, 0, 0], [1, 2, 2], [2, 2], [2, 2, 2], [2, 2, 2]]


def test_the_threads_of_parts_share_those_of_the_network():
    threads = []

    class Counting(FakeMatcher):
        def match(self, batch):
            threads.append((len(batch.obj_ids), torch.get_num_threads()))
            return super().match(batch)

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        run([make_task(0, [1] * 5), make_task(1, [1] * 2)], 5, 2, Counting(device="cpu"))
        assert sorted(threads) == [(2, 2), (2, 4), (3, 2)]
    finally:
        torch.set_num_threads(before)


def test_an_error_in_one_part_ends_the_run():
    class Damaged(FakeMatcher):
        def match(self, _):
            raise PicoPoseError("damaged features")

    with pytest.raises(PicoPoseError, match="damaged features"):
        run([make_task(0, [1] * 8)], matcher=Damaged(device="cpu"))


def test_progress_is_reported_after_each_pass_and_adds_up_to_all_detections():
    """Skipped detections are done, too: those without templates, and those of an image that cannot be read."""
    tasks = [make_task(0, [1, 2, 1]), make_task(13, [1, 1]), make_task(1, [1] * 6), make_task(2, [])]
    counts = []
    groups = plan_groups(tasks, 4)
    matcher = FakeMatcher(obj_ids=[1])
    list(estimate_groups(groups, load_grey, matcher, PipelineOptions(4), on_progress=counts.append))
    assert sum(counts) == 11
    assert [count for count in counts if count] == [1, 2, 2, 4, 2]


@pytest.mark.parametrize(("device", "calls"), [("cuda", 7), ("cpu", 9)])
def test_a_group_has_the_same_batches_whichever_groups_come_before(device, calls):
    tasks = [make_task(im_id, [1, 2, 3][: im_id % 4]) for im_id in range(20)]
    groups = plan_groups(tasks, 4)
    whole, rest = FakeMatcher(device=device), FakeMatcher(device=device)
    run(tasks, matcher=whole)
    list(estimate_groups(groups[3:], load_grey, rest, PipelineOptions(4)))
    assert len(groups[3:]) == 7
    assert len(rest.batches) == calls
    assert sorted(rest.batches) == sorted(whole.batches[-calls:])  # the parts of a batch run at the same time


def test_a_detection_without_templates_does_not_move_others_to_another_batch():
    matcher = FakeMatcher(obj_ids=[1])
    run([make_task(im_id, [1, 2]) for im_id in range(4)], batch_size=4, matcher=matcher)
    assert matcher.batches == [[1, 1], [1, 1]]


def test_sequential_works_on_one_image_at_a_time_and_measures_the_wall_clock():
    alive: set[str] = set()
    spans: list[tuple[str, float, float, str]] = []
    lock = threading.Lock()

    def record(stage, start, end, what):
        with lock:
            spans.append((stage, start, end, what))

    def load(task):
        assert not alive, "another image is at work"
        alive.add(str(task.im_id))
        return load_grey(task)

    tasks = [make_task(im_id, [2, 5, 8, 2]) for im_id in range(4)]
    groups = [(task,) for task in tasks]
    results = []
    options = PipelineOptions(batch_size=3, sequential=True)
    for result in estimate_groups(groups, load, FakeMatcher(), options, record=record):
        results.append(result)
        alive.clear()
    assert [result.task.im_id for result in results] == [0, 1, 2, 3]
    for index, result in enumerate(results):
        of_image = [(start, end) for stage, start, end, _ in spans[index * 8 : index * 8 + 8] if stage != "read"]
        wall = max(end for _, end in of_image) - min(start for start, _ in of_image)
        assert result.time_s >= 0.1 + wall
        assert result.estimates[0].time_s == result.time_s
        assert [span[0] for span in spans[index * 8 :][:8]].count("network") == 2


def test_each_piece_of_work_is_recorded_as_it_is_counted():
    spans: list[tuple[str, float, float, str]] = []
    tasks = [make_task(0, [1, 2]), make_task(1, [4])]
    groups, options = plan_groups(tasks, 4), PipelineOptions(4, workers=1)
    results = list(estimate_groups(groups, load_grey, FakeMatcher(), options, record=lambda *span: spans.append(span)))
    for stage in ("read", "crop", "network", "pnp"):
        recorded = sum(end - start for name, start, end, _ in spans if name.lower() == stage)
        assert recorded == pytest.approx(sum(getattr(result.seconds, stage) for result in results))
    assert {what for name, _, _, what in spans if name == "PnP"} == {
        "scene 1, image 0, object 1", "scene 1, image 0, object 2", "scene 1, image 1, object 4"
    }  # fmt: skip


def test_leaving_early_drops_the_work_that_has_not_begun():
    solved: list[int] = []

    class Slow(FakeMatcher):
        def solve_one(self, obj_id, A, K):
            solved.append(obj_id)
            time.sleep(0.2 if len(solved) > 8 else 0)
            return super().solve_one(obj_id, A, K)

    tasks = [make_task(im_id, [1] * 8) for im_id in range(40)]
    results = estimate_images(tasks, load_grey, Slow(), PipelineOptions(8, workers=1))
    next(results)
    results.close()
    assert len(solved) < 3 * 8


@pytest.mark.parametrize(("batch_size", "workers", "solves_batches"), [(1, 1, True), (3, 4, False), (64, 2, True)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_results_do_not_depend_on_batches_or_threads(batch_size, workers, solves_batches, device):
    tasks = [make_task(im_id, [1, 2, 3, 4]) for im_id in range(9)]
    expected = [e.T_cam_from_obj for r in run(tasks) for e in r.estimates]
    matcher = FakeMatcher(solves_batches=solves_batches, device=device)
    results = run(tasks, batch_size, workers, matcher)
    np.testing.assert_array_equal([e.T_cam_from_obj for r in results for e in r.estimates], expected)


def test_a_batch_that_is_solved_together_is_one_piece_of_work():
    spans: list[tuple[str, float, float, str]] = []
    groups = plan_groups([make_task(0, [1, 2]), make_task(1, [4])], 4)
    matcher = FakeMatcher(solves_batches=True)
    record = lambda *span: spans.append(span)  # noqa: E731
    results = list(estimate_groups(groups, load_grey, matcher, PipelineOptions(4), record=record))
    ((start, end, what),) = [span[1:] for span in spans if span[0] == "PnP"]
    assert what == "3 detections"
    assert [result.seconds.pnp for result in results] == pytest.approx([(end - start) * n / 3 for n in (2, 1)])


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
        make_task(3, [1], problem="cam_K is missing", camera=None),
        make_task(4, [1, 50]),
        make_task(5, [9, 2]),
    ]
    results = run(tasks, matcher=FakeMatcher(obj_ids=[1, 2, 9]))
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


@pytest.mark.parametrize(
    "box", [(1e308, 1e308, 1e308, 1e308), (1e300, 5.0, 1e300, 5.0), (100.0, 5.0, 20.0, 20.0), (-30.0, 5.0, 30.0, 20.0)]
)
@pytest.mark.parametrize("mask", [None, np.zeros((48, 64), bool), np.eye(48, 64) * (np.arange(48) < 8)[:, None] > 0])
def test_box_outside_the_image_is_recorded_with_every_mask_that_is_too_small(box, mask):
    """Moved into the image, as the crop of an object at the border is, it would show something else."""
    detections = (Detection(1, 0.5, box, None, 0.1), Detection(2, 0.5, (5.0, 5.0, 20.0, 20.0), None, 0.1))
    image = LoadedImage(np.zeros((48, 64, 3), np.uint8), (mask, None))
    (result,) = run([make_task(0, [], detections=detections)], load=lambda _: image)
    assert [estimate.obj_id for estimate in result.estimates] == [2]
    (skip,) = result.skips
    assert "neither mask nor box" in skip.reason


def test_a_mask_alone_serves():
    mask = np.zeros((48, 64), bool)
    mask[5:25, 5:25] = True
    detections = (Detection(1, 0.5, NO_BOX, None, 0.1), Detection(2, 0.5, NO_BOX, None, 0.1))
    image = LoadedImage(np.zeros((48, 64, 3), np.uint8), (mask, np.zeros_like(mask)))
    (result,) = run([make_task(0, [], detections=detections)], load=lambda _: image)
    assert [estimate.obj_id for estimate in result.estimates] == [1]
    assert "there is no box" in result.skips[0].reason


def test_negative_scores_keep_their_order():
    """Detectors may give logits; a higher confidence must raise any score, and the better detection stay ahead."""
    for score in (-3.0, -0.5, 0.0, 0.5):
        weighted = [weighted_score(score, confidence) for confidence in (0.0, 0.3, 1.0)]
        assert weighted == sorted(weighted)
    assert [weighted_score(score, 0.4) for score in (-3.0, -0.5, 0.2)] == pytest.approx([-4.8, -0.8, 0.08])


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
    results = estimate_images(tasks, load, FakeMatcher(), PipelineOptions(2))
    next(results)
    assert len(opened) < 40
    results.close()
