"""`picopose demo` from end to end with a tiny network, its pictures, and the weights that ship with the package."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.networks import random_network
from typer.testing import CliRunner

from picopose_cli import cli
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.guide_options import DemoOptions
from picopose_cli.bop.images import read_image_rgb
from picopose_cli.bop.results import read_results
from picopose_cli.commands import demo
from picopose_cli.network import bundled
from picopose_cli.network.checkpoint import save_network
from picopose_cli.pictures.overlays import CORRECT_RGB, WRONG_RGB


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
    assert f"report: {output / 'report.html'}" in printed
    assert re.search(r"^AR 0\.\d{4}: BOP's score", printed, re.MULTILINE)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert f"size: {size / 1e6:.0f} MB in {output}" in printed
    pictures = sorted((output / "overlays").iterdir())
    assert [path.name for path in pictures] == ["000000_000000.png", "000000_000001.png"]
    for path in pictures:
        picture = read_image_rgb(path)
        assert picture.shape == (504, 640, 3)
        assert coloured_pixels(picture) > 0


def test_the_next_commands_that_it_names_work(made, tmp_path):
    _, printed = made
    commands = printed.split("next, on the same data, as on your own:\n")[1].splitlines()
    assert len(commands) == 3
    poses = []
    for command in commands:
        words = shlex.split(command)
        if words[0] == "picopose":  # it may be that of another installation here
            words[:1] = [sys.executable, "-m", "picopose_cli"]
        environment = os.environ | {"PICOPOSE_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        poses.append(done.stdout)
    (saved,) = json.loads((tmp_path / "picopose-poses/image.json").read_text())["poses"]
    assert poses[-1].startswith(f"confidence {saved['confidence']:.2f}\n")


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
        demo.run(options, refuse, refuse, refuse, refuse)
    assert list(output.iterdir()) == [file]
    assert file.read_text() == json.dumps(mark)


@pytest.mark.parametrize(
    ("changes", "text"), [({"weights": Path("nowhere.ckpt")}, "nowhere.ckpt"), ({"device": "tpu"}, "--device")]
)
def test_what_stops_it_is_said_before_the_work(toy_dir, tmp_path, changes, text):
    options = {"output": tmp_path / "out", "weights": toy_dir / "tiny.safetensors"} | changes
    with pytest.raises(PicoPoseError, match=text):
        demo.run(DemoOptions(**options), refuse, refuse, refuse, refuse)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["site-packages/picopose_cli/weights", "site-packages/weights"])
def test_bundled_weights_lie_in_the_package_or_beside_it(tmp_path, monkeypatch, place):
    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "site-packages/picopose_cli/network/bundled.py"))
    with pytest.raises(PicoPoseError, match=r"mini\.safetensors.*--weights FILE"):
        bundled.bundled_weights()
    path = tmp_path / place / "mini.safetensors"
    path.parent.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[2] / "weights/mini.safetensors", path)
    assert bundled.bundled_weights() == path
