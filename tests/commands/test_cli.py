from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import typer
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from picopose_cli import cli
from picopose_cli.base import guide_options, options, train_options
from picopose_cli.base.errors import BUG_EXIT_CODE, PicoPoseError
from picopose_cli.base.option_fields import OptionField, command_line, option_fields, options_record
from picopose_cli.base.option_texts import DATA_DIR_VARIABLE

RUNNER = CliRunner()
OPTIONS = {name: cli.options_type(command) for name, command in cli.COMMANDS.items()}


def run_picopose(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "picopose_cli", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def help_of(*command: str, columns: int = 80) -> str:
    result = RUNNER.invoke(cli.app, [*command, "--help"], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0
    return result.stdout


def test_every_option_class_belongs_to_a_command():
    modules = vars(options) | vars(guide_options) | vars(train_options)
    classes = {value for name, value in modules.items() if name.endswith("Options")}
    assert set(OPTIONS.values()) == classes
    assert [command.name for command in cli.app.registered_commands] == list(OPTIONS)


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_has_help_and_a_placeholder(command):
    for one in option_fields(OPTIONS[command]):
        assert one.info.help.endswith("."), one.name
        assert one.is_switch or one.value, one.name
        assert one.required or one.is_switch or one.default_text or one.default is None, one.name


def test_the_list_of_commands_fits_80_columns_uncut():
    listed = help_of()
    assert "..." not in listed.split("Commands:")[1]
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.__doc__.splitlines()[0])}$", listed, re.MULTILINE), name


@pytest.mark.parametrize("command", OPTIONS)
def test_help_fits_80_columns_with_whole_words_and_each_default_once(command):
    text = help_of(command)
    assert max(map(len, text.splitlines())) <= 80
    fields = option_fields(OPTIONS[command])
    words = text.split()
    for one in fields:
        assert not set(one.help.split()) - set(words), one.name
        assert one.info.argument or one.flag in words, one.name
        assert not one.info.choices or "|".join(one.info.choices) in words, one.name
    assert text.count("[default:") == sum(bool(one.default_text) for one in fields)


def test_the_version_is_worth_pasting_and_imports_nothing_heavy():
    program = """
import sys
from picopose_cli.cli import main
try:
    main()
except SystemExit:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert re.match(r"picopose \d+\.\d+\.\d+$", lines[0])
    assert re.match(r"python \d+\.\d+\S*, .* \d+ cores", lines[1])
    assert re.match(r"torch (\d+\.\d+|missing)", lines[2])
    assert lines[-1] == "False"


@pytest.mark.parametrize("command", [[], *([name] for name in OPTIONS)])
def test_h_is_short_for_help(command):
    assert RUNNER.invoke(cli.app, [*command, "-h"]).stdout == RUNNER.invoke(cli.app, [*command, "--help"]).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell, tmp_path):
    def completed(line: str) -> str:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}  # bash
        words |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        environment = os.environ | words | {"_PICOPOSE_COMPLETE": f"complete_{shell}", "HOME": str(tmp_path)}
        command = [sys.executable, "-m", "picopose_cli"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    assert "render-templates" in completed("picopose ren")
    assert "--hypotheses" in completed("picopose infer --hyp")


def test_quiet_prints_errors_alone_and_the_log_file_has_versions_and_error(tmp_path):
    log = tmp_path / "logs/run.log"
    done = run_picopose("--quiet", "--log-file", str(log), "check", "nowhere_a-b.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("picopose: ")
    text = log.read_text()
    for words in ("check nowhere_a-b.csv", "picopose 0.", "torch ", done.stderr.strip().removeprefix("picopose: ")):
        assert words in text
    (tmp_path / "a_b-c.csv").write_text("scene_id,im_id,obj_id,score,R,t,time\n")
    assert run_picopose("-q", "check", str(tmp_path / "a_b-c.csv")).stdout == ""
    assert run_picopose("check", str(tmp_path / "a_b-c.csv")).stdout != ""
    refused = run_picopose("--quiet", "--verbose", "check", "x")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    refused = run_picopose("--log-file", str(log / "below"), "check", "x")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert str(log) in refused.stderr


def test_nothing_is_coloured_outside_a_terminal(tmp_path):
    (tmp_path / "a_b-c.csv").write_text("scene_id,im_id,obj_id,score,R,t,time\n")
    for arguments in (["--help"], ["infer", "--help"], ["check", str(tmp_path / "a_b-c.csv")], ["infer", "--nonsense"]):
        done = run_picopose(*arguments)
        assert "\x1b" not in done.stdout + done.stderr, arguments


def test_a_data_set_is_named_or_given_as_the_path_of_its_folder(monkeypatch, tmp_path):
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert options.resolve_dataset("lmo", tmp_path) == ("lmo", tmp_path)
    assert options.resolve_dataset("bop/lmo/", None) == ("lmo", Path("bop"))
    assert options.resolve_dataset("mine", None) == ("mine", Path())
    monkeypatch.chdir(tmp_path / "mine")
    assert options.resolve_dataset(".", None) == ("mine", tmp_path)
    with pytest.raises(PicoPoseError, match="--data-dir"):
        options.resolve_dataset("lmo", None)
    with pytest.raises(PicoPoseError, match="is a path, so it needs no --data-dir"):
        options.resolve_dataset("./lmo", tmp_path)
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "env"))
    assert options.resolve_dataset("mine", None) == ("mine", tmp_path / "env")
    assert options.resolve_dataset("./mine", None) == ("mine", Path())


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
        (lambda: options.InferOptions(dataset="lmo", rules="released"), "--rules"),
        (lambda: options.InferOptions(dataset="lmo", rules="paper", refine=1), "--refine"),
        (lambda: options.InferOptions(dataset="lmo", refine=-1), "--refine -1 is invalid: must be at least 0"),
        (lambda: options.MergeOptions(Path("a.csv"), ()), "shard"),
        (lambda: options.MergeOptions(Path("a.csv"), (Path("b.csv"), Path("a.csv"))), "a.csv"),
        (lambda: train_options.TrainOptions(Path("x"), source="web"), "--source"),
        (lambda: train_options.TrainOptions(Path("x"), source="megapose"), "--shards"),
        (lambda: train_options.TrainOptions(Path("x"), preset="huge"), "--preset"),
        (lambda: train_options.TrainOptions(Path("x"), batch_size=0), "--batch-size"),
        (lambda: train_options.TrainOptions(Path("x"), curriculum_steps=-1), "--curriculum-steps"),
        (lambda: train_options.TrainOptions(Path("x"), minutes=0), "--minutes 0 is invalid: must be positive"),
        (lambda: train_options.TrainOptions(Path("x"), lr=float("nan")), "--lr"),
        (lambda: train_options.TrainOptions(Path("x"), ema=1), "--ema 1 is invalid: must be less than 1"),
        (lambda: train_options.TrainOptions(Path("x"), ema=-0.1), "--ema"),
        (lambda: train_options.TrainOptions(Path("x"), freeze_backbone=True), "--init"),
        (lambda: guide_options.DemoOptions(objects=0), "--objects"),
        (lambda: guide_options.DemoOptions(images=0), "--images"),
        (lambda: options.ScoreOptions(results=()), "result file"),
        (lambda: options.ScoreOptions(results=(Path("a.csv"),), mesh_unit="inch"), "--mesh-unit"),
        (lambda: options.ScoreOptions(results=(Path("a.csv"),), workers=0), "--workers"),
    ],
)
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(PicoPoseError, match=text):
        make()


def test_data_dir_comes_from_the_option_or_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "env"))
    assert options.resolve_data_dir(tmp_path) == tmp_path
    assert options.resolve_data_dir(None) == tmp_path / "env"
    monkeypatch.delenv(DATA_DIR_VARIABLE)
    with pytest.raises(PicoPoseError, match="--data-dir"):
        options.resolve_data_dir(None)


def test_error_is_one_line_on_stderr_and_exit_code_2(tmp_path):
    done = run_picopose("render-templates", "--dataset", "nothere", "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("picopose: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nothere" in done.stderr


def test_a_wrong_name_of_a_data_set_is_refused_before_the_imports_of_torch(tmp_path):
    (tmp_path / "mine/models").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    program = """
import sys
from picopose_cli.cli import main
try:
    main()
except SystemExit as stopped:
    print(stopped.code, "torch" in sys.modules)
"""
    arguments = ["infer", "--dataset", "nothere", "--data-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "there is no data set 'nothere' (found: mine); check the name" in done.stderr


def test_bad_object_ids_are_named():
    done = run_picopose("render-templates", "--dataset", "lmo", "--object-ids", "1,five")
    assert done.returncode == 2
    assert "--object-ids" in done.stderr


def test_error_text_is_one_line_with_place_and_remedy():
    error = PicoPoseError("is\nempty", where=Path("a/b.csv"), fix="write something")
    assert str(error) == "a/b.csv: is empty; write something"


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]))
VALUES = {
    str: TEXT,
    Path: TEXT.map(Path),
    bool: st.booleans(),
    int: st.integers(0, 10**6),
    float: st.floats(0, 1e9),
    type(None): st.none(),
}


def values_of(one: OptionField) -> st.SearchStrategy[Any]:
    """Values of an option within its range; cross-checks may still refuse them."""
    if one.item_type:
        items = st.from_regex(r"[a-z]{1,8}", fullmatch=True) if one.name == "names" else VALUES[one.item_type]
        items = st.sampled_from(one.info.choices) if one.info.choices else items
        return st.lists(items, unique=True, max_size=4).map(tuple)
    if one.info.choices:
        return st.sampled_from(one.info.choices)
    if one.name == "shard":
        return st.none() | st.integers(1, 99).flatmap(lambda n: st.integers(1, n).map(lambda i: f"{i}/{n}"))
    kinds = get_args(one.type) or (one.type,)
    values = st.one_of(*(VALUES[kind] for kind in kinds))
    return values if one.required else st.just(one.default) | values


@cache
def parser_of(options_class: type) -> tuple[typer.Typer, list[Any]]:
    """A Typer app with the options of a class, and the list that receives what it parses."""
    received: list[Any] = []

    def command(options: Any) -> int:
        received.append(options)
        return 0

    command.__annotations__["options"] = options_class
    app = typer.Typer()
    app.command()(cli.typer_function("command", command))
    return app, received


@pytest.mark.parametrize("options_class", OPTIONS.values(), ids=list(OPTIONS))
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_a_command_line_made_from_options_gives_them_back(options_class, data):
    try:
        wanted = options_class(**{one.name: data.draw(values_of(one)) for one in option_fields(options_class)})
    except PicoPoseError:
        reject()
    app, received = parser_of(options_class)
    result = RUNNER.invoke(app, command_line(wanted))
    assert result.exit_code == 0, result.output
    assert received.pop() == wanted
    assert json.loads(json.dumps(options_record(wanted))) == options_record(wanted)


def test_default_options_need_no_arguments():
    assert command_line(options.InferOptions("lmo")) == ["--dataset", "lmo"]
    assert command_line(guide_options.DemoOptions()) == []
    assert command_line(options.RenderTemplatesOptions("lmo", object_ids=(1, 5))) == [
        "--dataset", "lmo", "--object-ids", "1,5"
    ]  # fmt: skip
    assert command_line(options.MergeOptions(Path("a"), (Path("b"), Path("-c")))) == ["--", "a", "b", "-c"]


def test_a_command_runs_with_its_options(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    from picopose_cli.commands import infer

    received = []
    monkeypatch.setattr(infer, "run", lambda given: received.append(given) or SimpleNamespace(exit_code=1))
    wanted = options.InferOptions("lmo", rules="paper", cache=False, data_dir=tmp_path / "a b")
    (tmp_path / "a b/lmo").mkdir(parents=True)
    assert RUNNER.invoke(cli.app, ["infer", *command_line(wanted)]).exit_code == 1
    assert received == [wanted]


def test_the_learning_rates_in_the_help_are_those_of_the_recipes():
    from picopose_cli.training.recipes import MINI_RECIPE, RELEASED_RECIPE

    text = next(one.default_text for one in option_fields(train_options.TrainOptions) if one.name == "lr")
    assert text == f"{MINI_RECIPE.lr} for mini, {RELEASED_RECIPE.lr} for vit-l"


def exit_code(monkeypatch, work) -> int:
    """Exit code of the program when the work of `picopose check` is replaced."""
    from picopose_cli.commands import check

    monkeypatch.setattr(check, "run", work)
    monkeypatch.setattr(sys, "argv", ["picopose", "check", "a_b-c.csv"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_a_bug_has_an_exit_code_of_its_own_and_a_traceback(monkeypatch, capsys):
    assert exit_code(monkeypatch, lambda _: [][0]) == BUG_EXIT_CODE
    assert "IndexError" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_every_command_is_stopped_with_one_line_and_the_shells_exit_code(monkeypatch, capsys, number):
    assert exit_code(monkeypatch, lambda _: signal.raise_signal(number)) == 128 + number
    assert capsys.readouterr().err == "picopose: stopped; run the same command again\n"
