"""What depth adds to the poses: generated objects with the depth of two kinds of sensor, and real photographs.

    python benchmarks/bench_depth.py [--objects 20] [--images 40] [--sets NAMES] [--work DIR] [--real DIR]

The pictures, objects and rough masks are those of `bench_accuracy.py`; poses by RGB are estimated once, as `infer`
does, and finished on each depth: that of structured light, the same 5 mm too far, the same with half of each mask's
depth missing, and that of time of flight. Scores are computed with the depth of the same sensor. The cost is the time
of one core for what depth adds, without the 2 ms for reading and sampling it. --real runs `infer` with and without
depth on BOP-format data sets.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accuracy.bench import Bench, Settings
from accuracy.classes import CLASSES, MASKS, infer_line
from accuracy.data import SEED, data_sha256, real_bench, written_bench
from accuracy.localisation import compare
from accuracy.summary import describe_scores
from accuracy.variants import InferLine
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from run_info import ROOT, describe_run, write_result

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import DEFAULT_REFINE_ROUNDS, REFINED_HYPOTHESES
from picopose_cli.base.tasks import ImageTask
from picopose_cli.base.types import Array, PoseEstimate
from picopose_cli.bop.detections import read_detections
from picopose_cli.bop.results import write_results
from picopose_cli.bop.targets import read_targets
from picopose_cli.network.local_matcher import load_local_features
from picopose_cli.pose.depth_refinement import DepthRefiner
from picopose_cli.pose.finishing import finish_poses
from picopose_cli.pose.image_groups import plan_groups
from picopose_cli.pose.pipeline import DEFAULT_BATCH_SIZE, weighted_score
from picopose_cli.pose.queries import Query, crop_queries, stack_queries
from picopose_cli.pose.refine import Refiner
from picopose_cli.pose.rules import RankedPose
from picopose_cli.runs.inputs import load_image, make_image_tasks
from picopose_cli.synthesis.bop_models import ObjectMaker, textured_object, untextured_object
from picopose_cli.synthesis.depth_sensor import DEPTH_SENSORS

SETS: dict[str, tuple[ObjectMaker, int]] = {
    "textured": (textured_object, SEED),
    "plain": (untextured_object, next(one.seed for one in CLASSES if one.name == "plain")),
}
"""Objects and seed of each generated set."""
FIRST, OTHER = DEPTH_SENSORS
OFFSET_M = 0.005
PATCH_PX = 8.0
"""Size of the patches without depth."""
RGB_LINE = InferLine("rgb", "RGB alone", {})
LINES = {
    FIRST: (
        RGB_LINE,
        InferLine("depth", FIRST, {}),
        InferLine("offset", f"{FIRST}, 5 mm too far", {}),
        InferLine("half", f"{FIRST}, half of the mask's missing", {}),
    ),
    OTHER: (RGB_LINE, InferLine("depth", OTHER, {})),
}
"""Of each sensor."""
REAL_LINES = (InferLine("infer-depth", "--depth on", {"depth": "on"}), InferLine("infer-rgb", "RGB alone", {}))
"""With depth first, which a set without is left out for."""
Key = tuple[str, str]
"""A sensor, and the slug of a line."""
ChangeDepth = Callable[[Array, Sequence[Any]], Array]
"""Takes depth (H,W) metres and the masks (H,W) bool of the detections, and returns depth."""


def main() -> None:
    """Write results/bench_depth.json and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights/mini.safetensors")
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(SETS)}; none with ''")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "picopose-bench-depth")
    parser.add_argument("--real", type=Path, help="folder of BOP-format data sets of real photographs")
    parser.add_argument("--workers", type=int, default=1, help="processes that render banks and score")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/bench_depth.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run, console = describe_run(), Console(markup=False, highlight=False, width=160)
    settings = Settings(arguments.work, arguments.weights, "cpu", "fp32", arguments.workers)
    rows: list[dict[str, Any]] = []
    for name in filter(None, arguments.sets.split(",")):
        rows += measure_set(name, arguments.objects, arguments.images, settings, console)
    real = measure_real(arguments.real, settings, console) if arguments.real else []
    for title, of_table in (("generated objects", rows), ("real photographs", real)):
        if of_table:
            console.print(table(title, of_table))
    counts = {"objects": arguments.objects, "images": arguments.images}
    write_result(arguments.output, run | counts | {"rows": rows, "real": real})


def measure_set(name: str, objects: int, images: int, settings: Settings, console: Console) -> list[dict[str, Any]]:
    """Return a row for each sensor and line of a generated set."""
    make_object, seed = SETS[name]
    benches = {
        sensor: written_bench(
            f"{name}-{sensor}{objects}x{images}", objects, images, settings, seed, make_object,
            banks=f"{make_object.__name__}-{seed}-{objects}", measure_depth=measure,
        )
        for sensor, measure in DEPTH_SENSORS.items()
    }  # fmt: skip
    cost_ms = estimate_lines(benches, console)
    rows = []
    for sensor, bench in benches.items():
        rgb = bench.score(RGB_LINE, MASKS)
        for line in LINES[sensor]:
            row = compare(bench, line, MASKS, None if line is RGB_LINE else rgb)
            row |= {"data": name, "sensor": sensor, "data_sha256": data_sha256(bench.dataset)}
            rows.append(row | cost_ms.get((sensor, line.slug), {}))
    return rows


def estimate_lines(benches: dict[str, Bench], console: Console) -> dict[Key, dict[str, float]]:
    """Write the result files of all lines, and return the cost of depth per detection of each."""
    bench = benches[FIRST]
    matcher = bench.matcher("searched")
    silhouettes = matcher.store.silhouettes
    refiner = Refiner(load_local_features(), bench.renderer, DEFAULT_REFINE_ROUNDS, silhouettes)
    on_depth = DepthRefiner(bench.renderer, matcher.device, silhouettes)
    tasks = {sensor: tasks_of(one) for sensor, one in benches.items()}
    estimates: dict[Key, list[PoseEstimate]] = {(sensor, line.slug): [] for sensor in LINES for line in LINES[sensor]}
    spent_s, count = dict.fromkeys(estimates, 0.0), 0
    with ThreadPoolExecutor(1) as threads:
        for group in plan_groups(tasks[FIRST].values(), DEFAULT_BATCH_SIZE):
            members = queries_of(group, matcher.store.obj_ids)
            count += len(members)
            queries = [query for _, query in members]
            tried = [of_query[:REFINED_HYPOTHESES] for of_query in matcher.match(stack_queries(queries))]
            poses = matcher.rules.solve(tried, np.stack([query.K for query in queries]), matcher.device)
            by_rgb = [of_query for of_query, _ in finish_poses(queries, poses, refiner, None, threads)]
            for key, found in estimates.items():
                of_sensor = [tasks[key[0]][task.im_id] for task in group]
                seen = [query for _, query in queries_of(of_sensor, matcher.store.obj_ids, CHANGES[key[1]])]
                started = time.process_time()
                chosen = finish_poses(seen, by_rgb, None, on_depth, threads)
                spent_s[key] += time.process_time() - started
                found += [
                    estimate(task, query, of_query[0])
                    for (task, query), (of_query, _) in zip(members, chosen, strict=True)
                ]
            total = sum(len(task.detections) for task in tasks[FIRST].values())
            console.print(f"{bench.dataset.name}: {count} of {total} detections")
    for (sensor, slug), found in estimates.items():
        path = benches[sensor].path(InferLine(slug, "", {}), MASKS)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_results(path, found)
    return {key: {"ms_a_detection": 1000 * s / count} for key, s in spent_s.items() if key[1] != RGB_LINE.slug}


def tasks_of(bench: Bench) -> dict[int, ImageTask]:
    """Return the images of a data set with their depth images, by id."""
    detections = read_detections(bench.detections[MASKS]).by_image
    tasks = make_image_tasks(bench.dataset, read_targets(bench.dataset), detections, depth=True)
    return {task.im_id: task for task in tasks}


def queries_of(
    tasks: Sequence[ImageTask], obj_ids: Collection[int], change: ChangeDepth | None = None
) -> list[tuple[ImageTask, Query]]:
    """Return the queries of images, with their depth after a change, without any where there is none."""
    members = []
    for task in tasks:
        image = load_image(task)
        depth_m = change(image.depth_m, image.masks) if change and isinstance(image.depth_m, np.ndarray) else None
        image = replace(image, depth_m=depth_m)
        found, _ = crop_queries(task, image, obj_ids, perspective_crops=True, close_ups=True)
        members += [(task, query) for query in found]
    return members


def too_far(depth_m: Array, _: Sequence[Any]) -> Array:
    """Return depth (H,W) that is OFFSET_M too far."""
    return np.where(depth_m > 0, depth_m + np.float32(OFFSET_M), 0)


def without_half(depth_m: Array, masks: Sequence[Any]) -> Array:
    """Return depth (H,W) without that of half of each mask (H,W) bool, in patches."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(size=depth_m.shape), (0, 0), PATCH_PX)
    kept = depth_m.copy()
    for mask in masks:
        kept[mask & (noise > np.median(noise[mask]))] = 0
    return kept


CHANGES: dict[str, ChangeDepth | None] = {
    RGB_LINE.slug: None,
    "depth": lambda depth_m, _: depth_m,
    "offset": too_far,
    "half": without_half,
}
"""What the depth of a line is made of that of the data set, by slug."""


def estimate(task: ImageTask, query: Query, pose: RankedPose) -> PoseEstimate:
    """Return a pose as `infer` writes it, without a time."""
    score = weighted_score(query.detection.score, pose.confidence)
    T = query.pose_in_camera(pose.T_cam_from_obj)
    return PoseEstimate(task.scene_id, task.im_id, query.detection.obj_id, score, T, -1.0)


def measure_real(folder: Path, settings: Settings, console: Console) -> list[dict[str, Any]]:
    """Return rows of `infer` with and without depth on each data set of a folder that has depth images."""
    rows: list[dict[str, Any]] = []
    for name in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        try:
            bench = real_bench(name, folder, settings)
            for line in REAL_LINES:
                if not bench.path(line, "detections").is_file():
                    infer_line(bench, line, "detections")
                scores, path = bench.score(line, "detections"), bench.path(line, "detections")
                rows.append({"data": name, "line": line.title, **describe_scores(scores, path)})
        except PicoPoseError as error:
            rows = [row for row in rows if row["data"] != name]
            console.print(f"{name} is skipped: {error.what}")
    return rows


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows as a table for a terminal."""
    heads = ("data", "line", "AR", "VSD", "MSSD", "MSPD", "MSSD<.1d", "AR above RGB, 95 %", "worst object", "ms")
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for head in heads:
        made.add_column(head)
    for row in rows:
        numbers = [row[name] for name in ("AR", "AR_VSD", "AR_MSSD", "AR_MSPD", "share_mssd_below_tenth")]
        gain = ["", ""]
        if "AR_above" in row:
            low, high = row["AR_above_95"]
            gain = [f"{row['AR_above']:+.3f} ({low:+.3f} {high:+.3f})", f"{row['worst_object_above']:+.3f}"]
        cost = f"{row['ms_a_detection']:.0f}" if "ms_a_detection" in row else ""
        shown = ["-" if number is None else f"{number:.3f}" for number in numbers]
        made.add_row(row["data"], row["line"], *shown, *gain, cost)
    return made


if __name__ == "__main__":
    main()
