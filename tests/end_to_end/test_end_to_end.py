"""Every command on three generated images, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers.networks import random_network
from helpers.rendered_bop import write_bop_dataset

from picopose_cli.base.types import PoseEstimate
from picopose_cli.bop.results import write_results
from picopose_cli.network.checkpoint import save_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    dataset = write_bop_dataset(folder / "bop", "toy", images=3)
    save_network(folder / "tiny.safetensors", random_network())
    truth = [
        PoseEstimate(scene_id, im_id, obj_id, 1.0, T, 0.1)
        for (scene_id, im_id), placed in dataset.poses.items()
        for obj_id, T in placed
    ]
    write_results(folder / "truth_toy-test.csv", truth)
    return folder


def picopose(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "picopose_cli", *arguments]
    environment = os.environ | {"BOP_PATH": str(folder / "bop")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_render_infer_check_score(folder):
    rendered = picopose(folder, "render-templates", "--dataset", "toy", "--renderer", "software", "--contact-sheet")
    assert rendered.returncode == 0, rendered.stderr
    templates = folder / "bop/toy/templates"
    assert sorted(path.name for path in templates.iterdir()) == [
        f"obj_{obj_id:06d}.{kind}" for obj_id in (1, 2) for kind in ("h5", "png")
    ]

    infer = ("infer", "--dataset", "toy", "--weights", "tiny.safetensors", "--detections", "bop/toy/detections.json")
    inferred = picopose(folder, *infer, "--hypotheses", "2")
    assert inferred.returncode == 0, inferred.stderr
    assert "6 estimates of 3 images" in inferred.stdout
    assert (folder / "picopose_toy-test.json").is_file()

    checked = picopose(folder, "check", "picopose_toy-test.csv")
    assert checked.returncode == 0, checked.stdout

    scored = picopose(folder, "score", "picopose_toy-test.csv", "truth_toy-test.csv", "--output", "scores.json")
    assert scored.returncode == 0, scored.stderr
    assert "bop19_average_recall" in (folder / "scores.json").read_text()


def test_ground_truth_scores_one(folder):
    scored = picopose(folder, "score", "truth_toy-test.csv", "--output", "truth.json")
    assert scored.returncode == 0, scored.stderr
    scores = json.loads((folder / "truth.json").read_text())
    for name in ("", "_vsd", "_mssd", "_mspd"):
        assert scores[f"bop19_average_recall{name}"] == 1.0


def test_a_second_rendering_keeps_what_is_there(folder):
    again = picopose(folder, "render-templates", "--dataset", "toy", "--renderer", "software")
    assert again.returncode == 0, again.stderr
    assert "2 kept" in again.stdout
