"""`picopose score` on files: the official numbers, and what it says when something is missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.meshes import write_ply
from helpers.rendered_bop import write_bop_dataset

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T
from picopose_cli.base.options import ScoreOptions
from picopose_cli.base.types import PoseEstimate
from picopose_cli.bop.results import write_results
from picopose_cli.bop.toolkit import TOOLKIT_VARIABLE
from picopose_cli.commands import score
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.runs import score_inputs
from picopose_cli.scoring.pose_errors import adds

FILES = ("gt", "fine", "mid", "coarse")


@pytest.fixture
def toy(tmp_path):
    return write_bop_dataset(tmp_path / "data", images=3)


def write_csv(dataset, path, *, noise_m=0.0, time_s=0.5, extra=()):
    """The ground truth as a result file, each pose moved to the right by `noise_m`, with more estimates behind."""
    moved = make_T(np.eye(3), np.array([noise_m, 0, 0]))
    estimates = [
        PoseEstimate(*image, obj_id, 1 - 0.01 * row, moved @ T, time_s)
        for image, placed in dataset.poses.items()
        for row, (obj_id, T) in enumerate(placed)
    ]
    write_results(path, [*estimates, *extra])
    return path


def run(dataset, *paths, **options):
    options = {"data_dir": dataset.data_dir, "workers": 1, **options}
    return score.run(ScoreOptions(tuple(paths), **options))


@pytest.mark.parametrize("name", FILES)
def test_official_scores(shared_dir, name, tmp_path):
    folder = shared_dir / "scoring"
    official = json.loads((folder / "official_scores.json").read_text())[name]
    ours = {}
    for targets in ("bop19", "bop24"):
        output = tmp_path / f"{targets}.json"
        options = ScoreOptions(
            (folder / f"results/{name}_ycbv-test.csv",), data_dir=folder, targets=targets, output=output, workers=2
        )
        score.run(options)
        ours |= json.loads(output.read_text())
    assert set(ours) == set(official)
    for key, value in official.items():
        tolerance = 1e-3 if key.endswith(("vsd", "average_recall")) else 1e-9
        assert ours[key] == pytest.approx(value, abs=tolerance), key


@pytest.mark.parametrize("name", ["near", "mixed", "crowd"])
def test_official_detection_scores_where_instances_are_hardly_visible(shared_dir, name):
    folder = shared_dir / "scoring_detection"
    path = folder / f"results/{name}_ycbv-test.csv"
    ours = score.run(ScoreOptions((path,), data_dir=folder, targets="bop24", workers=1)).scores[path.stem]
    official = json.loads((folder / "official_scores.json").read_text())[name]
    assert ours == pytest.approx(official, abs=1e-12)


def test_ground_truth_scores_one_and_the_table_says_so(toy, tmp_path, capsys):
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    report = run(toy, path)
    assert report.exit_code == 0
    assert report.scores["gt_toy-test"] == {
        "bop19_average_recall": 1.0,
        "bop19_average_recall_vsd": 1.0,
        "bop19_average_recall_mssd": 1.0,
        "bop19_average_recall_mspd": 1.0,
        "bop19_average_time_per_image": 0.5,
    }
    lines = capsys.readouterr().out.splitlines()
    total = next(line.split() for line in lines if line.split()[:1] == ["all"])
    assert total == ["all", "6", "6", "6", "1.0000", "1.0000", "1.0000", "1.0000"]
    assert "mean time per image: 0.500 s" in lines
    detected = run(toy, path, targets="bop24").scores["gt_toy-test"]
    assert {detected[key] for key in detected if "mAP" in key} == {1.0}


def test_scores_do_not_depend_on_the_number_of_workers(toy, tmp_path):
    path = write_csv(toy, tmp_path / "noisy_toy-test.csv", noise_m=0.012)
    alone = run(toy, path, per_object=True)
    assert 0 < alone.scores["noisy_toy-test"]["bop19_average_recall"] < 1
    assert run(toy, path, per_object=True, workers=3) == alone


def test_per_object_adds_average_distances(toy, tmp_path, capsys):
    path = write_csv(toy, tmp_path / "noisy_toy-test.csv", noise_m=0.01, time_s=-1)
    output = tmp_path / "out/scores.json"
    run(toy, path, per_object=True, output=output)
    written = json.loads(output.read_text())
    assert written["add_auc"] == pytest.approx(0.9)  # 1 cm of 10
    assert written["adds_auc"] > written["add_auc"]
    assert written["bop19_average_time_per_image"] == -1
    assert list(written["objects"]) == ["1", "2"]
    assert written["objects"]["1"]["add_recall"] == 1
    printed = capsys.readouterr().out
    assert "ADD-S AUC" in printed
    assert "mean time per image: unknown" in printed


def test_several_files_are_compared(toy, tmp_path, capsys):
    paths = [
        write_csv(toy, tmp_path / f"method{noise_mm}_toy-test.csv", noise_m=noise_mm / 1000) for noise_mm in (0, 20)
    ]
    output, plot = tmp_path / "scores.json", tmp_path / "recall.png"
    report = run(toy, *paths, output=output, plot=plot)
    written = json.loads(output.read_text())
    assert list(written) == ["method0_toy-test", "method20_toy-test"]
    assert written == report.scores
    printed = capsys.readouterr().out
    assert "comparison" in printed
    assert "method20_toy-test" in printed
    assert cv2.imread(str(plot)).shape[0] > 400


@pytest.mark.parametrize("targets", ["bop19", "bop24"])
def test_plot_of_one_file(toy, tmp_path, targets):
    plot = tmp_path / "plots/recall.png"
    run(toy, write_csv(toy, tmp_path / "gt_toy-test.csv"), plot=plot, targets=targets)
    assert cv2.imread(str(plot)).std() > 5
    assert list(plot.parent.iterdir()) == [plot]


def test_without_depth_there_is_no_total(tmp_path, capsys):
    dataset = write_bop_dataset(tmp_path / "data", depth=False)
    path = write_csv(dataset, tmp_path / "gt_toy-test.csv")
    report = run(dataset, path, plot=tmp_path / "plot.png", per_object=True)
    assert report.scores["gt_toy-test"]["bop19_average_recall_mssd"] == 1
    assert not [
        key for key in report.scores["gt_toy-test"] if key in {"bop19_average_recall", "bop19_average_recall_vsd"}
    ]
    assert "VSD and AR are not computed: there are no depth images" in capsys.readouterr().out


def test_a_data_set_for_which_bop_defines_no_vsd(tmp_path, capsys):
    dataset = write_bop_dataset(tmp_path / "data", "handal")
    report = run(dataset, write_csv(dataset, tmp_path / "gt_handal-test.csv"))
    assert "bop19_average_recall" not in report.scores["gt_handal-test"]
    assert "BOP defines no VSD for handal" in capsys.readouterr().out


def test_rows_that_do_not_count_are_reported(toy, tmp_path, capsys):
    T = make_T(np.eye(3), np.array([0, 0, 0.5]))
    extra = [
        PoseEstimate(1, 0, 99, 0.9, T, 0.5),
        PoseEstimate(9, 0, 1, 0.9, T, 0.5),
        PoseEstimate(1, 0, 1, 0.1, T, 0.5),
    ]
    path = write_csv(toy, tmp_path / "gt_toy-test.csv", extra=extra)
    assert run(toy, path).scores["gt_toy-test"]["bop19_average_recall"] == 1
    printed = capsys.readouterr().out
    assert "2 of 9 rows are of images or objects that are not targets" in printed
    assert "1 of 9 rows are beyond the counted number of estimates" in printed


def test_private_ground_truth_names_the_file_to_upload(tmp_path):
    dataset = write_bop_dataset(tmp_path / "data", "hope")
    shutil.copytree(dataset.root / "test", dataset.root / "val")
    for path in (dataset.root / "test").rglob("scene_gt*.json"):
        path.unlink()
    path = write_csv(dataset, tmp_path / "mine_hope-test.csv")
    with pytest.raises(
        PicoPoseError, match=r"mine_hope-test.csv: the ground truth of hope's test images is private.*upload.*val"
    ):
        run(dataset, path)
    shutil.rmtree(dataset.root / "test")  # who has only the validation images is told the same
    with pytest.raises(PicoPoseError, match=r"is private.*upload"):
        run(dataset, path)
    assert run(dataset, path, split="val").scores["mine_hope-test"]["bop19_average_recall"] == 1


def test_a_split_without_ground_truth_is_named(toy, tmp_path):
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    (toy.root / "test/000001/scene_gt.json").unlink()
    with pytest.raises(PicoPoseError, match=r"toy/test: test has no ground truth \(scene_gt\.json\)"):
        run(toy, path)


def test_images_without_anything_visible_cannot_be_scored(toy, tmp_path):
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    infos = toy.root / "test/000001/scene_gt_info.json"
    hidden = {im: [{**one, "visib_fract": 0.05} for one in ones] for im, ones in json.loads(infos.read_text()).items()}
    infos.write_text(json.dumps(hidden))
    with pytest.raises(PicoPoseError, match="no target image has an object that is visible enough"):
        run(toy, path, targets="bop24")
    assert run(toy, path).scores["gt_toy-test"]["bop19_average_recall"] == 1  # a target all the same


def test_one_of_several_files_that_cannot_be_scored_is_reported(toy, tmp_path, capsys):
    good = write_csv(toy, tmp_path / "good_toy-test.csv")
    bad = tmp_path / "bad_toy-test.csv"
    bad.write_text(good.read_text().replace("1.0,", "best,", 1))
    report = run(toy, good, bad)
    assert report.exit_code == 1
    assert list(report.scores) == ["good_toy-test"]
    assert f"failed: {bad}: row 2" in capsys.readouterr().out
    with pytest.raises(PicoPoseError, match="row 2"):
        run(toy, bad)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("models/obj_000002.ply", r"models: no mesh of object 2"),
        ("test/000001/depth/000001.png", r"000001\.png: this depth image is missing \(1 of 3 are\)"),
        ("test/000001/scene_camera.json", r"scene_camera"),
    ],
)
def test_missing_files_are_named(toy, tmp_path, broken, message):
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    (toy.root / broken).unlink()
    with pytest.raises(PicoPoseError, match=message):
        run(toy, path)


def test_an_own_data_set_needs_no_models_info(toy, tmp_path, capsys):
    """Its diameters are those of the meshes, to the last digit; data sets of BOP have the file, with symmetries."""
    path = write_csv(toy, tmp_path / "moved_toy-test.csv", noise_m=0.013)
    described = run(toy, path).scores
    (toy.root / "models/models_info.json").unlink()
    capsys.readouterr()
    assert run(toy, path).scores == described
    assert "models_info.json: diameters are computed from the meshes" in capsys.readouterr().out
    known = write_bop_dataset(tmp_path / "known", name="tudl")
    (known.root / "models/models_info.json").unlink()
    with pytest.raises(PicoPoseError, match=r"models_info\.json: the file does not exist"):
        run(known, write_csv(known, tmp_path / "gt_tudl-test.csv"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_depth_image_is_named(toy, tmp_path, workers):
    depth = toy.root / "test/000001/depth/000001.png"
    depth.write_bytes(depth.read_bytes()[:2000])
    with pytest.raises(PicoPoseError, match=r"depth/000001\.png: .*damaged"):
        run(toy, write_csv(toy, tmp_path / "gt_toy-test.csv"), workers=workers)


def test_a_damaged_mesh_is_named(toy, tmp_path):
    mesh = toy.root / "models/obj_000002.ply"
    mesh.write_text(mesh.read_text()[:3000])
    with pytest.raises(PicoPoseError, match=r"obj_000002\.ply: not a readable mesh"):
        run(toy, write_csv(toy, tmp_path / "gt_toy-test.csv"))


def test_an_undescribed_object_and_a_missing_camera_are_named(toy, tmp_path):
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    cameras = toy.root / "test/000001/scene_camera.json"
    whole = json.loads(cameras.read_text())
    cameras.write_text(json.dumps({**whole, "1": {"depth_scale": 0.1}}))
    with pytest.raises(PicoPoseError, match=r"scene_camera\.json: image 1: cam_K is missing"):
        run(toy, path)
    cameras.write_text(json.dumps(whole))
    infos = toy.root / "models/models_info.json"
    infos.write_text(json.dumps({"1": json.loads(infos.read_text())["1"]}))
    with pytest.raises(PicoPoseError, match=r"models_info\.json: object 2 has no entry"):
        run(toy, path)


@pytest.mark.parametrize("R", ["0 0 0 0 0 0 0 0 0", "nan 0 0 0 1 0 0 0 1", "1e308 0 0 0 1e308 0 0 0 1e308"])
@pytest.mark.parametrize("targets", ["bop19", "bop24"])
def test_a_pose_that_is_none_is_a_miss(toy, tmp_path, capsys, R, targets):
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    header, first, *rows = path.read_text().splitlines()
    fields = first.split(",")
    path.write_text("\n".join([header, ",".join([*fields[:4], R, *fields[5:]]), *rows]))
    scores = run(toy, path, per_object=True, targets=targets).scores["gt_toy-test"]
    if targets == "bop19":
        assert scores["bop19_average_recall_mssd"] == pytest.approx(5 / 6)
        assert scores["objects"]["1"]["matches"] == 2
        assert scores["objects"]["1"]["add_recall"] == pytest.approx(2 / 3)
    else:
        assert scores["objects"]["1"]["matches"] == 2
        assert scores["objects"]["1"]["AP_mssd"] == pytest.approx(
            67 / 101 * 2 / 3
        )  # recall 2/3 behind a false positive
    said = "1 rows have a number that is not finite and match nothing (rows 2)" in capsys.readouterr().out
    assert said == R.startswith("nan")


def test_adds_of_an_estimate_that_is_no_rotation_is_that_of_the_placed_points():
    points = np.array([[0.1, 0, 0], [-0.1, 0, 0]])
    double, collapsed = np.diag([2.0, 2, 2, 1]), np.diag([0.0, 0, 0, 1])
    np.testing.assert_allclose(adds(np.stack([double, collapsed]), np.eye(4)[None], points), [[0.1], [0.1]])


@pytest.mark.parametrize("scale", [0, -0.1, "0.1", None, float("nan")])
def test_an_invalid_depth_scale_is_named_and_not_replaced(toy, tmp_path, scale):
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    cameras = toy.root / "test/000001/scene_camera.json"
    content = json.loads(cameras.read_text())
    content["1"]["depth_scale"] = scale
    cameras.write_text(json.dumps(content))
    with pytest.raises(PicoPoseError, match=r"scene_camera\.json: image 1: depth_scale is not a positive number"):
        run(toy, path)
    assert run(toy, path, targets="bop24").exit_code == 0  # needs no depth


@pytest.mark.parametrize("workers", [1, 2])
def test_a_depth_image_of_another_size_than_its_image_is_named(toy, tmp_path, workers):
    depth = toy.root / "test/000001/depth/000001.png"
    whole = cv2.imread(str(depth), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(depth), whole[::2, ::2])
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    with pytest.raises(PicoPoseError, match=r"000001\.png: the depth image is 160x120 px, its image 320x240"):
        run(toy, path, workers=workers)


def test_targets_may_be_a_file_of_either_kind(toy, tmp_path):
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    objects, images = tmp_path / "objects.json", tmp_path / "images.json"
    objects.write_text(json.dumps([{"scene_id": 1, "im_id": 2, "obj_id": 1, "inst_count": 1}]))
    images.write_text(json.dumps([{"scene_id": 1, "im_id": 2}]))
    scored = run(toy, path, per_object=True, targets=str(objects)).scores["gt_toy-test"]
    assert {obj_id: one["targets"] for obj_id, one in scored["objects"].items()} == {"1": 1}
    scored = run(toy, path, per_object=True, targets=str(images)).scores["gt_toy-test"]
    assert {obj_id: one["targets"] for obj_id, one in scored["objects"].items()} == {"1": 1, "2": 1}
    assert scored["bop24_mAP"] == 1
    with pytest.raises(PicoPoseError, match="bop11: the target file does not exist"):
        run(toy, path, targets="bop11")


def test_equal_scores_are_ranked_in_the_order_of_the_target_file(toy, tmp_path):
    """A right and a wrong estimate of equal scores: precision is 1 until the wrong one comes."""
    T = {im_id: dict(toy.poses[1, im_id])[1] for im_id in range(3)}
    away = make_T(np.eye(3), np.array([0.2, 0, 0]))
    path = tmp_path / "m_toy-test.csv"
    write_results(path, [PoseEstimate(1, 0, 1, 0.5, T[0], 1.0), PoseEstimate(1, 1, 1, 0.5, away @ T[1], 1.0)])
    found = {}
    for order in ((0, 1), (1, 0)):
        targets = tmp_path / "targets.json"
        targets.write_text(json.dumps([{"scene_id": 1, "im_id": im_id} for im_id in order]))
        found[order] = run(toy, path, per_object=True, targets=str(targets)).scores["m_toy-test"]["objects"]["1"]
    assert found[0, 1]["AP_mssd"] == pytest.approx(51 / 101)  # recall .5 at a precision of 1
    assert found[1, 0]["AP_mssd"] == pytest.approx(51 / 101 / 2)


def test_a_partial_result_is_said(toy, tmp_path, capsys):
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    run(toy, path)
    assert "have estimates" not in capsys.readouterr().out
    path.write_text("\n".join(path.read_text().splitlines()[:3]))
    run(toy, path)
    assert "2 of 6 targets (an object in an image) have estimates" in capsys.readouterr().out


def test_a_diameter_in_another_unit_than_mm_is_named(toy, tmp_path):
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    infos = toy.root / "models/models_info.json"
    content = json.loads(infos.read_text())
    content["1"]["diameter"] /= 10
    infos.write_text(json.dumps(content))
    with pytest.raises(PicoPoseError, match=r"its diameter in mm is 141\.\d mm, but models_info\.json has 14\.14 mm"):
        run(toy, path)


def test_meshes_in_another_unit(toy, tmp_path):
    path = write_csv(toy, tmp_path / "noisy_toy-test.csv", noise_m=0.012)
    wanted = run(toy, path).scores
    for mesh_path in (toy.root / "models").glob("*.ply"):
        write_ply(mesh_path, read_mesh(mesh_path), unit_m=1.0)
    with pytest.raises(PicoPoseError, match="--mesh-unit"):
        run(toy, path)
    assert run(toy, path, mesh_unit="m").scores["noisy_toy-test"] == pytest.approx(wanted["noisy_toy-test"], abs=1e-3)


def test_a_worker_that_dies_is_an_error(toy, tmp_path, monkeypatch):
    def die_on_image_1(path, _):
        if path.stem == "000001":
            os.kill(os.getpid(), signal.SIGKILL)
        return np.ones((240, 320), np.float32)

    monkeypatch.setattr(score_inputs, "read_depth_m", die_on_image_1)
    with pytest.raises(PicoPoseError, match=r"a worker process was killed.*use fewer --workers"):
        run(toy, write_csv(toy, tmp_path / "gt_toy-test.csv"), workers=2)


def test_a_bug_in_a_worker_arrives_with_its_traceback(toy, tmp_path, monkeypatch):
    def fail(path, depth_scale):
        raise ZeroDivisionError(f"{path.stem} {depth_scale}")

    monkeypatch.setattr(score_inputs, "read_depth_m", fail)
    with pytest.raises(ZeroDivisionError, match=r"00000\d 0\.1") as caught:
        run(toy, write_csv(toy, tmp_path / "gt_toy-test.csv"), workers=2)
    assert "in fail" in str(caught.value.__cause__)


def test_workers_end_with_their_parent(toy, tmp_path):
    """Killed without a chance to clean up, the parent leaves no process behind."""
    code = (
        "import os, signal, sys, time; from pathlib import Path; from picopose_cli.runs import score_inputs\n"
        "from picopose_cli.cli import app\n"
        "def wait(path, _):\n"
        f"    (Path({str(tmp_path)!r}) / str(os.getpid())).touch(); time.sleep(60)\n"
        "score_inputs.read_depth_m = wait\n"
        f"app(['score', sys.argv[1], '--data-dir', {str(toy.data_dir)!r}, '--workers', '2'])"
    )
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.DEVNULL)
    workers = wait_until(
        lambda: len(ids := [int(one.name) for one in tmp_path.iterdir() if one.name.isdigit()]) == 2 and ids
    )
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not any(is_running(worker) for worker in workers))


def wait_until(condition, timeout_s=30):
    end = time.monotonic() + timeout_s
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def is_running(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


FAKE_SCRIPT = """
import argparse, json, os, pathlib, sys
import bop_toolkit_lib
parser = argparse.ArgumentParser()
for name in ("renderer_type", "results_path", "eval_path", "result_filenames", "targets_filename", "num_workers"):
    parser.add_argument("--" + name)
given = parser.parse_args()
if os.environ.get("FAKE_FAILURE"):
    sys.exit("first line\\nno display")
assert (pathlib.Path(os.environ["BOP_PATH"]) / "toy").is_dir()
assert (pathlib.Path(given.results_path) / given.result_filenames).read_text().startswith("scene_id")
_, dataset, split = given.result_filenames.split(".")[0].replace("-", "_").split("_")
assert dataset == "toy"
assert (pathlib.Path(os.environ["BOP_PATH"]) / "toy" / split).is_dir()
targets = json.loads((pathlib.Path(os.environ["BOP_PATH"]) / "toy" / given.targets_filename).read_text())
assert [sorted(target) for target in targets] == [["im_id", "inst_count", "obj_id", "scene_id"]] * 6
folder = pathlib.Path(given.eval_path) / given.result_filenames.split(".")[0]
folder.mkdir()
scores = {"bop19_average_recall": 0.75, "bop19_average_time_per_image": 0.5}
(folder / "scores_bop19.json").write_text(json.dumps(scores))
"""


@pytest.fixture
def fake_toolkit(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    for package in ("bop_toolkit_lib", "scripts"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("")
    (folder / "scripts/eval_bop19_pose.py").write_text(FAKE_SCRIPT)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv(TOOLKIT_VARIABLE, raising=False)
    return folder


@pytest.mark.usefixtures("fake_toolkit")
def test_toolkit_scores_stand_beside_ours(toy, tmp_path, capsys):
    run(toy, write_csv(toy, tmp_path / "gt_toy-test.csv"), toolkit=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["bop19_average_recall", "1.000000", "0.750000", "+2.5e-01"] in lines
    assert ["bop19_average_recall_vsd", "1.000000", "-", "-"] in lines


@pytest.mark.usefixtures("fake_toolkit")
def test_toolkit_gets_targets_and_names_that_it_can_read(toy, tmp_path, capsys):
    run(toy, write_csv(toy, tmp_path / "gt_toy-test.second.csv"), toolkit=True)
    assert "+2.5e-01" in capsys.readouterr().out
    (toy.root / "test").rename(toy.root / "val")
    targets = (toy.root / "test_targets_bop19.json").rename(toy.root / "val_targets_bop19.json")
    path = write_csv(toy, tmp_path / "my.method.csv")
    options = ScoreOptions((path,), toy.data_dir, dataset="toy", split="val", workers=1, toolkit=True)
    score.run(options)
    assert "+2.5e-01" in capsys.readouterr().out
    targets.unlink()  # then they are made from the ground truth
    score.run(options)
    assert "+2.5e-01" in capsys.readouterr().out


@pytest.mark.usefixtures("fake_toolkit")
def test_a_failing_toolkit_is_quoted_and_our_scores_stay(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_FAILURE", "1")
    report = run(toy, write_csv(toy, tmp_path / "gt_toy-test.csv"), toolkit=True)
    assert report.exit_code == 1
    assert report.scores["gt_toy-test"]["bop19_average_recall"] == 1
    assert "the toolkit ended with code 1 on gt_toy-test.csv: first line | no display" in capsys.readouterr().out


@pytest.mark.usefixtures("fake_toolkit")
def test_a_toolkit_without_the_script_is_an_error_before_the_work(toy, tmp_path):
    with pytest.raises(PicoPoseError, match=r"eval_bop24_pose\.py is not found"):
        run(toy, tmp_path / "missing_toy-test.csv", toolkit=True, targets="bop24")


def test_a_checkout_of_the_toolkit_may_be_named(toy, tmp_path, monkeypatch, capsys, fake_toolkit):
    checkout = tmp_path / "checkout"
    shutil.copytree(fake_toolkit, checkout)
    shutil.rmtree(fake_toolkit / "bop_toolkit_lib")
    monkeypatch.setenv(TOOLKIT_VARIABLE, str(checkout))
    run(toy, write_csv(toy, tmp_path / "gt_toy-test.csv"), toolkit=True)
    assert "+2.5e-01" in capsys.readouterr().out


def test_without_the_toolkit_the_message_says_how_to_install_it(toy, tmp_path, monkeypatch):
    monkeypatch.delenv(TOOLKIT_VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(PicoPoseError, match=r"bop_toolkit_lib is not installed.*pip install --no-deps"):
        run(toy, write_csv(toy, tmp_path / "gt_toy-test.csv"), toolkit=True)


def test_score_does_not_import_torch_or_matplotlib(toy, tmp_path):
    path = write_csv(toy, tmp_path / "gt_toy-test.csv")
    code = (
        "import sys; from picopose_cli.cli import app\n"
        f"try: app(['score', {str(path)!r}, '--data-dir', {str(toy.data_dir)!r}])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'matplotlib', 'h5py', 'pandas') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "1.0000" in done.stdout
