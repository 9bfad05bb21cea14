"""Six kills of a fixed seed, while rendering, onboarding, estimating and merging; on two devices: tests/runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KILLS = 6


def test_six_kills_change_no_result_and_leave_no_file(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks/bench_kills.py"),
        "--kills",
        str(KILLS),
        "--most",
        "1",
        "--one-device",
    ]
    command += ["--work", str(tmp_path), "--output", str(tmp_path / "kills.json")]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "kills.json").read_text())
    assert (result["kills"], result["faults"]) == (KILLS, [])
    names = {run["scenario"] for run in result["table"] if run["kills"]}
    assert names == {"rendering", "onboarding", "estimation", "merging"}
    assert list(tmp_path.iterdir()) == [tmp_path / "kills.json"]
