"""Faults of `infer --ray` on a Ray cluster of several nodes on this machine; what is killed is really killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from helpers.cluster_faults import with_faults
from ray.cluster_utils import Cluster

from faults.folder import RESULT, make_folder, render_few_views
from picopose_cli.base.option_fields import command_line
from picopose_cli.base.options import InferOptions
from picopose_cli.base.tasks import ImageResult
from picopose_cli.commands import infer
from picopose_cli.runs import cluster_estimates
from picopose_cli.runs.journal import JournalFollower, journal_path
from picopose_cli.runs.report import InferReport
from picopose_cli.runs.run import Run

IMAGES = 12
STORE_BYTES = 80_000_000
KILLED_IMAGE, LARGE_IMAGE = 4, 9


@dataclass
class Bench:
    """The folder of the runs, the cluster, whose first node takes no workers, and what the current run left."""

    root: Path
    cluster: Any
    pids: Path = field(init=False)
    runs: int = 0

    def add_node(self) -> None:
        """Let a node of one core join."""
        self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def remove_node(self, *, graceful: bool) -> None:
        """Let the oldest node leave: SIGTERM, or SIGKILL."""
        self.cluster.remove_node(next(iter(self.cluster.worker_nodes)), allow_graceful=graceful)

    def kill(self, most: int = 1) -> None:
        """Kill workers that have reported themselves."""
        alive = [int(one.name) for one in self.pids.iterdir() if Path(f"/proc/{one.name}").exists()]
        for pid in random.Random(self.runs).sample(alive, min(most, len(alive))):
            os.kill(pid, signal.SIGKILL)

    def begin(self) -> Path:
        """Return the result file of a new run."""
        self.runs += 1
        folder = self.root / f"run{self.runs}"
        self.pids = folder / "pids"
        self.pids.mkdir(parents=True)
        while len(self.cluster.worker_nodes) < 2:
            self.add_node()
        self.cluster.wait_for_nodes()  # until those that were killed count as dead
        return folder / RESULT


def options(root: Path, output: Path, address: str | None = None) -> InferOptions:
    """Return the options of the runs: one image a group."""
    return InferOptions(
        dataset="toy", data_dir=root / "bop", weights=root / "tiny.safetensors", device="cpu", hypotheses=2, refine=0,
        detections=str(root / "bop/toy/detections.json"), batch_size=2, output=output, ray=address,
    )  # fmt: skip


def rows(path: Path) -> list[str]:
    """Return the lines of a result file without the measured time."""
    return [line.rpartition(",")[0] for line in path.read_text().splitlines()]


def disturbed_run(bench: Bench, disturb: Callable[[Bench, int], None], **faults: Any) -> tuple[Path, InferReport]:
    """Run on the cluster; `disturb(bench, n)` is called when the n-th image has been kept."""
    output, keep, kept = bench.begin(), Run.keep, list[ImageResult]()

    def keep_and_disturb(run: Run, *results: ImageResult) -> None:
        keep(run, *results)
        for result in results:
            kept.append(result)
            disturb(bench, len(kept))

    with (
        patched(Run, "keep", keep_and_disturb),
        patched(cluster_estimates, "recipe_of", _faulty(pids=bench.pids, **({"sleep_s": 0.3} | faults))),
    ):
        return output, infer.run(options(bench.root, output, bench.cluster.address))


def _faulty(**faults: Any) -> Callable[[Run], Any]:
    real = cluster_estimates.recipe_of
    return lambda run: with_faults(real(run), **faults)


@contextmanager
def patched(owner: Any, name: str, value: Any):
    """Replace an attribute inside the context."""
    real = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, real)


def driver_run(bench: Bench, number: signal.Signals) -> tuple[Path, InferReport]:
    """Stop the driver by a signal when it has kept images, and run the same command again."""
    output = bench.begin()
    asked = options(bench.root, output, bench.cluster.address)
    driver = subprocess.Popen(
        [sys.executable, "-m", "picopose_cli", "infer", *command_line(asked)], stdout=subprocess.DEVNULL
    )
    done = JournalFollower(journal_path(output)).done
    while done() < 1 and driver.poll() is None:
        time.sleep(0.01)
    driver.send_signal(number)
    driver.wait()
    return output, infer.run(asked)


def at(image: int, act: Callable[[Bench], None]) -> Callable[[Bench, int], None]:
    """Return a disturbance at the `image`-th image."""
    return lambda bench, n: act(bench) if n == image else None


def replace_nodes(bench: Bench) -> None:
    """Let two nodes join, and then both old ones leave."""
    old = list(bench.cluster.worker_nodes)
    bench.add_node()
    bench.add_node()
    for node in old:
        bench.cluster.remove_node(node, allow_graceful=False)


SCENARIOS: dict[str, Callable[[Bench], tuple[Path, InferReport]]] = {
    "nothing": lambda b: disturbed_run(b, lambda *_: None),
    "a worker (`kill -9`)": lambda b: disturbed_run(b, at(2, Bench.kill)),
    "both workers at once": lambda b: disturbed_run(b, at(2, lambda bench: bench.kill(2))),
    "a worker after every third image": lambda b: disturbed_run(b, lambda b, n: None if n % 3 else b.kill()),
    "a node (`kill -9` of its raylet)": lambda b: disturbed_run(
        b, at(2, lambda bench: bench.remove_node(graceful=False))
    ),
    "a node that is drained (SIGTERM)": lambda b: disturbed_run(
        b, at(2, lambda bench: bench.remove_node(graceful=True))
    ),
    "both nodes, two others join": lambda b: disturbed_run(b, at(3, replace_nodes)),
    "every worker that gets one group": lambda b: disturbed_run(b, lambda *_: None, kills=(KILLED_IMAGE,)),
    "memory runs out in one group": lambda b: disturbed_run(b, lambda *_: None, too_large=(LARGE_IMAGE,)),
    "the driver (`kill -9`), started again": lambda b: driver_run(b, signal.SIGKILL),
    "the driver (Ctrl-C), started again": lambda b: driver_run(b, signal.SIGINT),
}


def kill_everything(work: Path) -> list[dict[str, Any]]:
    """Run all scenarios and return a row of the table for each."""
    torch.set_num_threads(1)
    render_few_views()
    root = work / "faults"
    make_folder(root, IMAGES)
    infer.run(options(root, root / "whole" / RESULT))
    whole = rows(root / "whole" / RESULT)
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster, table = Cluster(initialize_head=True, head_node_args=head), []
    bench = Bench(root, cluster)
    for what, run in SCENARIOS.items():
        started = time.perf_counter()
        output, report = run(bench)
        found = rows(output)
        differing = sorted({int(row.split(",")[1]) for row in set(found) ^ set(whole)})
        skipped = [skip.im_id for skip in report.skipped]
        expected = [KILLED_IMAGE] if "every worker" in what else []
        large = [LARGE_IMAGE] if "memory" in what else []  # a smaller batch rounds otherwise
        table.append({
            "what was killed": what, "workers lost": sum(node["lost"] for node in report.nodes),
            "images kept from before": report.kept_images, "images recorded as failed": len(skipped),
            "images that differ": len([one for one in differing if one not in skipped]),
            "exit code": report.exit_code, "seconds": round(time.perf_counter() - started, 1),
            "as expected": skipped == expected and set(differing) - set(skipped) <= set(large),
        })  # fmt: skip
    cluster.shutdown()
    return table
