"""The README names every command and option, and its own commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from picopose_cli import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = ["demo", "render-templates", "infer", "merge", "score", "check", "train"]


def options_of(command: str) -> set[str]:
    text = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_the_readme(command):
    section = README.split(f"### {command}\n")[1].split("\n### ")[0]
    missing = {option for option in options_of(command) if option not in section}
    assert not missing


def test_every_command_is_in_the_readme():
    assert {command.name or command.callback.__name__ for command in cli.app.registered_commands} == set(COMMANDS)


def test_the_commands_of_the_readme_use_known_options():
    for line in README.replace("\\\n", " ").splitlines():
        found = re.match(r"    (?:\S*/)?picopose (\S+)(.*)", line)
        if found and found[1] in COMMANDS:
            used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", found[2].split("#")[0]))
            assert used <= options_of(found[1]), line


def test_the_test_command_is_what_ci_runs():
    ci = (ROOT / ".ci/run").read_text()
    assert '-c constraints.txt -e ".[test]"' in README
    assert '-c constraints.txt -e ".[test]"' in ci
    assert ".venv/bin/pytest" in README
    assert "venv/bin/pytest" in ci
