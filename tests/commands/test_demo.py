"""`picopose demo` from end to end with a tiny network, its pictures, and the weights that ship with the package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.networks import random_network
from typer.testing import CliRunner

from picopose_cli import cli
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T
from picopose_cli.base.options import DemoOptions
from picopose_cli.base.types import PoseEstimate
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.images import read_image_rgb
from picopose_cli.bop.results import read_results, write_results
from picopose_cli.commands import demo
from picopose_cli.network import bundled
from picopose_cli.network.checkpoint import save_network
from picopose_cli.pictures.overlays import OUTLINE_FINENESS, RIGHT_RGB, WRONG_RGB, pose_overlay

ROOT = Path(__file__).resolve().parents[2]
LEGEND = ("right", "wrong")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a small demo and what the command printed."""
    folder = tmp_path_factory.mktemp("demo")
    save_network(folder / "tiny.safetensors", random_network())
    return folder / "out", picopose_demo(folder / "out")


def picopose_demo(output: Path) -> str:
    sizes = ("--objects", "2", "--images", "2", "--device", "cpu")
    weights = output.parent / "tiny.safetensors"
    done = CliRunner().invoke(cli.app, ["demo", "--output", str(output), "--weights", str(weights), *sizes])
    assert done.exit_code == 0, done.output
    return done.output


def refuse(*_):
    pytest.fail("a command was run")


def colours(picture_rgb: np.ndarray) -> tuple[int, int]:
    """Pixels of a picture, without the legend, that have exactly the colour of right and of wrong."""
    image = picture_rgb[:-24]
    return int((image == RIGHT_RGB).all(axis=2).sum()), int((image == WRONG_RGB).all(axis=2).sum())


def test_it_makes_data_poses_scores_and_pictures(made):
    output, printed = made
    table = read_results(output / "picopose_demo-test.csv")
    detections = json.loads((output / "demo/detections_rough.json").read_text())
    assert len(table.score) == len(detections)
    assert "bop19_average_recall" in json.loads((output / "scores.json").read_text())
    assert re.search(r"^ all +4 +4 ", printed, re.MULTILINE)
    assert re.search(
        r"^time: data .* s, templates .* s, poses .* s, scores .* s, pictures .* s$", printed, re.MULTILINE
    )
    assert printed.rstrip().endswith(str(output / "overlays"))
    pictures = sorted((output / "overlays").iterdir())
    assert [path.name for path in pictures] == ["000000_000000.png", "000000_000001.png"]
    for path in pictures:
        picture = read_image_rgb(path)
        assert picture.shape == (504, 640, 3)
        assert sum(colours(picture)) > 0


def test_a_second_time_it_gives_the_same_poses_and_leaves_other_files_alone(made):
    output, _ = made
    before = read_results(output / "picopose_demo-test.csv")
    (output / "notes.txt").write_text("mine")
    printed = picopose_demo(output)
    after = read_results(output / "picopose_demo-test.csv")
    assert np.array_equal(before.T_cam_from_obj, after.T_cam_from_obj)
    assert (output / "notes.txt").read_text() == "mine"
    assert "2 kept" in printed


@pytest.mark.parametrize("mark", [None, {"objects": 5, "images": 9}])
def test_a_folder_of_something_else_is_refused(toy_dir, tmp_path, mark):
    output = tmp_path / "out"
    output.mkdir()
    file = output / ("thesis.txt" if mark is None else demo.MARK_NAME)
    file.write_text(json.dumps(mark))
    options = DemoOptions(output, weights=toy_dir / "tiny.safetensors", device="cpu")
    with pytest.raises(PicoPoseError, match="--output"):
        demo.run(options, refuse, refuse, refuse)
    assert list(output.iterdir()) == [file]
    assert file.read_text() == json.dumps(mark)


@pytest.mark.parametrize(
    ("changes", "text"), [({"weights": Path("nowhere.ckpt")}, "nowhere.ckpt"), ({"device": "tpu"}, "--device")]
)
def test_what_stops_it_is_said_before_the_work(toy_dir, tmp_path, changes, text):
    options = {"output": tmp_path / "out", "weights": toy_dir / "tiny.safetensors"} | changes
    with pytest.raises(PicoPoseError, match=text):
        demo.run(DemoOptions(**options), refuse, refuse, refuse)
    assert not (tmp_path / "out").exists()


def draw(toy_dir: Path, folder: Path, moved: dict[int, np.ndarray]) -> tuple[list[bool], list[tuple[int, int]]]:
    """Draw the true poses, each object's moved in its own frame; return what is right, and each picture's colours."""
    dataset = open_dataset("toy", toy_dir)
    estimates = [
        PoseEstimate(1, im_id, one.obj_id, 1.0, one.T_cam_from_obj @ moved.get(one.obj_id, np.eye(4)), 0.1)
        for im_id, instances in read_ground_truth(dataset, 1).items()
        for one in instances
    ]
    write_results(folder / "a_toy-test.csv", estimates)
    right = demo.draw_overlays(dataset, folder / "a_toy-test.csv", folder / "overlays")
    pictures = sorted((folder / "overlays").iterdir())
    return right, [colours(read_image_rgb(path)) for path in pictures]


def shifted(x_m: float) -> np.ndarray:
    return make_T(np.eye(3), np.array([x_m, 0, 0]))


def test_right_poses_are_green_and_wrong_ones_red(toy_dir, tmp_path):
    right, pictures = draw(toy_dir, tmp_path, {1: shifted(0.001)})
    assert right == [True] * 6
    assert len(pictures) == 3
    assert all(green > 50 and red == 0 for green, red in pictures)
    right, pictures = draw(toy_dir, tmp_path, {1: shifted(0.03)})
    assert sorted(right) == [False] * 3 + [True] * 3
    assert all(green > 20 and red > 20 for green, red in pictures)


def test_a_symmetric_pose_is_right(toy_dir, tmp_path):
    shutil.copytree(toy_dir, tmp_path / "bop")
    path = tmp_path / "bop/toy/models/models_info.json"
    infos = json.loads(path.read_text())
    turned = make_T(np.diag([-1.0, -1.0, 1.0]), np.zeros(3))
    for symmetries, expected in (([], False), ([turned.ravel().tolist()], True)):
        for info in infos.values():
            info.pop("symmetries_continuous", None)
            info["symmetries_discrete"] = symmetries
        path.write_text(json.dumps(infos))
        right, _ = draw(tmp_path / "bop", tmp_path, {1: turned, 2: turned})
        assert set(right) == {expected}


def test_an_outline_follows_the_edge_of_its_silhouette():
    image = np.full((60, 80, 3), 90, np.uint8)
    silhouette = np.zeros((60 * OUTLINE_FINENESS, 80 * OUTLINE_FINENESS), bool)
    silhouette[: 40 * OUTLINE_FINENESS, 20 * OUTLINE_FINENESS : 50 * OUTLINE_FINENESS] = True
    picture = pose_overlay(image, [silhouette, silhouette & False], [True, False], LEGEND)
    assert picture.shape == (84, 80, 3)
    drawn = (picture[:60] != 90).any(axis=2)
    expected = np.zeros((60, 80), bool)
    expected[:41, 19:51] = True
    expected[:39, 21:49] = False  # and no line where the silhouette leaves the image
    assert np.array_equal(drawn, expected)
    assert (picture[39:41, 25:45] == RIGHT_RGB).all()
    assert not pose_overlay(image, [], [], LEGEND)[:60].max(initial=0) > 90
    assert (pose_overlay(image, [silhouette], [False], LEGEND)[20, 19] == WRONG_RGB).all()


def test_a_smooth_edge_has_a_smooth_line():
    circle = np.zeros((60 * OUTLINE_FINENESS, 60 * OUTLINE_FINENESS), np.uint8)
    cv2.circle(circle, (120, 120), 80, 1, -1)
    picture = pose_overlay(np.zeros((60, 60, 3), np.uint8), [circle > 0], [True], LEGEND)[:60]
    assert len(np.unique(picture[..., 1])) > 8  # pixels that the line covers in part


@pytest.mark.parametrize("place", ["site-packages/picopose_cli/weights", "site-packages/weights"])
def test_bundled_weights_lie_in_the_package_or_beside_it(tmp_path, monkeypatch, place):
    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "site-packages/picopose_cli/network/bundled.py"))
    with pytest.raises(PicoPoseError, match=r"mini\.safetensors.*--weights FILE"):
        bundled.bundled_weights()
    path = tmp_path / place / "mini.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    assert bundled.bundled_weights() == path


def test_every_package_is_in_the_packaging_list():
    listed = re.findall(r'^    "(picopose_cli[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "picopose_cli").rglob("*.py")}
    assert sorted(listed) == sorted([*(".".join(folder.parts) for folder in folders), "picopose_cli.weights"])


def test_a_wheel_carries_the_weights_and_finds_them(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source, installed = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(ROOT / "picopose_cli", source / "picopose_cli", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "weights").mkdir()
    (source / "weights/README.md").write_text("# Weights\n")
    (source / "weights/mini.safetensors").write_bytes(b"weights")
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    files = {path.relative_to(installed) for path in installed.glob("picopose_cli/**/*") if path.is_file()}
    modules = {path.relative_to(source) for path in source.glob("picopose_cli/**/*.py")}
    assert files == modules | {Path("picopose_cli/weights/README.md"), Path("picopose_cli/weights/mini.safetensors")}
    look = "from picopose_cli.network.bundled import bundled_weights; print(bundled_weights())"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    found = subprocess.run([sys.executable, "-c", look], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == str(installed / "picopose_cli/weights/mini.safetensors")
