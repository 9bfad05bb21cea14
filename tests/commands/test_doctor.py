"""`picopose doctor`: each fault of a data set is a red line with what mends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.bop_folder import write_models, write_scene
from typer.testing import CliRunner

from picopose_cli import cli
from picopose_cli.bop.detections import OFFICIAL_UUIDS
from picopose_cli.commands import doctor as doctor_command
from picopose_cli.network.config import VIT_L
from picopose_cli.runs import doctor_machine
from picopose_cli.runs.doctor_machine import disk_row, feature_mb


@pytest.fixture
def data_dir(toy_dir, tmp_path) -> Path:
    shutil.copytree(toy_dir, tmp_path / "bop")
    return tmp_path / "bop"


def doctor(*arguments: str | Path, code: int = 0) -> dict[str, dict[str, str]]:
    """Rows by topic."""
    done = CliRunner().invoke(cli.app, ["doctor", *map(str, arguments), "--json"])
    assert done.exit_code == code, done.output + str(done.exception)
    found = json.loads(done.output)
    assert found["exit_code"] == code
    assert all(row["fix"] for row in found["rows"] if row["level"] == "red")
    return {row["topic"]: row for row in found["rows"]}


def test_a_machine_and_a_complete_data_set(data_dir, monkeypatch):
    monkeypatch.setenv("BOP_PATH", str(data_dir))
    rows = doctor("toy", "--weights", data_dir / "tiny.safetensors")
    assert {rows[topic]["level"] for topic in ("Python", "PyTorch", "renderer", "weights", "data folder")} == {"green"}
    for topic in ("data set", "models", "detections", "targets", "images", "coverage", "banks", "disk", "ground truth"):
        assert rows[topic]["level"] == "green", rows[topic]
    assert rows["coverage"]["text"].startswith("6 of 6 targets")
    printed = CliRunner().invoke(cli.app, ["doctor", str(data_dir / "toy")])
    assert printed.exit_code == 0
    assert "green  images" in printed.output
    assert printed.output.endswith("nothing is red\n")


def drop(*names: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for name in names:
            for path in root.glob(name):
                path.unlink()

    return change


def scale_mesh(root: Path) -> None:
    path = root / "models/models_info.json"
    infos = json.loads(path.read_text())
    infos["1"]["diameter"] *= 10
    path.write_text(json.dumps(infos))


def keep_one_detection(root: Path) -> None:
    path = root / "detections.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))


@pytest.mark.parametrize(
    ("change", "topic", "level", "text", "fix"),
    [
        (drop("test/000001/rgb/000001.png"), "images", "red", "scene 1, image 1 is missing", "README"),
        (drop("models/*.ply"), "models", "red", "no meshes", "README"),
        (scale_mesh, "models", "red", "models_info.json has", "--mesh-unit"),
        (drop("models/models_info.json"), "models_info", "yellow", "symmetries", "README"),
        (drop("detections.json"), "detections", "red", "no detections", "--detections"),
        (keep_one_detection, "coverage", "yellow", "1 of 6 targets", "picopose check"),
        (drop("templates/obj_000002.h5"), "banks", "red", "1 of 2 objects", "picopose render-templates --dataset"),
        (drop("test_targets_bop19.json"), "targets", "green", "made from the ground truth", ""),
        (drop("test/000001/scene_gt*.json"), "ground truth", "yellow", "there is none", "scene_gt.json"),
        (drop("test/000001/scene_camera.json"), "images", "red", "scene_camera.json", "README"),
        (drop("test/000001/*.json"), "data set", "red", "no split with scenes", "README"),
    ],
)
def test_each_fault_of_a_data_set_is_a_line(data_dir, monkeypatch, change, topic, level, text, fix):
    monkeypatch.setattr(doctor_command, "machine_rows", lambda _: [])
    change(data_dir / "toy")
    rows = doctor(data_dir / "toy", "--weights", data_dir / "tiny.safetensors", code=1 if level == "red" else 0)
    assert rows[topic]["level"] == level, rows[topic]
    assert text in rows[topic]["text"]
    assert fix in rows[topic]["fix"]


def test_of_a_known_data_set_the_download_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("BOP_PATH", str(tmp_path))
    monkeypatch.setattr(doctor_command, "machine_rows", lambda _: [])
    assert doctor("ycbv", code=1)["data set"]["fix"] == "picopose download ycbv --what base,models,test"
    write_scene(tmp_path / "hb/test_primesense/000001", {0: [1]}, gt=False)
    write_models(tmp_path / "hb/models", [])
    rows = doctor("hb", code=1)
    assert rows["models"]["fix"] == "picopose download hb --what models"
    assert rows["detections"]["fix"] == "picopose download hb --what detections"
    assert OFFICIAL_UUIDS["hb"] not in rows["targets"]["text"]
    assert rows["ground truth"]["text"].startswith("BOP keeps it private")


def test_faults_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("BOP_PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr(doctor_machine, "gpu_lines", lambda: ["NVIDIA H100, 81559 MiB, 570.1"])
    rows = doctor("--weights", tmp_path / "nowhere.ckpt", code=1)
    assert rows["data folder"]["level"] == rows["weights"]["level"] == "red"
    assert rows["weights"]["fix"] == "picopose download weights"
    if doctor_machine.torch.version.cuda is None:
        assert rows["PyTorch"]["level"] == "red"
        assert "pip install torch" in rows["PyTorch"]["fix"]


def test_disk_space_is_compared_with_the_need(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10**9))
    levels = [disk_row("disk", tmp_path / "new/folder", needed).level for needed in (400, 900, 1100)]
    assert levels == ["green", "yellow", "red"]
    assert disk_row("disk", tmp_path, 1100).fix.startswith("free 0.1 GB")


def test_the_features_of_the_released_network_take_a_gigabyte_an_object():
    assert feature_mb(VIT_L) == pytest.approx(1060, rel=0.02)
