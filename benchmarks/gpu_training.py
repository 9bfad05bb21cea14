"""The step `training` of `bench_gpu.py`: measure a training step, then train the small network for the time left."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from gpu_steps import ROOT, Notes, Settings, call, picopose

BATCHES = (128, 64, 32)
"""Pairs in a training step; the first that works is taken."""
MAX_REUSE = 4
SAMPLE_MB = 0.5
"""Shared memory of each sample that a worker has ready."""
DATA_SHARE = 0.85
"""Share of the samples per second of idle workers that they make beside the training."""
COARSE_SHARE = 0.6
"""Share of the steps that train without the finest grid."""


def training(settings: Settings, notes: Notes, output: Path, per_s: float, end: float) -> None:
    """Train until the time `end` (seconds since the epoch); `per_s`: samples per second of all workers, 0: unknown."""
    tried, probe_steps = settings.work / "probe", 4 if settings.dry else 120
    workers, reuse = (1, 1) if settings.dry else (settings.cores, MAX_REUSE)
    for precision, batch in _ladder(settings, workers):
        shutil.rmtree(tried, ignore_errors=True)
        options: dict[str, object] = {
            "batch_size": batch,
            "precision": precision,
            "workers": workers,
            "reuse": reuse,
        }
        try:
            wall_s = call(_train_command(settings, tried, steps=probe_steps, minutes=0.4, **options), 55)
            break
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            notes.add(f"failed {precision} {batch}", repr(error)[:300])
    else:
        sys.exit("no setting trains")
    run = json.loads((tried / "summary.json").read_text())["runs"][-1]
    start_up_s = wall_s - run["seconds"]
    coarse_s, fine_s = seconds_per_step(tried / "log.jsonl", batch, probe_steps)
    numbers = {"precision": precision, "batch": batch, "start_up_s": start_up_s, "steps": run["step"]}
    numbers |= {"step_s_coarse": coarse_s, "step_s_fine": fine_s, "waiting_share": run["waiting_share"]}
    notes.add("probe", numbers)
    data_s = batch / (DATA_SHARE * per_s) if per_s else 0.0
    if not settings.dry and data_s:
        device_s = COARSE_SHARE * coarse_s + (1 - COARSE_SHARE) * fine_s
        reuse = min(MAX_REUSE, max(1, math.ceil(data_s / device_s)))
    step_s = COARSE_SHARE * max(coarse_s, data_s / reuse) + (1 - COARSE_SHARE) * max(fine_s, data_s / reuse)
    first_s = batch * workers / per_s if per_s else 0.0  # until the workers have made their first batches
    left_s = end - time.time() - start_up_s - 3
    left_s = min(left_s, 10.0) if settings.dry else left_s
    if left_s < 5:
        notes.add("out of time", left_s)
        return
    steps = max(2, int(0.95 * (left_s - first_s) / step_s))
    notes.add("plan", {"steps": steps, "minutes": left_s / 60, "reuse": reuse, "step_s": step_s})
    options |= {"reuse": reuse, "minutes": round(left_s / 60, 3), "checkpoint_every": max(1, int(40 / step_s))}
    _train_for(_train_command(settings, output, steps=steps, **options), left_s + start_up_s)
    summary = output / "summary.json"
    if not summary.is_file():
        sys.exit("the training has not written a network")
    run = json.loads(summary.read_text())["runs"][-1]
    kept = ("first_step", "step", "seconds", "pairs_per_s", "waiting_share", "finished", "losses")
    notes.add("trained", {key: run[key] for key in kept})


def _ladder(settings: Settings, workers: int) -> list[tuple[str, int]]:
    """Return precisions and batch sizes, the one to try first at the start, that shared memory suffices for."""
    if settings.dry:
        return [("fp32", 2)]
    ladder = [("bf16", BATCHES[0]), ("bf16", BATCHES[1]), ("fp32", BATCHES[1]), ("fp32", BATCHES[2])]
    shared_mb = shutil.disk_usage("/dev/shm").free / 1e6
    return [one for one in ladder if 3 * workers * one[1] * SAMPLE_MB < shared_mb] or ladder[-1:]


def _train_command(settings: Settings, output: Path, **changes: object) -> list[str]:
    options: dict[str, object] = {
        "output": output,
        "preset": "mini",
        "init": ROOT / "weights/mini.safetensors",
        "lr": 5e-4,
        "curriculum_steps": 0,
        "ema": 0.99,
        "seed": 7,
        "device": settings.device,
        "validate_every": 0,
        "validation_objects": 0,
    } | changes
    return picopose("train", *chain.from_iterable((f"--{key.replace('_', '-')}", options[key]) for key in options))


def seconds_per_step(log: Path, batch: int, steps: int) -> tuple[float, float]:
    """Return seconds per step without and with the finest grid, from the log of a short run."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    at = {line["step"]: line["step"] * batch / line["pairs_per_s"] for line in lines if line["kind"] == "loss"}
    rates: dict[bool, list[float]] = {False: [], True: []}
    for before, after in zip(list(at), list(at)[1:], strict=False):
        fine = before >= COARSE_SHARE * steps
        if fine or after <= COARSE_SHARE * steps:
            rates[fine].append((at[after] - at[before]) / (after - before))
    last = max(at)
    coarse = rates[False][-1] if rates[False] else at[last] / last
    return coarse, rates[True][-1] if rates[True] else 1.5 * coarse


def _train_for(command: Sequence[str], seconds: float) -> None:
    """Run a training; one that takes too long is asked to stop, and then writes its network."""
    print("$", " ".join(command), flush=True)
    with subprocess.Popen(command, cwd=ROOT) as child:
        for patience_s, then in ((seconds + 6, signal.SIGTERM), (6, signal.SIGKILL)):
            try:
                child.wait(patience_s)
                return
            except subprocess.TimeoutExpired:
                child.send_signal(then)
