"""Sixty damaged inputs of fixed seeds: exit code 0, 1 or 2, one-line messages, and no silent wrong result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CASES = 60
"""At least two of each kind of file."""


def test_sixty_damaged_inputs(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/fuzz.py"), "--cases", str(CASES), "--seed", "1"]
    command += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "fuzz.json")]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "fuzz.json").read_text())
    assert (result["cases"], result["bugs"]) == (CASES, [])
    assert set(result["exit_codes"]) == {"0", "1", "2"}
    assert set(result["verdicts"]) >= {"refused", "reported", "equal"}
