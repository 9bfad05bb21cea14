"""The prepared folder with what runs leave in it: feature files, a journal of a stopped run, finished shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from faults.children import run_alone
from faults.folder import make_folder
from faults.kinds import COMMANDS
from picopose_cli.runs.journal import Journal


def prepare_folder(root: Path) -> None:
    """Make the folder, two shards of a run with feature files, and the journal of a run that ended after two images."""
    make_folder(root)
    for name in ("out", "begun", "shards"):
        (root / name).mkdir()
    for name in ("shard 1", "shard 2"):
        _require_success(name, root)
    _begin_run(root)


def _require_success(name: str, folder: Path) -> None:
    outcome = run_alone(COMMANDS[name], folder)
    if outcome.exit != 0:
        raise SystemExit(f"{name} on sound input: exit {outcome.exit}\n{outcome.stdout}{outcome.stderr}")


def _begin_run(root: Path) -> None:
    real = Journal.append

    def append(journal: Journal, result: Any) -> None:
        real(journal, result)
        if journal.done == 2:
            os._exit(0)

    Journal.append = append  # type: ignore[method-assign]
    try:
        _require_success("infer journal", root)
    finally:
        Journal.append = real  # type: ignore[method-assign]
