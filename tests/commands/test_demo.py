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

import numpy as np
import pytest
from helpers.networks import random_network
from typer.testing import CliRunner

from picopose_cli import cli
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import DemoOptions
from picopose_cli.bop.images import read_image_rgb
from picopose_cli.bop.results import read_results
from picopose_cli.commands import demo
from picopose_cli.network import bundled
from picopose_cli.network.checkpoint import save_network
from picopose_cli.pictures.overlays import CORRECT_RGB, WRONG_RGB

ROOT = Path(__file__).resolve().parents[2]


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


def coloured_pixels(picture_rgb: np.ndarray) -> int:
    """Pixels of a picture, without the legend, in the colour of correct or of wrong poses."""
    image = picture_rgb[:-24, :, None]
    return int((image == [CORRECT_RGB, WRONG_RGB]).all(axis=-1).any(axis=-1).sum())


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
        assert coloured_pixels(picture) > 0


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
