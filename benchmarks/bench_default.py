"""What `picopose infer` and `picopose demo` cost by default with the small network: time, CPU time and memory.

    python benchmarks/bench_default.py [--before CHECKOUT] [--images 20] [--busy 2] [--parts NAMES] [--work DIR]
        [--output JSON]

Every figure is of a process of the command itself. `--before` names a checkout of an earlier commit, which estimates
the same detections of the same images in turn with this one; each renders banks and stores template features of its own
first. Then what one more image, detection in an image, object and hypothesis costs; the demo, alone and beside `--busy`
processes that use a core each; and the default rules beside the paper's at the released sizes. The weights of the last
are random and its poses therefore arbitrary, so that contours are followed for every detection: the dearest case.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from run_info import ROOT, describe_run, write_result

from picopose_cli.bop.datasets import Dataset, open_dataset
from picopose_cli.network.checkpoint import save_network
from picopose_cli.network.config import VIT_L
from picopose_cli.network.picopose import PicoPose
from picopose_cli.synthesis.bop_dataset import DETECTIONS, write_procedural_dataset

OBJECTS, SEED = 20, 20
RELEASED_IMAGES = 12
FEW_IMAGES = 2
"""Images of the run that is subtracted from one of all images: start-up, banks and network are in both."""
REPEATS = 2
PARTS = ("infer", "slopes", "demo", "released")


@dataclass(frozen=True)
class Cost:
    """Wall-clock and CPU seconds of a process, and its peak memory in MB (10^6 bytes)."""

    wall_s: float
    cpu_s: float
    memory_mb: float


def main() -> None:
    arguments = read_arguments()
    work: Path = arguments.work
    if not (work / "data/timed" / DETECTIONS["rough"]).is_file():
        write_procedural_dataset(work / "data", "timed", objects=OBJECTS, images=arguments.images, seed=SEED)
    dataset = open_dataset("timed", work / "data")
    checkouts = {"now": ROOT} | ({"before": arguments.before.resolve()} if arguments.before else {})
    for name, checkout in checkouts.items():
        render(checkout, dataset, work / name)
    result = describe_run() | {"images": arguments.images, "repeats": REPEATS}
    measures = {
        "infer": lambda: compare(checkouts, dataset, work),
        "slopes": lambda: measure_slopes(dataset, work),
        "demo": lambda: measure_demo(checkouts, work, arguments.busy),
        "released": lambda: measure_released(work),
    }
    for name in arguments.parts:
        result[name] = measures[name]()
        print(name, json.dumps(result[name], indent=1), flush=True)
        write_result(arguments.output, result)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--busy", type=int, default=2, help="busy processes beside the second demo; 0: no second demo")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "picopose-bench-default")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/bench_default.json")
    return parser.parse_args()


def run(checkout: Path, *words: str | Path) -> Cost:
    """Run a command of a checkout; raises CalledProcessError when it fails."""
    code = "from picopose_cli.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, output.read().decode()[-2000:])
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)


def render(checkout: Path, dataset: Dataset, folder: Path) -> None:
    if not (folder / "rendered").is_file():
        run(checkout, "render-templates", *_of(dataset), "--templates", folder / "banks", "--renderer", "software")
        (folder / "rendered").touch()


def _of(dataset: Dataset) -> tuple[str | Path, ...]:
    return "--data-dir", dataset.root.parent, "--dataset", dataset.name


def infer(
    checkout: Path, dataset: Dataset, folder: Path, detections: Path, images: int | None = None, *more: str
) -> Cost:
    """Run `infer` from the start, with the banks and template features in a folder."""
    limit = () if images is None else ("--limit", str(images))
    where = (
        "--templates",
        folder / "banks",
        "--detections",
        detections,
        "--output",
        folder / f"a_{dataset.name}-test.csv",
    )
    return run(checkout, "infer", *_of(dataset), *where, "--device", "cpu", "--restart", *limit, *more)


def compare(checkouts: dict[str, Path], dataset: Dataset, work: Path) -> dict[str, Any]:
    """Return the cost of a detection of each checkout, with the detections that count and no others, and ratios."""
    detections = dataset.root / DETECTIONS["gt"]
    taken: dict[str, list[tuple[Cost, Cost]]] = {name: [] for name in checkouts}
    for repeat in range(REPEATS + 1):
        for name, checkout in checkouts.items():
            pair = [infer(checkout, dataset, work / name, detections, images) for images in (FEW_IMAGES, None)]
            if repeat:  # the first computes the template features
                taken[name].append((pair[0], pair[1]))
    in_image = detections_by_image(detections)
    count = sum(len(in_image[image]) for image in sorted(in_image)[FEW_IMAGES:])
    found: dict[str, Any] = {"detections": count}
    for name, pairs in taken.items():
        found[name] = {
            "wall_s_per_detection": min((all_.wall_s - few.wall_s) / count for few, all_ in pairs),
            "cpu_s_per_detection": min((all_.cpu_s - few.cpu_s) / count for few, all_ in pairs),
            "first_images_s": min(few.wall_s for few, _ in pairs),
            "memory_mb": max(all_.memory_mb for _, all_ in pairs),
        }
    if "before" in found:
        found["ratios"] = {key: found["now"][key] / found["before"][key] for key in found["now"]}
    return found


def detections_by_image(file: Path) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return the entries of a file of detections by (scene_id, image_id)."""
    in_image: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for entry in json.loads(file.read_text()):
        in_image.setdefault((entry["scene_id"], entry["image_id"]), []).append(entry)
    return in_image


def measure_slopes(dataset: Dataset, work: Path) -> dict[str, float]:
    """Return the wall-clock seconds that one more of each thing costs in this checkout."""
    in_image = detections_by_image(dataset.root / DETECTIONS["gt"])
    images = sorted(in_image)
    least, half = min(map(len, in_image.values())), len(images) // 2

    def seconds(kept: Sequence[dict[str, Any]], *more: str, count: int | None = None) -> float:
        file = work / "kept.json"
        file.write_text(json.dumps(list(kept)))
        words = ("--targets", "bop24", *more)  # BOP19 would give detections to targets that have none
        return min(infer(ROOT, dataset, work / "now", file, count, *words).wall_s for _ in range(REPEATS))

    one_each = [of_image[0] for of_image in in_image.values()]
    all_each = [entry for image in images for entry in in_image[image][:least]]
    same = [one | {"category_id": one_each[0]["category_id"]} for one in one_each]  # as many detections, of one object
    base, full = seconds(one_each), seconds(all_each)
    alone = ("--refine", "0")  # refinement of the wrong object's poses would take longer
    objects = seconds(one_each, *alone) - seconds(same, *alone)
    return {
        "image": (full - seconds(all_each, count=half)) / (len(images) - half),
        "detection": (full - base) / (len(all_each) - len(one_each)),
        "object": objects / (len({one["category_id"] for one in one_each}) - 1),
        "hypothesis_of_a_detection": (seconds(one_each, "--hypotheses", "13") - base) / 8 / len(one_each),
        "detections_per_image": least,
    }


def measure_released(work: Path) -> dict[str, Any]:
    """Return what a detection costs by either rules in a network of the released sizes, template features at hand."""
    folder, weights = work / "released", work / "released/random.safetensors"
    if not (folder / "single" / DETECTIONS["gt"]).is_file():
        write_procedural_dataset(folder, "single", objects=1, images=RELEASED_IMAGES, seed=SEED)
    if not weights.is_file():
        torch.manual_seed(SEED)
        save_network(weights, PicoPose(VIT_L), half=True)
    dataset = open_dataset("single", folder)
    render(ROOT, dataset, folder)
    detections = dataset.root / DETECTIONS["gt"]
    count = sum(len(of_image) for of_image in list(detections_by_image(detections).values())[FEW_IMAGES:])
    infer(ROOT, dataset, folder, detections, 1, "--weights", str(weights))  # computes the template features
    found: dict[str, Any] = {"detections": count}
    for rules in ("paper", "default"):
        more = ("--weights", str(weights), "--rules", rules)
        few, every = (infer(ROOT, dataset, folder, detections, images, *more) for images in (FEW_IMAGES, None))
        found[rules] = {
            "wall_s_per_detection": (every.wall_s - few.wall_s) / count,
            "cpu_s_per_detection": (every.cpu_s - few.cpu_s) / count,
            "memory_mb": every.memory_mb,
        }
    found["ratios"] = {key: found["default"][key] / found["paper"][key] for key in found["paper"]}
    return found


def measure_demo(checkouts: dict[str, Path], work: Path, busy: int) -> dict[str, Any]:
    """Return what the whole demo costs, alone and beside busy processes."""
    found: dict[str, Any] = {}
    for name, checkout in checkouts.items():
        with tempfile.TemporaryDirectory(dir=work) as folder:
            found[name] = asdict(run(checkout, "demo", "--output", Path(folder) / "demo"))
    if busy:
        with tempfile.TemporaryDirectory(dir=work) as folder, busy_processes(busy):
            found[f"beside {busy} busy processes"] = asdict(run(ROOT, "demo", "--output", Path(folder) / "demo"))
    return found


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run processes that use a core each."""
    processes = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
