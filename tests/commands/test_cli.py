from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from picopose_cli import cli
from picopose_cli.base import options
from picopose_cli.base.errors import PicoPoseError

RUNNER = CliRunner()
COMMANDS = {
    cli.render_templates: options.RenderTemplatesOptions,
    cli.infer: options.InferOptions,
    cli.merge: options.MergeOptions,
    cli.score: options.ScoreOptions,
    cli.check: options.CheckOptions,
    cli.train: options.TrainOptions,
    cli.demo: options.DemoOptions,
}
PARSED = {"object_ids", "results"}  # written differently on the command line than in the dataclass


def run_picopose(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "picopose_cli.cli", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_every_command_has_options():
    assert {command.callback for command in cli.app.registered_commands} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_signature_and_options_agree(command):
    """Each field is a parameter of the same name with the same default, and the other way round."""
    parameters = inspect.signature(command).parameters
    fields = {field.name: field for field in dataclasses.fields(COMMANDS[command])}
    assert set(parameters) == set(fields)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING
        assert (parameters[name].default is inspect.Parameter.empty) == required, name
        if not required and name not in PARSED:
            assert parameters[name].default == field.default, name


@pytest.mark.parametrize("command", ["render-templates", "infer", "merge", "score", "check", "train", "demo"])
def test_help_describes_every_option(command):
    result = RUNNER.invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("--")]
    assert lines
    assert all(len(line.split("  ")) > 1 for line in lines), lines


def test_version():
    assert RUNNER.invoke(cli.app, ["--version"]).stdout.startswith("picopose 0.")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: options.RenderTemplatesOptions(dataset="lmo", renderer="magic"), "--renderer"),
        (lambda: options.RenderTemplatesOptions(dataset="lmo", mesh_unit="inch"), "--mesh-unit"),
        (lambda: options.RenderTemplatesOptions(dataset="lmo", workers=0), "--workers"),
        (lambda: options.RenderTemplatesOptions(dataset="lmo", object_ids=(-1,)), "--object-ids"),
        (lambda: options.RenderTemplatesOptions(), "--dataset"),
        (lambda: options.RenderTemplatesOptions(from_images=Path("x")), "--templates"),
        (lambda: options.InferOptions(dataset="lmo", precision="fp8"), "--precision"),
        (lambda: options.InferOptions(dataset="lmo", hypotheses=0), "--hypotheses"),
        (lambda: options.InferOptions(dataset="lmo", batch_size=0), "--batch-size"),
        (lambda: options.InferOptions(dataset="lmo", workers=0), "--workers"),
        (lambda: options.InferOptions(dataset="lmo", limit=0), "--limit"),
        (lambda: options.InferOptions(dataset="lmo", timing="none"), "--timing"),
        *[
            (lambda text=text: options.InferOptions(dataset="lmo", shard=text), "--shard")
            for text in ("0/3", "4/3", "1", "1/", "-1/3", "a/b", "1/0", "1/2/3")
        ],
        (lambda: options.InferOptions(dataset="lmo", shard="1/2", device="cpu,cpu"), "--shard"),
        (lambda: options.InferOptions(dataset="lmo", shard="1/2", device="all"), "--shard"),
        (lambda: options.MergeOptions(Path("a.csv"), ()), "shard"),
        (lambda: options.MergeOptions(Path("a.csv"), (Path("b.csv"), Path("a.csv"))), "a.csv"),
        (lambda: options.TrainOptions(Path("x"), source="web"), "--source"),
        (lambda: options.TrainOptions(Path("x"), source="megapose"), "--shards"),
        (lambda: options.TrainOptions(Path("x"), preset="huge"), "--preset"),
        (lambda: options.TrainOptions(Path("x"), batch_size=0), "--batch-size"),
        (lambda: options.TrainOptions(Path("x"), curriculum_steps=-1), "--curriculum-steps"),
        (lambda: options.TrainOptions(Path("x"), minutes=0), "--minutes"),
        (lambda: options.TrainOptions(Path("x"), lr=0), "--lr"),
        (lambda: options.TrainOptions(Path("x"), ema=1), "--ema"),
        (lambda: options.DemoOptions(objects=0), "--objects"),
        (lambda: options.DemoOptions(images=0), "--images"),
        (lambda: options.ScoreOptions(results=()), "result file"),
        (lambda: options.ScoreOptions(results=(Path("a.csv"),), targets="bop11"), "--targets"),
        (lambda: options.ScoreOptions(results=(Path("a.csv"),), workers=0), "--workers"),
    ],
)
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(PicoPoseError, match=text):
        make()


def test_data_dir_comes_from_the_option_or_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(options.DATA_DIR_VARIABLE, str(tmp_path / "env"))
    assert options.resolve_data_dir(tmp_path) == tmp_path
    assert options.resolve_data_dir(None) == tmp_path / "env"
    monkeypatch.delenv(options.DATA_DIR_VARIABLE)
    with pytest.raises(PicoPoseError, match="--data-dir"):
        options.resolve_data_dir(None)


def test_error_is_one_line_on_stderr_and_exit_code_2(tmp_path):
    done = run_picopose("render-templates", "--dataset", "nothere", "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("picopose: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nothere" in done.stderr


def test_bad_object_ids_are_named():
    done = run_picopose("render-templates", "--dataset", "lmo", "--object-ids", "1,five")
    assert done.returncode == 2
    assert "--object-ids" in done.stderr


def test_error_text_is_one_line_with_place_and_remedy():
    error = PicoPoseError("is\nempty", where=Path("a/b.csv"), fix="write something")
    assert str(error) == "a/b.csv: is empty; write something"


@pytest.mark.parametrize(
    "asked",
    [
        options.InferOptions("lmo"),
        options.InferOptions(
            "lmo", data_dir=Path("a b"), detections="gt", weights=Path("w"), split="val", targets=Path("t.json"),
            output=Path("o_lmo-test.csv"), hypotheses=3, rules="default", device="cpu", precision="bf16", batch_size=7,
            workers=4, limit=9, shard="2/3", timing="sequential", restart=True, profile=Path("p.json"),
            templates=Path("x"),
        ),
    ],
)  # fmt: skip
def test_a_command_line_made_from_options_gives_them(monkeypatch, asked):
    from picopose_cli.commands import infer

    heard = []
    monkeypatch.setattr(infer, "run", lambda given: heard.append(given) or SimpleNamespace(exit_code=0))
    assert RUNNER.invoke(cli.app, ["infer", *options.command_line(asked)]).exit_code == 0
    assert heard == [asked]
