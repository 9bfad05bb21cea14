"""Command, commit, machine and versions of a benchmark: the first part of every result file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from picopose_cli.base.environment import machine, package_versions

ROOT = Path(__file__).resolve().parents[1]


def describe_run() -> dict[str, Any]:
    """Return the command, commit, machine, load average of the last minute, and versions of the packages."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    script = Path(sys.argv[0]).resolve()
    name = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    return {
        "command": " ".join(["python", name, *sys.argv[1:]]),
        "commit": commit or None,
        "machine": machine(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": package_versions(),
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON and print the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")
