"""Killed runs: the same command again gives the result of a run that was left alone, and leaves no file behind.

    PYTHONPATH=tests python benchmarks/bench_kills.py [--kills 50] [--seed 0] [--work DIR]

`kill -9` at random moments, half of them before a random operation on a file (open, rename, remove, truncate), while
banks are rendered, objects onboarded (template features written), poses estimated, shards merged, and on two devices
(`--device cpu,cpu`; the process or one of its children). After a kill the same command is started again and killed up
to twice more, then it runs to its end: result file identical except for the time, and no other file in the folder than
after a run that was left alone. Writes benchmarks/results/bench_kills.json, prints the table, and exits with 1 when
a run differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", OPENCV_LOG_LEVEL="SILENT", KMP_BLOCKTIME="0")

from faults.children import import_everything
from faults.folder import render_few_views
from faults.kills import SCENARIOS, KillBench, Killed
from faults.sound import prepare_folder
from run_info import ROOT, describe_run, write_result

OUTPUT = ROOT / "benchmarks/results/bench_kills.json"
_MOST_KILLS = 3


def table(runs: Sequence[Killed]) -> list[str]:
    """Return a Markdown table of the kills by what was running."""
    lines = ["| what was running | kills | runs | identical result | files left behind |", "|---|---|---|---|---|"]
    for name in [*(scenario.name for scenario in SCENARIOS), "all"]:
        chosen = [run for run in runs if name in (run.scenario, "all")]
        same, left = sum(run.same_result for run in chosen), sum(bool(run.left_behind) for run in chosen)
        lines.append(f"| {name} | {sum(run.kills for run in chosen)} | {len(chosen)} | {same} | {left} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=_MOST_KILLS, help="most kills of one run")
    parser.add_argument("--one-device", action="store_true", help="leave out the runs on two devices")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    started, described, rng = time.perf_counter(), describe_run(), Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="picopose-kills-", dir=arguments.work) as name:
        work = Path(name).resolve()
        import_everything()
        render_few_views()
        prepare_folder(work / "root")
        scenarios = [scenario for scenario in SCENARIOS if not (arguments.one_device and scenario.has_children)]
        bench, runs, left = KillBench(work / "root", work, scenarios), list[Killed](), arguments.kills
        while left > 0:
            scenario = scenarios[len(runs) % len(scenarios)]
            runs.append(bench.run(scenario, min(left, rng.randint(1, arguments.most)), rng))
            left -= runs[-1].kills
            if runs[-1].is_fault:
                print(runs[-1], file=sys.stderr)
    faults = [asdict(run) for run in runs if run.is_fault]
    result = {
        **described, "seed": arguments.seed, "kills": sum(run.kills for run in runs), "runs": len(runs),
        "faults": faults, "seconds": round(time.perf_counter() - started, 1), "table": [asdict(run) for run in runs],
    }  # fmt: skip
    write_result(arguments.output, result)
    print("\n".join(table(runs)))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
