"""What sharing out images on a cluster costs, what uneven workers cost, and what comes out when something is killed.

    PYTHONPATH=tests python benchmarks/bench_cluster.py [--images 100000] [--parts overhead,uneven,ray,faults]

* overhead: the driver's time for an image (dispatcher, records, journal with the disk) with 8, 64 and 256 workers that
  only sleep for a millisecond a group, simulated behind the dispatcher's interface, and its memory as it goes on;
* uneven: simulated time with eight workers one of which is four times slower, groups of 0.5 to 1.5 s, beside the ideal
  and the split beforehand of `--shard`;
* ray: real Ray workers on this machine that sleep for a millisecond a group;
* faults: `infer --ray` on a Ray cluster of several nodes on this machine, where workers, nodes and the driver are
  really killed; the result file is compared with that of a run without Ray.

Writes benchmarks/results/bench_cluster.json and prints the tables; exits with 1 when a result file differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", RAY_worker_niceness="0", RAY_USAGE_STATS_ENABLED="0")

import numpy as np
from helpers.cluster_faults import Sleep
from helpers.simulated_cluster import SimulatedCluster
from run_info import ROOT, describe_run, write_result

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.tasks import ImageResult, ImageTask, StageSeconds
from picopose_cli.base.types import PoseEstimate
from picopose_cli.pose.image_groups import ImageGroup, shard_of_groups
from picopose_cli.runs.backend import Event
from picopose_cli.runs.cluster import WorkerShare, open_cluster
from picopose_cli.runs.cluster_estimates import results_of
from picopose_cli.runs.dispatch import Dispatcher
from picopose_cli.runs.journal import Journal
from picopose_cli.runs.journal_records import image_record

OUTPUT = ROOT / "benchmarks/results/bench_cluster.json"
PARTS = ("overhead", "uneven", "ray", "faults")
IMAGES_PER_GROUP, ESTIMATES_PER_IMAGE = 3, 5
WORKERS = (8, 64, 256)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    result, differs = describe_run(), False
    with tempfile.TemporaryDirectory(prefix="picopose-cluster-", dir=arguments.work) as name:
        work, parts = Path(name), arguments.parts.split(",")
        if "overhead" in parts:
            result["overhead"] = [overhead(workers, arguments.images, work) for workers in WORKERS]
            print_table(result["overhead"])
        if "uneven" in parts:
            result["uneven"] = [uneven(groups) for groups in (160, 800, 4000)]
            print_table(result["uneven"])
        if "ray" in parts:
            result["ray"] = with_ray(work)
            print_table([result["ray"]])
        if "faults" in parts:
            from faults.cluster import kill_everything

            result["faults"] = kill_everything(work)
            print_table(result["faults"])
            differs = not all(row["as expected"] for row in result["faults"])
    write_result(arguments.output, result)
    return int(differs)


def make_groups(images: int) -> list[ImageGroup]:
    """Return groups of images without detections: their number is what counts here."""
    camera = Pinhole(np.eye(3))
    tasks = [ImageTask(1, im_id, Path("image.png"), camera, ()) for im_id in range(images)]
    return [tuple(tasks[first : first + IMAGES_PER_GROUP]) for first in range(0, images, IMAGES_PER_GROUP)]


def make_record() -> dict[str, Any]:
    """Return the record of an image with as many estimates as one of YCB-V has."""
    T = np.random.default_rng(0).normal(size=(4, 4))
    estimates = tuple(PoseEstimate(1, 0, 1, 0.5, T, 0.25) for _ in range(ESTIMATES_PER_IMAGE))
    task = ImageTask(1, 0, Path("image.png"), Pinhole(np.eye(3)), ())
    return image_record(ImageResult(task, estimates, (), StageSeconds(0.1, 0.1, 0.1, 0.1, 0.1), 0.25))


def keep_all(groups: Sequence[ImageGroup], dispatcher: Dispatcher, journal: Path) -> Iterator[int]:
    """Keep all results in a journal as `infer --ray` does; yield the number of images so far."""
    tasks = [task for group in groups for task in group]
    with Journal(journal, {}, tasks) as opened:
        for batch in dispatcher.batches():
            opened.append(*(result for done in batch for result in results_of(groups[done.job], done)))
            yield opened.done
    journal.unlink()


def overhead(workers: int, images: int, work: Path) -> dict[str, Any]:
    """Return the driver's images per second, and its memory after a tenth of the images and at the end."""
    groups, answer = make_groups(images), Sleep(0, make_record()).answer
    cluster = SleepingCluster(
        {"node": workers},
        seconds=lambda _place, _job: 0.001,  # more than the driver can take
        answer=lambda _place, job, halvings: answer(groups[job], halvings),
    )
    started, worked, memory = time.perf_counter(), time.process_time(), {}
    for done in keep_all(groups, Dispatcher(len(groups), cluster), work / "journal"):
        for share in (0.1, 1.0):
            if done >= share * images and share not in memory:
                memory[share] = resident_mb()
    elapsed, worked = time.perf_counter() - started, time.process_time() - worked
    return {
        "workers": workers, "images": images, "images per second": round(images / elapsed),
        "images per second of its core": round(images / worked),
        "memory at a tenth [MB]": memory[0.1], "memory at the end [MB]": memory[1.0],
    }  # fmt: skip


class SleepingCluster(SimulatedCluster):
    """Workers that finish in real time, so that answers pile up while the driver is busy."""

    def now(self) -> float:
        """Return the time of the clock."""
        return time.perf_counter()

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what has happened; sleep until something has."""
        until = min(self.now() + timeout_s, self._events[0][0])
        time.sleep(max(until - self.now(), 0))
        self._time = self.now()
        return self._due()


def resident_mb() -> float:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS:"))
    return round(int(line.split()[1]) * 1024 / 1e6, 1)


def uneven(count: int) -> dict[str, Any]:
    """Return the efficiency of eight workers, one four times slower, on `count` groups: ideal time by time."""
    workers, slow = 8, 4.0
    seconds = np.random.default_rng(count).uniform(0.5, 1.5, count)
    factors = [slow] + [1.0] * (workers - 1)
    cluster = SimulatedCluster({"node": workers}, seconds=lambda place, job: seconds[job] * factors[place.index])
    list(Dispatcher(count, cluster).run())
    ideal = seconds.sum() / sum(1 / factor for factor in factors)
    groups = make_groups(count * IMAGES_PER_GROUP)
    places = {group[0].im_id: index for index, group in enumerate(groups)}
    shards = [[places[group[0].im_id] for group in shard_of_groups(groups, index, workers)] for index in range(workers)]
    beforehand = max(seconds[shard].sum() * factor for shard, factor in zip(shards, factors, strict=True))
    return {
        "groups": count, "ideal [s]": round(ideal, 1), "handed out [s]": round(cluster.now(), 1),
        "split beforehand [s]": round(beforehand, 1), "efficiency": round(ideal / cluster.now(), 3),
        "efficiency of the split": round(ideal / beforehand, 3),
    }  # fmt: skip


def with_ray(work: Path, images: int = 6000) -> dict[str, Any]:
    """Return the images per second of real Ray workers that sleep, from the first result to the last."""
    groups, started, first = make_groups(images), 0.0, 0
    with (
        open_cluster("auto") as cluster,
        cluster.dispatcher(Sleep(0.001, make_record()), groups, WorkerShare(per_core=True)) as dispatcher,
    ):
        for done in keep_all(groups, dispatcher, work / "journal"):
            started, first = (started, first) if started else (time.perf_counter(), done)
        workers = sum(tally.workers for tally in dispatcher.nodes.values())
        elapsed = time.perf_counter() - started
    return {"Ray workers": workers, "images": images, "images per second": round((images - first) / elapsed)}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
