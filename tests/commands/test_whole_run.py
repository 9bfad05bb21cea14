"""`picopose run`: a plan, all steps, and only what is missing when it is run again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from picopose_cli import cli
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.commands import infer


@pytest.fixture
def root(toy_dir, tmp_path) -> Path:
    shutil.copytree(toy_dir / "toy", tmp_path / "bop/toy")
    return tmp_path / "bop/toy"


@pytest.fixture
def run(toy_dir, tmp_path, root):
    def call(*arguments: str, code: int = 0) -> str:
        weights = ("--weights", str(toy_dir / "tiny.safetensors"), "--device", "cpu")
        output = ("--output", str(tmp_path / "out/m_toy-test.csv"))
        done = CliRunner().invoke(cli.app, ["run", str(root), *weights, *output, *arguments])
        assert done.exit_code == code, done.output + str(done.exception)
        return done.output + (str(done.exception) if code else "")

    return call


def test_the_plan_says_what_is_there_and_does_nothing(run, root, tmp_path):
    (root / "templates/obj_000002.h5").unlink()
    printed = run("--plan")
    assert "1 of 2 banks" in printed
    assert "6 poses of 2 objects" in printed
    assert "with the ground truth on disk" in printed
    assert not (tmp_path / "out").exists()
    assert not (root / "templates/obj_000002.h5").exists()


def test_all_steps_and_again_only_what_is_missing(run, root, tmp_path, monkeypatch):
    (root / "templates/obj_000002.h5").unlink()
    printed = run()
    assert [line for line in printed.splitlines() if line.startswith("== ")] == [
        f"== {name}" for name in ("render-templates", "infer", "check", "score", "report")
    ]
    assert "1 written, 1 kept" in printed
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["m_toy-test.csv", "m_toy-test.html", "m_toy-test.json"]
    monkeypatch.setattr(infer, "run", lambda _: pytest.fail("poses were estimated again"))
    assert "is finished, with the same inputs and options: kept" in run()
    monkeypatch.undo()

    def estimated(_):
        raise PicoPoseError("poses are estimated")

    monkeypatch.setattr(infer, "run", estimated)
    assert "poses are estimated" in run("--depth", "on", code=1)  # by RGB alone they are other poses
    entries = json.loads((root / "detections.json").read_text())
    (root / "detections.json").write_text(json.dumps(entries[:5]))
    assert "poses are estimated" in run(code=1)  # the detections have changed


def test_without_ground_truth_there_are_no_scores(run, root):
    for path in (root / "test/000001").glob("scene_gt*.json"):
        path.unlink()
    (root / "test_targets_bop19.json").unlink()
    printed = run()
    assert "not possible: there is no ground truth" in printed
    assert "== score" not in printed
    assert "== report" in printed


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "detections.json").unlink(), "no detections"),
        (lambda root: [path.unlink() for path in (root / "models").glob("*.ply")], "no meshes"),
        (lambda root: shutil.rmtree(root / "test"), "no split with scenes"),
    ],
)
def test_what_stops_it_is_said_before_the_first_step(run, root, spoil, words):
    spoil(root)
    printed = run(code=1)
    assert words in printed
    assert "== " not in printed
