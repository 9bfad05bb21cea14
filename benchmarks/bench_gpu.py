"""The steps of `on_gpu.sh`, one after another, each in a process of its own and within its own time.

    python benchmarks/bench_gpu.py --output DIR [--steps a,b,c] [--dry-run]

After each step DIR/on_gpu.json contains all results so far, and DIR/logs.txt the output of the steps: a run that is cut
short leaves what it has done. `--dry-run` runs tiny sizes on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu_steps
from gpu_steps import ROOT, Notes, Numbers, Settings

STARTED = float(os.environ.get("ON_GPU_STARTED") or time.time())
END_OF_TRAINING_S, END_S = 494.0, 506.0
"""Seconds after the start of on_gpu.sh."""
LIMIT_S = {"inference": 90, "precision": 40, "render": 65, "tests": 60, "samples": 15, "training": END_S}
"""The steps in their order (what has been measured least comes first) and their seconds at most."""
ENVIRONMENT_LIMIT_S, PREPARE_LIMIT_S = 25, 30
FULL_LOG_CHARACTERS, TAIL_LINES, TABLE_CHARACTERS = 300_000, 25, 11_000
RESULT = "on_gpu.json"
MAX_COPIED_BYTES = 16 << 20


def inference(settings: Settings, notes: Notes) -> None:
    """Run the step; its module loads PyTorch and so does not load with this one."""
    from gpu_inference import inference as run

    run(settings, notes)


def training(settings: Settings, notes: Notes) -> None:
    """Run the step with what the step `samples` has found, if it has run."""
    from gpu_training import training as run

    try:
        per_s = json.loads((settings.work / "samples.json").read_text())["level 1"]["per_s"]
    except (OSError, ValueError, KeyError):
        per_s = 0.0
    run(settings, notes, settings.work / "trained", per_s, STARTED + END_OF_TRAINING_S)


STEPS: dict[str, Callable[[Settings, Notes], None]] = {
    "environment": gpu_steps.environment,
    "prepare": gpu_steps.prepare,
    "inference": inference,
    "precision": gpu_steps.precision,
    "render": gpu_steps.render,
    "tests": gpu_steps.tests,
    "samples": gpu_steps.samples,
    "training": training,
}


class Child:
    """A step in a process of its own, with its log."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self._started = name, time.time()
        self.log, self.notes = settings.work / f"{name}.log", settings.work / f"{name}.json"
        command = [sys.executable, __file__, "--step", name, "--work", str(settings.work)]
        command += ["--dry-run"] if settings.dry else []
        one_thread = {"OPENBLAS_NUM_THREADS": "1"}  # several threads solve PnP: each would start a thread per core
        dry = {"OMP_NUM_THREADS": "1"} if settings.dry else {}  # for a machine that does other work, too
        self._stream = self.log.open("w")
        # a process group of its own: what the step has started ends with it
        self._process = subprocess.Popen(
            command,
            stdout=self._stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
            env=os.environ | (one_thread if name in ("inference", "precision") else {}) | dry,
        )

    def wait(self, limit_s: float) -> Numbers:
        """Return the result of the step, which is stopped `limit_s` seconds after its start."""
        status = "ok"
        try:
            self._process.wait(max(0.1, limit_s - (time.time() - self._started)))
        except subprocess.TimeoutExpired:
            status = "too slow"
        for sent in (signal.SIGTERM, signal.SIGKILL):  # also for workers that outlive the step
            try:
                os.killpg(self._process.pid, sent)
                self._process.wait(4)
            except (ProcessLookupError, PermissionError):
                break
            except subprocess.TimeoutExpired:
                continue
        self._stream.close()
        if status == "ok" and self._process.returncode:
            status = f"failed ({self._process.returncode})"
        try:
            numbers = json.loads(self.notes.read_text())
        except (OSError, ValueError):
            numbers = {}
        return {"status": status, "seconds": round(time.time() - self._started, 1), **numbers}


class Session:
    """The results of all steps, written to a folder."""

    def __init__(self, settings: Settings, output: Path) -> None:
        self._settings, self._output = settings, output
        self.found: dict[str, Numbers] = {}

    def run(self, name: str, limit_s: float) -> None:
        """Run a step and store its result."""
        self.finish(Child(name, self._settings), limit_s)

    def finish(self, child: Child, limit_s: float) -> None:
        """Wait for a step and store its result."""
        limit_s = 3 * limit_s if self._settings.dry else min(limit_s, END_S - (time.time() - STARTED))
        numbers = self.found[child.name] = child.wait(limit_s)
        text = child.log.read_text(errors="replace")
        with (self._output / "logs.txt").open("a") as stream:
            stream.write(f"===== {child.name}: {numbers['status']}\n{text[-FULL_LOG_CHARACTERS:]}\n")
        print(f"[{time.time() - STARTED:5.0f} s] {child.name}: {numbers['status']}, {numbers['seconds']} s", flush=True)
        if numbers["status"] != "ok":
            print("\n".join(line[:400] for line in text.splitlines()[-TAIL_LINES:]), flush=True)
        (self._output / RESULT).write_text(json.dumps(self.found, indent=1, default=float) + "\n")


def table(found: dict[str, Numbers]) -> str:
    """Return the results in a few lines."""
    lines = ["", "step         status        seconds"]
    lines += [f"{name:12} {one['status']:12} {one['seconds']:8}" for name, one in found.items()]
    for name, one in found.items():
        for key, value in one.items():
            if key not in ("status", "seconds", "run") and name != "prepare":
                lines.append(f"{name} | {key}: {json.dumps(_rounded(value), default=float)[:420]}")
    return "\n".join(lines)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items() if key != "most"}
    return value


def run_steps(settings: Settings, output: Path, names: Sequence[str]) -> None:
    """Run the steps in their order and print their results."""
    session = Session(settings, output)
    preparing = Child("prepare", settings) if "precision" in names else None
    session.run("environment", ENVIRONMENT_LIMIT_S)
    if preparing is not None:
        session.finish(preparing, PREPARE_LIMIT_S)
    for name, limit_s in LIMIT_S.items():
        if name in names:
            session.run(name, limit_s)
    for file in ("trace.json", "trained/network.safetensors", "trained/log.jsonl", "trained/summary.json"):
        _copy_small(settings.work / file, output)
    text = table(session.found)
    with (output / "logs.txt").open("a") as stream:
        stream.write(text + "\n")
    print(text[-TABLE_CHARACTERS:], flush=True)


def _copy_small(file: Path, folder: Path) -> None:
    if file.is_file() and file.stat().st_size <= MAX_COPIED_BYTES:
        shutil.copy(file, folder)


def chosen_steps(text: str | None) -> list[str]:
    """Return the steps that `--steps` names, all without it; raises ValueError for an unknown one."""
    names = list(LIMIT_S) if text is None else text.split(",")
    unknown = [name for name in names if name not in LIMIT_S]
    if unknown:
        raise ValueError(f"--steps {','.join(unknown)}: unknown, choose from {','.join(LIMIT_S)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--steps", help=f"some of {','.join(LIMIT_S)}")
    parser.add_argument("--dry-run", action="store_true")
    for name in ("--step", "--work"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step is not None:
        settings = Settings(Path(arguments.work), arguments.dry_run)
        STEPS[arguments.step](settings, Notes(settings.work / f"{arguments.step}.json"))
        return
    try:
        names = chosen_steps(arguments.steps)
    except ValueError as error:
        parser.error(str(error))
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="on-gpu-") as work:
        run_steps(Settings(Path(work), arguments.dry_run), arguments.output.resolve(), names)


if __name__ == "__main__":
    main()
