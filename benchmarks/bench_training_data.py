"""Training samples per second that the procedural source makes on one core, by difficulty.

    python benchmarks/bench_training_data.py [--seconds 20] [--objects DIR] [--workers 1] [--output FILE]

Each row is measured for --seconds after a warm-up in which the first objects are made. `per s` is per second of wall
clock, of all workers together; `per core s` per second of CPU time, which depends less on the load of the machine. The
first samples of a run are measured; later ones take less time, since most of their templates are rendered already. The
last rows split the time of one sample into its parts (level 1, one worker). Prints a table and writes it as JSON.
"""

from __future__ import annotations

import argparse
import cProfile
import multiprocessing
import os
import pstats
import time
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
from run_info import describe_run, write_result

from picopose_cli.synthesis.procedural_source import ProceduralOptions, ProceduralSource

LEVELS = (0.0, 0.3, 1.0)
TARGET_PER_S = {0.0: 40.0, 0.3: 40.0, 1.0: 15.0}
WARM_UP_SAMPLES = 32
PARTS = {  # name: file and function
    "objects": ("objects.py", "make_procedural_object"),
    "templates": ("objects.py", "template"),
    "choice and placement": ("scenes.py", "random_scene"),
    "drawing the scene": ("compose.py", "draw_scene"),
    "sensor": ("sensor.py", "photograph"),
    "rough masks": ("roughen.py", "roughen_mask"),
    "exact depth": ("observe.py", "_depth_at_centres"),
}


def make_samples(options: ProceduralOptions, worker: int, workers: int, seconds: float) -> tuple[int, float, float]:
    """Return the number of samples made, and the seconds of wall clock and of CPU time they took."""
    cv2.setNumThreads(1)
    stream = ProceduralSource(options).samples(worker, workers, 0)
    for _ in islice(stream, WARM_UP_SAMPLES):
        pass
    count, wall, processor = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        next(stream)
        count += 1
    return count, time.perf_counter() - wall, time.process_time() - processor


def measure(level: float, objects: Path | None, workers: int, seconds: float) -> dict[str, Any]:
    """Return the speed at a level of difficulty, with the meshes of the folder `objects` if one is given."""
    options = ProceduralOptions(level_start=level, level_end=level, objects=objects)
    jobs = [(options, worker, workers, seconds) for worker in range(workers)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        counts, walls, processors = zip(*pool.starmap(make_samples, jobs), strict=True)
    return {
        "level": level,
        "objects": "procedural" if objects is None else "procedural and scanned",
        "workers": workers,
        "per_s": sum(count / wall for count, wall in zip(counts, walls, strict=True)),
        "per_core_s": sum(counts) / sum(processors),
        "target_per_s": TARGET_PER_S[level],
    }


def time_parts(samples: int = 150) -> list[dict[str, Any]]:
    """Return the time of each part of a sample, by cProfile, which slows Python code down."""
    cv2.setNumThreads(1)
    stream = ProceduralSource(ProceduralOptions(level_start=1, level_end=1)).samples(0, 1, 0)
    with cProfile.Profile() as profile:
        for _ in islice(stream, samples):
            pass
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = max(entry[3] for entry in stats.values())
    rows = []
    for name, (file, function) in PARTS.items():
        spent = sum(
            entry[3] for key, entry in stats.items() if key[0].endswith(f"synthesis/{file}") and key[2] == function
        )
        rows.append({"part": name, "ms_per_sample": 1000 * spent / samples, "share": spent / total})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--objects", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "bench_training_data.json")
    arguments = parser.parse_args()
    run = describe_run()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folders = [None] if arguments.objects is None else [None, arguments.objects]
    rows = [measure(level, folder, arguments.workers, arguments.seconds) for folder in folders for level in LEVELS]
    print(f"{'objects':24} {'level':>5} {'workers':>7} {'per s':>7} {'per core s':>10} {'target':>6}")
    for row in rows:
        numbers = f"{row['per_s']:7.1f} {row['per_core_s']:10.1f} {row['target_per_s']:6.0f}"
        print(f"{row['objects']:24} {row['level']:5.1f} {row['workers']:7d} {numbers}")
    parts = time_parts()
    for part in parts:
        print(f"{part['part']:24} {part['ms_per_sample']:7.1f} ms {part['share']:6.0%}")
    write_result(arguments.output, {**run, "rows": rows, "parts": parts})


if __name__ == "__main__":
    main()
