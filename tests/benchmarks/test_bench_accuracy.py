"""The benchmark of accuracy: its oracle and intervals on known cases, its variants against `picopose infer`."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from accuracy import bench, classes
from accuracy.before import add_gains, losses
from accuracy.bench import NOISY, Bench, Settings
from accuracy.classes import CLASSES
from accuracy.data import procedural_bench
from accuracy.detection import measure_detection, measure_extra_detections
from accuracy.flows import PAPER_RULES, DetectionSolver, RecordedFlow, TimedMatcher
from accuracy.localisation import measure_ablations, measure_real, measure_symmetric
from accuracy.oracle import poses_from_truth, true_starts
from accuracy.passes import TruthPass, with_image_times
from accuracy.summary import bootstrap_interval, mean_rows, median_time_s
from accuracy.tables import ABLATIONS_CAPTION, ablations_table, classes_table, detection_table, real_table
from accuracy.variants import (
    DEFAULT,
    DETECTION,
    FEWER_HYPOTHESES,
    FROM_TRUTH,
    LINES,
    ORACLE,
    PAPER,
    REAL,
    REFINED,
    REGRESSED,
    SEARCHED,
)
from helpers.banks import noise_bank
from helpers.networks import random_network
from helpers.toy_pairs import K_OBS, toy_bank
from rich.console import Console
from scipy.spatial.transform import Rotation

from picopose_cli.base.geometry import make_T, rotation_angle_rad
from picopose_cli.base.options import InferOptions
from picopose_cli.base.types import CROP_PX, GRID_CELLS, PoseEstimate, QueryBatch
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.results import read_results, write_results
from picopose_cli.commands import infer
from picopose_cli.network.offsets import OffsetEstimate, start_offsets
from picopose_cli.network.picopose import PicoPose
from picopose_cli.pose.inference_network import InferenceNetwork
from picopose_cli.pose.queries import crop_queries, stack_queries
from picopose_cli.pose.rules import Hypothesis
from picopose_cli.pose.template_store import TemplateStore
from picopose_cli.runs.inputs import load_image

CROP = np.array([[1.4, 0, -300], [0, 1.4, -190], [0, 0, 1]])
WIDE = Console(width=160)


@pytest.fixture
def toy(toy_dir, tmp_path) -> Bench:
    """The benchmark of the generated data set, with its own banks and network."""
    detections = dict.fromkeys(("gt", "rough", NOISY), toy_dir / "toy/detections.json")
    settings = Settings(tmp_path, toy_dir / "tiny.safetensors", "cpu", "fp32", workers=1)
    return Bench(open_dataset("toy", toy_dir), detections, toy_dir / "toy/templates", tmp_path / "results", settings)


def rotated(T_tmpl: np.ndarray, angle_deg: float, t_m: tuple[float, float, float]) -> np.ndarray:
    """The pose of an object seen as in a template, but rotated in the image plane and elsewhere."""
    return make_T(Rotation.from_euler("z", angle_deg, degrees=True).as_matrix() @ T_tmpl[:3, :3], np.array(t_m))


def test_the_oracle_is_exact_in_the_viewing_direction_of_a_template():
    bank, views = noise_bank(), [2, 7, 9]
    T_true = np.stack([rotated(bank.T_tmpl_from_obj[view], 70.0 * view, (0, 0, 0.2 * view)) for view in views])
    crops = np.stack([np.eye(3), CROP, 2 * CROP + np.diag([0, 0, -1])])
    starts = true_starts([bank] * 3, T_true, np.stack([K_OBS] * 3), crops)
    assert list(starts.views) == views
    np.testing.assert_allclose(starts.T_stage2, T_true, atol=1e-5)


def test_the_oracle_has_the_true_position_and_the_rotation_of_the_nearest_template():
    bank = toy_bank("box")
    rng = np.random.default_rng(0)
    R = Rotation.random(20, random_state=rng).as_matrix()
    T_true = make_T(R, np.array([0.0, 0, 0.6]) + rng.uniform(-0.02, 0.02, (20, 3)))
    starts = true_starts([bank] * 20, T_true, np.stack([K_OBS] * 20), np.stack([CROP] * 20))
    np.testing.assert_allclose(starts.T_stage2[:, :3, 3], T_true[:, :3, 3], atol=1e-5)
    assert np.rad2deg(rotation_angle_rad(starts.T_stage2[:, :3, :3], R)).max() < 15


def test_stage_3_from_the_truth_is_exact_when_it_changes_nothing():
    class Exact(PicoPose):
        def regress_offsets(self, *arguments: torch.Tensor, **_: object) -> OffsetEstimate:
            A, masks = arguments[3:5]
            fine = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
            flow, inside = start_offsets(A, fine, CROP_PX / GRID_CELLS)
            return OffsetEstimate((flow,), (inside * 18 - 9,))

    exact, bank = random_network(), toy_bank("box", every=20)
    exact.__class__ = Exact
    network = InferenceNetwork(exact, device="cpu", precision="fp32")
    matcher = TimedMatcher(network, TemplateStore(network), PAPER_RULES)
    matcher.store.add_object(bank)
    T_true = np.stack([rotated(T, 30.0 * i, tuple(T[:3, 3])) for i, T in enumerate(bank.T_tmpl_from_obj)])
    count = len(T_true)
    K, crops = np.stack([bank.K] * count), np.stack([CROP] * count)
    pixels = np.zeros((count, 3, CROP_PX, CROP_PX), np.float32)
    batch = QueryBatch(pixels, np.ones((count, CROP_PX, CROP_PX), bool), crops, K, np.ones(count, int))
    starts = true_starts([bank] * count, T_true, K, crops)
    poses = poses_from_truth(network, matcher, batch, network.extract_offset_features(pixels), starts)
    for slug, tolerance_deg in (("truth-paper", 5), ("truth-default", 0.5)):
        assert np.rad2deg(rotation_angle_rad(poses[slug][:, :3, :3], T_true[:, :3, :3])).max() < tolerance_deg


def test_variants_are_what_infer_writes(toy, toy_dir, tmp_path):
    one_hypothesis = next(one for one in FEWER_HYPOTHESES if one.hypotheses == 1 and one.rounds == 1)
    toy.make_missing((*REGRESSED, *SEARCHED, *FEWER_HYPOTHESES), "gt", Console())
    for variant in (PAPER, DEFAULT, REFINED[1], one_hypothesis):
        options = InferOptions(
            "toy",
            toy_dir,
            detections=str(toy_dir / "toy/detections.json"),
            weights=toy.settings.weights,
            output=tmp_path / "picopose_toy-test.csv",
            hypotheses=variant.hypotheses,
            rules="paper" if variant is PAPER else "default",
            refine=variant.rounds,
        )
        infer.run(options)
        table, expected = read_results(toy.path(variant, "gt")), read_results(options.output)
        np.testing.assert_array_equal(table.obj_id, expected.obj_id)
        np.testing.assert_array_equal(table.score, expected.score)
        np.testing.assert_array_equal(table.T_cam_from_obj, expected.T_cam_from_obj)
        assert median_time_s(toy.path(variant, "gt")) > 0


def test_stage_2_is_the_pose_of_the_best_template(toy):
    toy.make(REGRESSED, "gt", Console())
    written = iter(read_results(toy.path(REGRESSED[0], "gt")).T_cam_from_obj)
    matcher = toy.matcher("regressed")
    for task in toy.tasks("gt"):
        queries, _ = crop_queries(task, load_image(task), {1, 2})
        for hypotheses in matcher.match(stack_queries(queries)):
            np.testing.assert_allclose(next(written), hypotheses[0].T_stage2, atol=1e-4)


def test_a_stopped_pass_is_continued(toy, monkeypatch):
    monkeypatch.setattr(bench, "DEFAULT_BATCH_SIZE", 1)
    toy.make(FROM_TRUTH, "gt", Console())
    written = {variant.slug: toy.path(variant, "gt").read_bytes() for variant in FROM_TRUTH}
    journal = next(toy.results_dir.rglob("truth-gt.jsonl"))
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(lines[0] + lines[1][:40])  # as if killed in the middle of a line
    made = []
    original = TruthPass.__call__
    monkeypatch.setattr(TruthPass, "__call__", lambda self, group: made.append(group) or original(self, group))
    toy.make(FROM_TRUTH, "gt", Console())
    assert len(made) == len(lines) - 1
    assert {variant.slug: toy.path(variant, "gt").read_bytes() for variant in FROM_TRUTH} == written


def test_times_of_detections_are_summed_over_an_image():
    rows = [[1, 2, 5, 0.9, [], 0.25], [1, 2, 6, 0.8, [], 0.5], [1, 3, 5, 0.7, [], 2.0]]
    assert [row[-1] for row in with_image_times(rows)] == [0.75, 0.75, 2.0]


def test_variants_differ_in_their_rules():
    """Exact flow, but floored targets and top-left points for the released pairs: only the sub-cell rule is exact."""
    bank = toy_bank("box", every=40)
    view, A_crop = 1, bank.A_crop_from_image[1].astype(float)
    flow = np.full((2, GRID_CELLS, GRID_CELLS), 0.5)  # the template itself, in the middle of its cells
    logit = np.where(bank.depth_centre_m[view] > 0, 9.0, -9.0)
    T_true = bank.T_tmpl_from_obj[view]
    recorded = RecordedFlow.record(PAPER_RULES, bank, view, flow, logit, A_crop)  # a bank has an object's geometry
    solver = DetectionSolver([Hypothesis(view, 1.0, T_true, recorded, float(A_crop[0, 0]), 1.0)], bank.K)
    found = {variant.slug: solver.poses(variant)[0][0] for variant in (*REGRESSED, DEFAULT)}
    off = {
        slug: np.rad2deg(rotation_angle_rad(pose.T_cam_from_obj[:3, :3], T_true[:3, :3]))
        for slug, pose in found.items()
    }
    assert off["unsearched"] < 0.1
    assert off["default5"] < 0.1
    assert off["subcell"] < 0.1
    assert found["paper5"].selection_score <= 1 < found["soft-inliers"].selection_score
    assert found["robust"].selection_score <= 1 < found["unsearched"].selection_score
    shift = {slug: np.abs(pose.T_cam_from_obj[:3, 3] - T_true[:3, 3]).max() for slug, pose in found.items()}
    assert shift["unsearched"] < 0.2 * shift["paper5"]


def test_every_variant_is_made_once_and_scored(toy, capsys):
    rows = measure_ablations(toy, Console())
    with_true_masks = [variant.title for variant in (ORACLE, *REGRESSED, *SEARCHED, *FROM_TRUTH)]
    assert [row["line"] for row in rows if row["masks"] == "gt"] == with_true_masks
    with_rough_masks = [variant.title for variant in (*REGRESSED, *SEARCHED, *FEWER_HYPOTHESES)]
    assert [row["line"] for row in rows if row["masks"] == "rough"] == with_rough_masks
    oracle = rows[0]
    assert oracle["AR"] > 0.3  # 21 of the 162 views
    assert oracle["AR"] == max(row["AR"] for row in rows)
    for row in rows:
        assert row["targets"] == 6
        assert row["AR"] == pytest.approx((row["AR_VSD"] + row["AR_MSSD"] + row["AR_MSPD"]) / 3)
        assert row["AR_95"][0] <= row["AR"] <= row["AR_95"][1]
    paper = next(row for row in rows if row["line"] == PAPER.title)
    assert paper["AR_above"] == paper["worst_object_above"] == 0
    assert "min left" in capsys.readouterr().out
    assert measure_ablations(toy, Console()) == rows
    assert not capsys.readouterr().out
    WIDE.print(ablations_table("title", ABLATIONS_CAPTION, rows))
    assert f"{oracle['AR']:.3f}" in capsys.readouterr().out


def test_a_class_is_measured_by_infer_and_kept(toy, monkeypatch, capsys):
    monkeypatch.setattr(classes, "class_bench", lambda *_: toy)
    monkeypatch.setattr(classes, "data_sha256", lambda _: "of the data")
    monkeypatch.setattr(classes, "LINES", LINES[::2])
    plain = next(one for one in CLASSES if one.name == "plain")
    rows = classes.measure_class(plain, 2, 2, toy.settings, Console())
    assert [(row["data"], row["line"], row["masks"]) for row in rows] == [
        ("plain", line.title, "rough") for line in LINES[::2]
    ]
    assert all(row["estimates"] == row["targets"] == sum(row["object_targets"]) == 6 for row in rows)
    assert rows[0]["AR_above"] == 0
    paper, default = (read_results(toy.path(line, "rough")).T_cam_from_obj for line in LINES[::2])
    assert np.abs(paper - default).max() > 0.01
    monkeypatch.setattr(classes.infer, "run", None)
    assert classes.measure_class(plain, 2, 2, toy.settings, Console()) == rows
    capsys.readouterr()
    result, before = {"classes": rows}, {"classes": [{**row, "object_AR": [0.5, 0.5]} for row in rows]}
    add_gains(result, before)
    WIDE.print(classes_table("title", rows))
    assert f"{rows[1]['AR_above_before']:+.3f}" in capsys.readouterr().out


def test_what_loses_against_an_earlier_result_is_named():
    def row(data: str, *recalls: float, sha256: str = "same") -> dict:
        known = {"data": data, "line": "one", "masks": "rough", "data_sha256": sha256}
        return {**known, "object_AR": list(recalls), "object_targets": [30, 10]}

    now = {"classes": [row("worse", 0.5, 0.6), row("equal", 0.5, 0.5), row("other data", 0.1, 0.1, sha256="new")]}
    before = {"classes": [row("worse", 0.54, 0.5), row("equal", 0.5, 0.52), row("other data", 0.5, 0.5)]}
    add_gains(now, before)
    assert losses(now) == []  # 30 targets lose .04, 10 gain .1
    assert now["classes"][0]["AR_above_before"] == pytest.approx(-0.005)
    assert now["classes"][0]["AR_above_before_95"] == pytest.approx((-0.04, 0.1))
    assert now["classes"][1]["AR_above_before"] == pytest.approx(-0.005)
    assert "AR_above_before" not in now["classes"][2]
    now["classes"][0]["object_AR"] = [0.5, 0.5]
    add_gains(now, before)
    assert losses(now) == ["worse, rough masks, one: -0.030"]


def test_classes_spoil_the_same_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "render", lambda _: None)
    weights = tmp_path / "weights"
    weights.write_bytes(b"any")
    settings = Settings(tmp_path, weights, "cpu", "fp32", workers=1)
    spoiled = [one for one in CLASSES if one.name in ("albedo", "quarter", "blur", "lowlight")]
    benches = [procedural_bench(2, 1, settings), *(classes.class_bench(one, 2, 1, settings) for one in spoiled)]
    poses = {(bench.dataset.split_dir / "000000/scene_gt.json").read_text() for bench in benches}
    assert len(poses) == 1
    images = {(bench.dataset.split_dir / "000000/rgb/000000.png").read_bytes() for bench in benches}
    assert len(images) == 4  # the CAD model's colours are in no image
    assert len({bench.banks_dir for bench in benches}) == 3


def test_symmetries_and_the_detection_task_are_measured(toy, capsys):
    rows = measure_symmetric(toy, Console())
    assert [row["line"].rpartition(", ")[2] for row in rows] == ["symmetries not used"] * 2 + ["symmetries used"] * 2
    assert [row["AR_above"] for row in rows] == [0] * 4  # the toy objects have none
    rows = measure_detection(toy, Console())
    assert [row["line"] for row in rows] == [variant.title for variant in DETECTION]
    scores = [read_results(toy.path(variant, NOISY)).score for variant in DETECTION]
    given = {detection.score for task in toy.tasks(NOISY) for detection in task.detections}
    assert set(scores[1]) <= given
    assert (scores[2] < scores[1]).all()
    for row in rows:
        assert row["mAP"] == pytest.approx((row["mAP_mssd"] + row["mAP_mspd"]) / 2)
        assert row["mAP_95"][0] <= row["mAP"] <= row["mAP_95"][1]
    assert "above" not in rows[0]
    assert rows[1]["above"] == 0
    assert rows[2]["above"] == pytest.approx(rows[2]["mAP"] - rows[1]["mAP"])
    WIDE.print(detection_table("title", rows))
    assert f"{rows[0]['mAP']:.3f}" in capsys.readouterr().out


def test_extra_detections_are_measured_by_the_poses_of_the_detection_task(toy):
    """Of three detections of each target the second has the true pose, and the tool's score says so."""
    infer_rows, others = [], []
    for (scene_id, im_id, obj_id), T in toy.truths.items():
        away = T @ make_T(np.eye(3), np.array([0, 0, 1.0]))
        for score, tool, pose in ((0.9, 0.1, away), (0.5, 0.4, T), (0.3, 0.2, away)):
            infer_rows.append([PoseEstimate(scene_id, im_id, obj_id, value, pose, 0.6) for value in (score, tool)])
        others.append(PoseEstimate(scene_id, im_id, 99, 1.0, T, 0.6))  # of an object that is no target
    for variant, column in zip(DETECTION[1:], (0, 1), strict=True):
        toy.results_dir.mkdir(exist_ok=True)
        write_results(toy.path(variant, NOISY), [*(row[column] for row in infer_rows), *others])
    toy.path(DETECTION[0], NOISY).touch()
    rows = measure_extra_detections(toy, Console())
    assert [row["detections"] for row in rows] == [6, 12, 18, 18]
    assert rows[0]["AR"] < 0.5
    assert [row["AR"] for row in rows[1:]] == [1, 1, 1]
    assert rows[1]["AR_above"] == 1 - rows[0]["AR"]
    assert [row["median_s_an_image"] for row in rows] == pytest.approx([0.6 * n / 8 for n in (2, 4, 6, 6)])


def test_real_data_sets_that_lack_a_part_are_left_out_with_the_reason(toy_dir, tmp_path, capsys):
    folder, work = tmp_path / "real", tmp_path / "work"
    shutil.copytree(toy_dir / "toy", folder / "whole")
    shutil.copytree(toy_dir / "toy/templates", work / "banks/whole")
    for name, lost in (("blind", "detections.json"), ("untrue", "test/000001/scene_gt.json"), ("bare", "models")):
        shutil.copytree(toy_dir / "toy", folder / name)
        path = folder / name / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder / "whole/test/000001/depth")
    settings = Settings(work, toy_dir / "tiny.safetensors", "cpu", "fp32", workers=1)
    rows, skipped = measure_real(folder, settings, Console())
    assert [(row["data"], row["line"]) for row in rows] == [("whole", variant.title) for variant in REAL]
    assert all(row["AR"] is None and row["AR_MSPD"] is not None for row in rows)
    assert "no detections" in skipped["blind"]
    assert "ground truth" in skipped["untrue"]
    assert "no meshes" in skipped["bare"]
    means = mean_rows([*rows, *({**row, "AR": 0.5, "AR_MSPD": 1.0} for row in rows)])
    assert [row["AR"] for row in means] == [0.5] * len(REAL)
    assert means[0]["AR_MSPD"] == pytest.approx((1 + rows[0]["AR_MSPD"]) / 2)
    WIDE.print(real_table("title", means))
    assert "mean of 2" in capsys.readouterr().out


def test_bootstrap_intervals():
    rng = np.random.default_rng(1)
    values, weights = rng.normal(0.5, 0.1, 400), rng.integers(1, 9, 400)
    low, high = bootstrap_interval(values, weights)
    mean = np.average(values, weights=weights)
    # Known: the standard error of a weighted mean of independent values.
    error = 0.1 * np.sqrt((weights**2).sum()) / weights.sum()
    assert mean - low == pytest.approx(1.96 * error, rel=0.15)
    assert high - mean == pytest.approx(1.96 * error, rel=0.15)
    assert bootstrap_interval(values, weights) == (low, high)
    assert bootstrap_interval(np.full(5, 0.3), np.arange(1, 6)) == pytest.approx((0.3, 0.3))
