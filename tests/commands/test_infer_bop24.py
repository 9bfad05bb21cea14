"""`picopose infer` for the detection task: all detections of the images that a BOP24 file lists."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bop_folder import edit_json, write_json

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.interrupts import StoppedError
from picopose_cli.base.options import CheckOptions, InferOptions, MergeOptions, ScoreOptions
from picopose_cli.base.types import PoseEstimate
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.results import read_results, write_results
from picopose_cli.commands import check, infer, merge, score
from picopose_cli.runs.identity import run_identity
from picopose_cli.runs.inputs import read_inputs
from picopose_cli.runs.journal import Journal, journal_path
from picopose_cli.runs.shards import shard_path

SCORES = (0.3, 0.9, 0.6)
"""Of the detections that each object of an image has."""


@pytest.fixture(autouse=True)
def _one_thread():
    """Runs are compared to the bit: another number of threads rounds otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data_dir(toy_dir, tmp_path) -> Path:
    """A copy of the generated data set with a BOP24 file only, and three detections of each instance."""
    folder = tmp_path / "bop"
    shutil.copytree(toy_dir, folder)
    (folder / "toy/test_targets_bop19.json").unlink()
    write_json(folder / "toy/test_targets_bop24.json", [{"scene_id": 1, "im_id": im_id} for im_id in range(3)])
    entries = json.loads((folder / "toy/detections.json").read_text())
    write_json(folder / "toy/detections.json", [grown(entry, score) for entry in entries for score in SCORES])
    return folder


def grown(entry: dict[str, Any], score: float) -> dict[str, Any]:
    """Another detection of the same instance, with a box alone that is larger the worse it is."""
    (x, y, w, h), more = entry["bbox"], 10 * (1 - score)
    box = {"bbox": [x - more, y - more, w + 2 * more, h + 2 * more], "segmentation": {}}
    return entry | {"score": score} | box


def options(data_dir: Path, **changes) -> InferOptions:
    values = {
        "dataset": "toy", "data_dir": data_dir, "weights": data_dir / "tiny.safetensors", "device": "cpu",
        "detections": str(data_dir / "toy/detections.json"), "output": data_dir / "picopose_toy-test.csv",
        "hypotheses": 2, "rules": "paper", "batch_size": 5,
    }  # fmt: skip
    return InferOptions(**(values | changes))


def add_detections(data_dir: Path, *changes: dict[str, object]) -> None:
    path = data_dir / "toy/detections.json"
    entries = json.loads(path.read_text())
    write_json(path, entries + [entries[0] | change for change in changes])


def columns(path: Path) -> list[tuple[int, int, float]]:
    table = read_results(path)
    return list(zip(table.im_id.tolist(), table.obj_id.tolist(), table.score.tolist(), strict=True))


def test_every_detection_becomes_an_estimate_best_first(data_dir, capsys):
    report = infer.run(options(data_dir))
    assert (report.exit_code, report.images, report.estimates) == (0, 3, 18)
    best_first = sorted(((score, -obj_id) for score in SCORES for obj_id in (1, 2)), reverse=True)
    expected = [(im_id, -place, score) for im_id in range(3) for score, place in best_first]
    assert columns(Path(report.output)) == expected
    own = data_dir / "toy/test_targets_bop24.json"
    out = capsys.readouterr().out
    assert f"targets: {own} (BOP24, detection)" in out.splitlines()
    assert "check: " not in out
    saved = json.loads((data_dir / "picopose_toy-test.json").read_text())
    assert saved["targets"] == f"{own} (BOP24, detection)"
    assert check.run(CheckOptions(Path(report.output), data_dir=data_dir)).findings == ()


def test_the_scores_of_the_detection_task_read_the_file(data_dir):
    """With the true poses in it the best estimate of each instance finds it, and the others come too late to matter."""
    report = infer.run(options(data_dir))
    dataset = open_dataset("toy", data_dir)
    T = {(one.im_id, one.obj_id): one.T_cam_from_obj for of in read_ground_truth(dataset, 1).values() for one in of}
    true = data_dir / "true_toy-test.csv"
    found = columns(Path(report.output))
    write_results(true, (PoseEstimate(1, im, obj, score, T[im, obj], 0.5) for im, obj, score in found))
    paths = (Path(report.output), true)
    scored = score.run(ScoreOptions(paths, data_dir=data_dir, targets="bop24", workers=1, per_object=True)).scores
    assert scored["true_toy-test"]["bop24_mAP"] == 1
    assert scored["picopose_toy-test"]["bop24_average_time_per_image"] == pytest.approx(report.seconds_per_image)
    assert [one["estimates"] for one in scored["picopose_toy-test"]["objects"].values()] == [9, 9]


def test_the_score_is_the_detections_times_the_confidence_in_the_pose(data_dir):
    infer.run(options(data_dir))
    detector = columns(data_dir / "picopose_toy-test.csv")
    infer.run(options(data_dir, rules="default", refine=0, output=data_dir / "own_toy-test.csv"))
    for (*place, theirs), (*own_place, own) in zip(detector, columns(data_dir / "own_toy-test.csv"), strict=True):
        assert own_place == place
        assert 0 <= own < theirs


def test_a_given_file_decides_the_task(data_dir, toy_dir):
    shutil.copy(toy_dir / "toy/test_targets_bop19.json", data_dir / "toy")
    inputs = read_inputs(options(data_dir))
    assert [len(task.detections) for task in inputs.tasks] == [2, 2, 2]  # the data set's BOP19 file comes first
    one = write_json(data_dir / "one.json", [{"scene_id": 1, "im_id": 2}])
    inputs = read_inputs(options(data_dir, targets=one))
    assert [(task.im_id, len(task.detections)) for task in inputs.tasks] == [(2, 6)]
    assert run_identity(inputs)["targets"] == "bop24"


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([], "there are no targets"),
        ([{"scene_id": 1, "im_id": 0}, {"scene_id": 1}], "entry 1: im_id is not a whole number"),
        ([{"scene_id": 1, "im_id": 0}, [1, 2]], "entry 1 is not an object"),
        ({"scene_id": 1, "im_id": 0}, "must be a list"),
    ],
)
def test_a_broken_file_is_named(data_dir, entries, text):
    path = write_json(data_dir / "broken.json", entries)
    with pytest.raises(PicoPoseError, match=text) as caught:
        infer.run(options(data_dir, targets=path))
    assert str(path) in str(caught.value)


def test_only_as_many_as_count_and_objects_without_a_bank_take_no_place(data_dir):
    others = [{"obj_id": 9, "category_id": 9, "score": 1.0}] * 30
    add_detections(data_dir, *others, *({"score": 0.31 + index / 1000} for index in range(120)))
    inputs = read_inputs(options(data_dir))
    detections = inputs.tasks[0].detections
    assert len(detections) == 100
    assert {detection.obj_id for detection in detections} == {1, 2}
    found = [detection.score for detection in detections]
    assert found == sorted(found, reverse=True)
    assert found[:5] == [0.9, 0.9, 0.6, 0.6, pytest.approx(0.429)]
    assert min(found) == pytest.approx(0.43 - 0.096)
    assert [len(task.detections) for task in inputs.tasks[1:]] == [6, 6]
    assert len(inputs.problems) == 1
    assert "has no bank of object 9, and" in inputs.problems[0]
    assert inputs.groups[0] == (inputs.tasks[0],)  # more than a batch: a group of its own


def test_a_group_larger_than_a_batch_gives_the_poses_of_a_large_batch(data_dir):
    tables = []
    for batch_size in (4, 32):
        output = data_dir / f"b{batch_size}_toy-test.csv"
        infer.run(options(data_dir, batch_size=batch_size, output=output))
        tables.append(read_results(output))
    assert len(tables[0].score) == 18
    np.testing.assert_allclose(tables[0].T_cam_from_obj, tables[1].T_cam_from_obj, atol=1e-3)


def test_the_ground_truth_masks_are_all_that_is_visible_by_a_tenth(data_dir):
    path = data_dir / "toy/test/000001/scene_gt_info.json"
    infos = json.loads(path.read_text())["1"]
    edit_json(path, "1", [info | {"visib_fract": seen} for info, seen in zip(infos, (0.09, 0.1), strict=True)])
    inputs = read_inputs(options(data_dir, detections="gt"))
    found = [{detection.obj_id for detection in task.detections} for task in inputs.tasks]
    assert found == [{1, 2}, {2}, {1, 2}]


def test_images_without_detections_are_recorded_and_limit_counts_images(data_dir):
    path = data_dir / "toy/detections.json"
    write_json(path, [entry for entry in json.loads(path.read_text()) if entry["image_id"] != 1])
    report = infer.run(options(data_dir, limit=2))
    assert (report.exit_code, report.images, report.estimates) == (1, 2, 6)
    (skip,) = report.skipped
    assert (skip.im_id, skip.obj_id, skip.reason) == (1, None, "the image has no detections to estimate")


def test_a_stopped_run_goes_on_and_one_of_the_other_task_does_not(data_dir, toy_dir, monkeypatch):
    whole = data_dir / "whole_toy-test.csv"
    infer.run(options(data_dir, output=whole))
    append = Journal.append

    def stop(journal, result):
        append(journal, result)
        signal.raise_signal(signal.SIGINT)

    asked = options(data_dir)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        with pytest.raises(StoppedError):
            infer.run(asked)
    assert journal_path(asked.output).is_file()
    with pytest.raises(PicoPoseError, match="targets: bop24 there, bop19 here"):
        infer.run(options(data_dir, targets=toy_dir / "toy/test_targets_bop19.json"))
    report = infer.run(asked)
    assert (report.exit_code, report.kept_images, report.estimates) == (0, 1, 18)
    assert columns(asked.output) == columns(whole)
    np.testing.assert_array_equal(read_results(asked.output).T_cam_from_obj, read_results(whole).T_cam_from_obj)


def test_shards_merge_to_the_file_of_the_whole(data_dir):
    whole = data_dir / "whole_toy-test.csv"
    infer.run(options(data_dir, output=whole))
    output = data_dir / "picopose_toy-test.csv"
    shards = [shard_path(output, index, 2) for index in (1, 2)]
    for index, path in enumerate(shards, start=1):
        infer.run(options(data_dir, output=path, shard=f"{index}/2"))
    report = merge.run(MergeOptions(output, tuple(shards)))
    assert report.targets.endswith("(BOP24, detection)")
    assert columns(output) == columns(whole)
    np.testing.assert_array_equal(read_results(output).T_cam_from_obj, read_results(whole).T_cam_from_obj)
