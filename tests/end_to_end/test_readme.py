"""The README has the reference of every command, and its own commands and options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.reference import reference, written_reference

from picopose_cli import cli
from picopose_cli.base.option_fields import option_fields

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
GLOBAL_OPTIONS = {"--verbose", "--quiet", "--log-file", "--version", "--help", "--install-completion"}
DOCUMENTS = ["README.md", "weights/README.md", "benchmarks/README.md", "benchmarks/training.md"]


def options_of(command: str) -> set[str]:
    fields = option_fields(cli.options_type(cli.COMMANDS[command]))
    negative = {f"--no-{one.flag[2:]}" for one in fields if one.is_switch}
    return {one.flag for one in fields if not one.info.argument} | negative | GLOBAL_OPTIONS


def used_options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def test_the_reference_is_that_of_the_options():
    assert written_reference(README) == reference(), "run: python tests/helpers/reference.py"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_is_in_the_readme(command):
    prose, written = README.split("## Reference")
    assert f"picopose {command}" in prose
    assert f"### picopose {command}\n" in written


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_of_the_documents_use_known_options(document):
    text = (ROOT / document).read_text().replace("\\\n", " ")
    for command, rest in re.findall(r"picopose (\S+)([^`#\n]*)", text):
        if command in cli.COMMANDS:
            assert used_options(rest) <= options_of(command), rest


def test_the_prose_names_known_options():
    prose = README.split("## Reference")[0]
    known = set().union(*map(options_of, cli.COMMANDS))
    assert used_options(" ".join(re.findall(r"`(--[^`]*)`", prose))) <= known


def test_the_test_command_is_what_ci_runs():
    ci = (ROOT / ".ci/run").read_text()
    assert '-c constraints.txt -e ".[test]"' in README
    assert '-c constraints.txt -e ".[test]"' in ci
    assert ".venv/bin/pytest" in README
    assert "venv/bin/pytest" in ci
