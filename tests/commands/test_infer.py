from __future__ import annotations

import gzip
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import DEFAULT_EXTRA_DETECTIONS, DEFAULT_REFINE_ROUNDS, InferOptions
from picopose_cli.base.types import Rle
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.results import counted_rows, read_results
from picopose_cli.bop.rle import decode_rle
from picopose_cli.bop.targets import read_targets
from picopose_cli.commands import infer
from picopose_cli.runs import inputs, onboarding


@pytest.fixture
def data_dir(toy_dir, tmp_path) -> Path:
    """A copy of the generated data set that a test may break."""
    shutil.copytree(toy_dir, tmp_path / "bop")
    return tmp_path / "bop"


def run(data_dir: Path, **changes) -> infer.InferReport:
    options = {
        "dataset": "toy",
        "data_dir": data_dir,
        "weights": data_dir / "tiny.safetensors",
        "detections": str(data_dir / "toy/detections.json"),
        "output": data_dir / "picopose_toy-test.csv",
        "hypotheses": 2,
        "refine": 0,
    }
    return infer.run(InferOptions(**(options | changes)))


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reasons(report: infer.InferReport) -> str:
    return "; ".join([*(skip.reason for skip in report.skipped), *report.problems])


def test_writes_a_result_file_and_a_report(toy_dir, tmp_path):
    output = tmp_path / "method_toy-test.csv"
    report = run(toy_dir, output=output)
    assert report.exit_code == 0
    table = read_results(output)
    assert len(table.row) == report.estimates == 6
    assert sorted(set(zip(table.im_id, table.obj_id, strict=True))) == [(i, o) for i in range(3) for o in (1, 2)]
    assert table.mean_time_s() > 0.25  # the detector's own time is in it
    saved = json.loads(output.with_suffix(".json").read_text())
    assert saved["options"]["hypotheses"] == 2
    assert saved["estimates"] == 6
    assert len(saved["weights_sha256"]) == 64
    assert set(saved["banks"]) == {"1", "2"}
    assert saved["stages_s"]["network"] > 0
    assert saved["versions"]["torch"]


def test_overlays_of_some_images_are_drawn_beside_the_result_file(data_dir, capsys):
    report = run(data_dir, overlays=2)
    folder = data_dir / "picopose_toy-test_overlays"
    assert sorted(path.name for path in folder.iterdir()) == ["000001_000000.png", "000001_000002.png"]
    assert f"overlays: {folder}" in capsys.readouterr().out
    assert report.exit_code == 0
    shutil.rmtree(folder)
    folder.write_text("in the way")
    assert run(data_dir, overlays=2, restart=True).exit_code == 0  # the poses are there all the same
    assert "overlays: not drawn: " in capsys.readouterr().out


def test_same_command_same_poses_whatever_the_batch(toy_dir, tmp_path):
    tables = []
    for index, changes in enumerate([{}, {"workers": 1}, {"batch_size": 1, "workers": 3}]):
        output = tmp_path / f"run{index}_toy-test.csv"
        run(toy_dir, output=output, **changes)
        tables.append(read_results(output))
    np.testing.assert_array_equal(tables[0].T_cam_from_obj, tables[1].T_cam_from_obj)
    assert np.isfinite(tables[2].T_cam_from_obj).all()


def test_ground_truth_masks_and_limit(toy_dir, tmp_path, capsys):
    output = tmp_path / "gt_toy-test.csv"
    report = run(toy_dir, detections="gt", limit=2, output=output)
    assert report.exit_code == 0
    assert report.images == 2
    assert report.estimates == 4
    assert "warning" not in capsys.readouterr().out  # images left out on purpose are no fault


def test_gzipped_detections_and_the_released_rules(data_dir):
    source = data_dir / "toy/detections.json"
    packed = data_dir / "packed.json.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    report = run(data_dir, detections=str(packed), rules="paper")
    assert report.exit_code == 0
    assert report.refinement == "0 rounds"


def test_refinement_changes_poses_and_needs_the_meshes(data_dir):
    poses = {}
    for rounds in (0, 1):
        output = data_dir / f"refined{rounds}_toy-test.csv"
        assert run(data_dir, refine=rounds, output=output).refinement == f"{rounds} rounds"
        poses[rounds] = read_results(output).T_cam_from_obj
    assert np.isfinite(poses[1]).all()
    assert (np.abs(poses[0] - poses[1]).max(axis=(1, 2)) > 1e-4).any()
    next((data_dir / "toy/models").glob("obj_000002.*")).unlink()
    report = run(data_dir, refine=None)
    assert report.exit_code == 0
    assert report.estimates == 6
    assert report.refinement.startswith(f"{DEFAULT_REFINE_ROUNDS} rounds, except objects 2,")
    with pytest.raises(PicoPoseError, match="object 2 cannot be refined"):
        run(data_dir, refine=1)
    shutil.rmtree(data_dir / "toy/models")
    report = run(data_dir, refine=None)
    assert report.estimates == 6
    assert report.refinement.startswith("0 rounds")


def test_the_released_rules_have_no_refinement():
    assert InferOptions("toy", rules="paper").rounds == 0
    with pytest.raises(PicoPoseError, match="no refinement"):
        InferOptions("toy", rules="paper", refine=2)
    with pytest.raises(PicoPoseError, match="--refine -1"):
        InferOptions("toy", refine=-1)


def test_more_detections_than_count_are_estimated_and_one_pose_of_a_thing_stays(data_dir):
    """Object 1 has worse detections, too: at the place of object 2 in two images, the same again in the third."""
    path = data_dir / "toy/detections.json"
    entries = json.loads(path.read_text())
    worse = [
        {**one, "category_id": 1, "score": 0.01} for one in entries if one["category_id"] == 2 - (one["image_id"] == 2)
    ]
    path.write_text(json.dumps(entries + worse))
    tables = {}
    for extra in (0, None):
        report = run(data_dir, extra_detections=extra, refine=0, output=data_dir / f"extra{extra}_toy-test.csv")
        assert report.exit_code == 0
        assert not report.findings
        assert report.identity["extra_detections"] == (0 if extra == 0 else DEFAULT_EXTRA_DETECTIONS)
        tables[extra] = read_results(data_dir / f"extra{extra}_toy-test.csv")
    assert tables[0].obj_id.tolist() == [1, 2] * 3
    assert tables[None].obj_id.tolist() == [1, 1, 2, 1, 1, 2, 1, 2]
    counted = counted_rows(tables[None], read_targets(open_dataset("toy", data_dir)))
    assert counted.obj_id.tolist() == [1, 2] * 3
    np.testing.assert_array_equal(np.delete(tables[None].score, [1, 4]), counted.score)
    assert InferOptions("toy", rules="paper").extra == InferOptions("toy", detections="gt").extra == 0
    assert InferOptions("toy", rules="paper", extra_detections=2).extra == 2


def test_truncated_and_missing_images_are_skipped(data_dir):
    folder = data_dir / "toy/test/000001/rgb"
    (folder / "000000.png").write_bytes((folder / "000000.png").read_bytes()[:4000])
    (folder / "000001.png").unlink()
    report = run(data_dir)
    assert report.exit_code == 1
    assert report.estimates == 2
    assert {skip.im_id for skip in report.skipped} == {0, 1}
    assert all(skip.obj_id is None for skip in report.skipped)


def test_missing_camera_is_skipped(data_dir):
    edit_json(data_dir / "toy/test/000001/scene_camera.json", lambda content: content["2"].pop("cam_K"))
    report = run(data_dir)
    assert report.exit_code == 1
    assert [(skip.im_id, skip.obj_id) for skip in report.skipped] == [(2, None)]
    assert "cam_K" in report.skipped[0].reason


def test_bad_detections_are_recorded(data_dir):
    def spoil(entries):
        entries[0]["segmentation"]["counts"] = [5, 5]
        entries[1]["segmentation"]["size"] = [10, 10]
        entries[2]["score"] = float("nan")
        del entries[3]["bbox"], entries[3]["segmentation"]
        entries[4]["segmentation"]["counts"] = [320 * 240]
        entries[4]["bbox"] = [0, 0, 0, 0]

    edit_json(data_dir / "toy/detections.json", spoil)
    report = run(data_dir)
    assert report.exit_code == 1
    assert report.estimates == 1
    assert len(report.problems) + len(report.skipped) >= 5


def test_folder_of_masks_gives_the_same_poses_as_their_run_lengths(data_dir):
    folder = data_dir / "masks"
    folder.mkdir()
    entries = json.loads((data_dir / "toy/detections.json").read_text())
    for number, entry in enumerate(entries):
        mask = decode_rle(Rle(tuple(entry["segmentation"]["size"]), tuple(entry["segmentation"]["counts"])))
        name = f"{entry['scene_id']:06d}_{entry['image_id']:06d}_{entry['category_id']:06d}_{number}.png"
        cv2.imwrite(str(folder / name), mask.astype(np.uint8) * 255)
    report = run(data_dir, detections=str(folder), output=data_dir / "masks_toy-test.csv")
    assert report.exit_code == 0
    run(data_dir)
    poses = [read_results(data_dir / name).T_cam_from_obj for name in ("masks_toy-test.csv", "picopose_toy-test.csv")]
    np.testing.assert_array_equal(*poses)
    before = report.identity["detections_sha256"]
    cv2.imwrite(str(next(folder.iterdir())), np.zeros((240, 320), np.uint8))
    report = run(data_dir, detections=str(folder), output=data_dir / "masks_toy-test.csv")
    assert report.identity["detections_sha256"] != before
    assert report.exit_code == 1  # the empty mask is skipped


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: [], "there are no detections; pass detections of at least one object"),
        (lambda entries: [entry | {"scene_id": 77} for entry in entries], "only others such as scene 77, image 0"),
        (lambda entries: [entry | {"bbox": None, "segmentation": None} for entry in entries], "neither bbox nor seg"),
    ],
)
def test_detections_without_any_use_are_named_as_such(data_dir, change, words):
    path = data_dir / "toy/detections.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(PicoPoseError, match=words) as caught:
        run(data_dir)
    assert str(path) in str(caught.value)
    assert "render-templates" not in str(caught.value)


def test_warnings_reach_console_and_report_and_change_no_exit_code(data_dir, capsys):
    def halve(cameras):
        for camera in cameras.values():
            camera["cam_K"] = [value / 2.5 for value in camera["cam_K"][:8]] + [1.0]

    edit_json(data_dir / "toy/test/000001/scene_camera.json", halve)
    report = run(data_dir)
    assert report.exit_code == 0
    assert "warning: scene 1: the principal point of image 0 is far from the middle" in capsys.readouterr().out
    (warning,) = json.loads((data_dir / "picopose_toy-test.json").read_text())["warnings"]
    assert "cam_K" in warning


def test_image_without_detections_is_recorded(data_dir):
    path = data_dir / "toy/detections.json"
    path.write_text(json.dumps([entry for entry in json.loads(path.read_text()) if entry["image_id"] != 1]))
    report = run(data_dir)
    assert report.exit_code == 1
    assert [(skip.im_id, skip.obj_id) for skip in report.skipped] == [(1, None)]
    assert report.estimates == 4


@pytest.mark.parametrize("kind", ["missing", "truncated", "foreign", "other mesh"])
def test_object_without_a_usable_bank_is_skipped(data_dir, kind):
    bank = data_dir / "toy/templates/obj_000002.h5"
    if kind == "missing":
        bank.unlink()
    elif kind == "truncated":
        bank.write_bytes(bank.read_bytes()[:2000])
    elif kind == "foreign":
        bank.write_text("no bank")
    else:
        mesh = data_dir / "toy/models/obj_000002.ply"
        mesh.write_text(mesh.read_text().replace("\n3 ", "\n3  ", 1))
    report = run(data_dir)
    assert report.exit_code == 1
    assert {skip.obj_id for skip in report.skipped} == {2}
    assert report.estimates == 3
    assert any("object 2" in problem and "render-templates" in problem for problem in report.problems)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"weights": Path("nowhere.ckpt")}, "nowhere.ckpt"),
        ({"detections": "nowhere.json"}, "nowhere.json"),
        ({"dataset": "nothere"}, "nothere"),
        ({"split": "val"}, "val"),
        ({"output": Path("bad_name_for_bop.v2.csv")}, "bad_name"),
        ({"device": "tpu"}, "--device"),
        (
            {"templates": Path("no where")},
            r"^no object can be estimated: no where has no bank of 2 objects \(1, 2\); "
            r"run picopose render-templates --dataset toy --data-dir \S+ --templates 'no where'$",
        ),
        ({"targets": Path("nowhere.json")}, "nowhere.json"),
    ],
)
def test_what_stops_the_run_is_named(toy_dir, tmp_path, monkeypatch, changes, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PicoPoseError, match=text):
        run(toy_dir, **({"output": tmp_path / "a_toy-test.csv"} | changes))
    assert not list(tmp_path.glob("*.csv"))


def test_missing_and_broken_banks_are_one_line_each_with_the_command(data_dir):
    templates = data_dir / "toy/templates"
    (templates / "obj_000001.h5").write_text("no bank")
    (templates / "obj_000002.h5").unlink()
    command = f"run picopose render-templates --dataset toy --data-dir {data_dir}"
    with pytest.raises(PicoPoseError) as caught:
        run(data_dir)
    missing, broken = str(caught.value).removeprefix("no object can be estimated: ").split("; object 1: ")
    assert missing == f"{templates} has no bank of object 2; {command}"
    assert broken.endswith(f"; {command} --object-ids 1")
    next((data_dir / "toy/models").glob("obj_000002.*")).unlink()
    with pytest.raises(
        PicoPoseError, match=r"no bank of object 2, and \S+models no mesh to make it from; pass .*--templates"
    ):
        run(data_dir)


def test_an_own_data_set_without_symmetries_and_with_the_only_detections(data_dir, capsys):
    (data_dir / "toy/models/models_info.json").unlink()
    report = run(data_dir, detections=None, limit=1)
    assert report.exit_code == 0
    assert any("models_info.json: every object is estimated as one without symmetries" in w for w in report.warnings)
    assert f"detections: {data_dir / 'toy/detections.json'}" in capsys.readouterr().out.splitlines()


def test_an_own_data_set_without_targets_and_ground_truth_needs_detections_alone(data_dir, capsys):
    (data_dir / "toy/test_targets_bop19.json").unlink()
    for path in (data_dir / "toy/test/000001").glob("scene_gt*.json"):
        path.unlink()
    edit_json(data_dir / "toy/detections.json", lambda entries: entries.pop(0))  # of object 1 in image 0
    whole = run(data_dir)
    assert whole.exit_code == 0
    assert "targets: every image with a detection, and no other (BOP24, detection)" in capsys.readouterr().out
    table = read_results(data_dir / "picopose_toy-test.csv")
    assert list(zip(table.im_id, table.obj_id, strict=True)) == [(0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    (data_dir / "toy/detections.json").write_text("[]")
    with pytest.raises(PicoPoseError, match="there are no detections"):
        run(data_dir)


def test_of_an_own_data_set_without_detections_and_ground_truth_it_is_said_what_to_write(data_dir):
    (data_dir / "toy/test_targets_bop19.json").unlink()
    (data_dir / "toy/test/000001/scene_gt.json").unlink()
    with pytest.raises(PicoPoseError, match=r"pass a file of detections.*inst_count") as caught:
        run(data_dir, detections="gt")
    assert "public" not in str(caught.value)
    assert "download" not in str(caught.value)


def test_the_bar_counts_poses_as_the_network_makes_them(toy_dir, tmp_path, monkeypatch):
    counts = []

    class Bars(list):
        def add_task(self, what, total, completed, **_):
            counts.append((what, total, completed))
            return len(counts) - 1

        def advance(self, bar, count):  # noqa: ARG002
            counts.append(count)

        def remove_task(self, bar):
            assert bar < len(counts)

    monkeypatch.setattr(infer, "progress_bar", lambda _: nullcontext(Bars()))
    run(toy_dir, output=tmp_path / "a_toy-test.csv", batch_size=2)
    assert counts[counts.index(("poses", 6, 0)) + 1 :] == [0, 2] * 3


def test_without_weights_the_bundled_network_is_used_and_the_released_one_is_named(
    toy_dir, tmp_path, monkeypatch, capsys
):
    bundled = toy_dir / "tiny.safetensors"
    monkeypatch.setattr(inputs, "bundled_weights", lambda: bundled)
    report = run(toy_dir, weights=None, limit=1, output=tmp_path / "a_toy-test.csv")
    assert report.weights == str(bundled)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights: ")]
    assert len(lines) == 1
    assert "the small network that ships with picopose" in lines[0]
    assert f"--weights FILE: {inputs.RELEASED_WEIGHTS}" in lines[0]
    run(toy_dir, limit=1, output=tmp_path / "a_toy-test.csv")
    assert "weights: " not in capsys.readouterr().out


def test_output_that_cannot_be_written_is_found_before_the_work(toy_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(onboarding, "load_inference_network", lambda *_, **__: pytest.fail("the network was loaded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(PicoPoseError, match="cannot be written"):
        run(toy_dir, output=tmp_path / "file/picopose_toy-test.csv")


def test_nothing_is_written_when_there_is_no_estimate(data_dir):
    for image in (data_dir / "toy/test/000001/rgb").iterdir():
        image.write_bytes(b"")
    with pytest.raises(PicoPoseError, match="no estimates to write"):
        run(data_dir)
    assert not list(data_dir.glob("*.csv"))
    assert len(json.loads((data_dir / "picopose_toy-test.json").read_text())["skipped"]) == 3


def test_full_disk_leaves_nothing_half_written(data_dir, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PicoPoseError, match="No space left"):
        run(data_dir)
    assert not list(data_dir.glob("*.csv"))
    assert not list(data_dir.glob(".*tmp*"))


def test_depth_finishes_poses(data_dir, capsys):
    rows = {}
    for depth in ("off", "on"):
        output = data_dir / f"{depth}_toy-test.csv"
        report = run(data_dir, output=output, depth=depth, refine=0)
        rows[depth] = [line.rpartition(",")[0] for line in output.read_text().splitlines()]
        printed = capsys.readouterr().out
        assert report.modality == {"off": "RGB", "on": "RGB-D"}[depth]
        assert ("RGB-D" in printed) == (depth == "on")
    assert f"RGB-D: {report.depth_poses} poses are finished on depth" in printed
    assert report.depth_poses + len(report.by_rgb) == report.estimates == 6
    assert report.depth_poses > 0
    assert sum(off != on for off, on in zip(rows["off"], rows["on"], strict=True)) == report.depth_poses


def test_depth_that_is_missing_or_damaged_is_reported(data_dir, capsys):
    depth = data_dir / "toy/test/000001/depth"
    (depth / "000000.png").unlink()
    (depth / "000001.png").write_bytes(b"no image")
    report = run(data_dir, depth="on", refine=0)
    assert report.exit_code == 1
    assert report.estimates == 6
    assert sorted((one.im_id, one.obj_id) for one in report.by_rgb if one.obj_id is None) == [(0, None), (1, None)]
    assert "by RGB alone: scene 1, image 0: " in capsys.readouterr().out
    with pytest.raises(PicoPoseError, match="paper knows RGB alone"):
        run(data_dir, depth="on", rules="paper")
