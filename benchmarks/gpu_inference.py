"""The step `inference` of `bench_gpu.py`: the speed of a network of the released sizes on the GPU."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_infer import OBJECTS, arithmetic, make_bank, make_tasks, pose_differences, run_released
from bench_render import write_textured_mesh
from gpu_steps import ROOT, Notes, Numbers, Settings
from released_schedule import HYPOTHESES
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from picopose_cli.base.options import DEFAULT_REFINE_ROUNDS, REFINED_HYPOTHESES
from picopose_cli.network.config import VIT_L
from picopose_cli.network.devices import suggest_batch_size
from picopose_cli.network.local_matcher import load_local_features
from picopose_cli.network.picopose import PicoPose, store_in_bf16
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.pose.image_groups import plan_groups
from picopose_cli.pose.inference_network import InferenceNetwork
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.pipeline import PipelineOptions, estimate_groups
from picopose_cli.pose.refine import Refiner
from picopose_cli.pose.rules import make_rules
from picopose_cli.pose.template_store import TemplateStore
from picopose_cli.runs.trace import recording

BATCH_SIZE = 32
MATRIX_SIDE = 8192
RELEASED_IMAGES = 4
IMAGES = {"paper": 24, "default": 8}
"""Images of four detections each; the default rules take longer."""
CONFIGURATIONS = (("paper", "fp32"), ("paper", "bf16"), ("default", "bf16"), ("default", "fp32"))
PROFILED = ("default", "bf16")
MANY_WORKERS = 8
KERNEL_NAME_CHARACTERS = 30


def inference(settings: Settings, notes: Notes) -> None:
    """Time the released order of work, then the tool by the paper's and by the default rules, in fp32 and bf16."""
    device = settings.device
    notes.add("blas_threads", os.environ.get("OPENBLAS_NUM_THREADS", "all"))
    rates = matmul_rates(device, settings.dry)
    notes.add("matmul_tflops", {name: rate / 1e12 for name, rate in rates.items()})
    network = _network(settings)
    if not settings.dry:
        notes.add("suggested_batch_size", suggest_batch_size(device, VIT_L))
    banks = {obj_id: make_bank(obj_id, settings.views) for obj_id in OBJECTS}
    tasks, images = make_tasks(1 if settings.dry else max(IMAGES.values()))
    with torch.device(device):
        flops = arithmetic(network, settings.views)
    notes.add("gflop_per_detection_paper", {name: count / 1e9 for name, count in flops.items()})
    run_released(network, banks, tasks[:1], images[:1], device)  # warm-up
    released_poses, released = run_released(network, banks, tasks[:RELEASED_IMAGES], images[:RELEASED_IMAGES], device)
    notes.add("released fp32", {"detections_per_s": 1 / released["wall_s"], "detections": len(released_poses)})

    networks = {"fp32": network, "bf16": store_in_bf16(copy.deepcopy(network))}
    mesh = settings.work / "bench_mesh.ply"
    write_textured_mesh(mesh, settings.faces)
    renderer = EstimateRenderer(dict.fromkeys(OBJECTS, (mesh, "mm")))
    for rules, precision in CONFIGURATIONS:
        pipeline = open_pipeline(networks[precision], device, precision, rules, renderer)
        onboarding_s = timed(
            lambda one=pipeline: [one.matcher.store.add_object(bank) for bank in banks.values()], device
        )
        part = tasks[: IMAGES[rules]]
        pipeline.estimate(part[:2], images)  # warm-up
        poses, row = pipeline.measure(part, images)
        row["onboarding_views_per_s"] = settings.views * len(banks) / onboarding_s
        row["times_released"] = row["detections_per_s"] * released["wall_s"]
        if rules == "paper":
            difference = pose_differences(released_poses, poses[: len(released_poses)])
            row |= {"same_poses_as_released": int((difference < 1e-3).sum()), "compared": len(difference)}
            work = sum(flops.values())
        else:
            work = pipeline.count_flops(part[:1], images)
            row["gflop_per_detection"] = work / 1e9
        row["share_of_matmul_rate"] = work / rates[precision] * row["detections_per_s"]
        notes.add(f"{rules} {precision}", row)
        if (rules, precision) != ("default", "fp32"):
            notes.add(f"{rules} {precision}, 8 workers", pipeline.measure(part, images, workers=MANY_WORKERS)[1])
        if (rules, precision) == PROFILED:
            profiled = pipeline
    profiled.trace(tasks[:4], images, settings.work / "trace.json")
    if not settings.dry:
        notes.add(f"{' '.join(PROFILED)}, GPU busy", profiled.busy(tasks[:4], images))


def _network(settings: Settings) -> PicoPose:
    torch.manual_seed(0)
    if settings.dry:
        sys.path.insert(0, str(ROOT / "tests"))
        from helpers.networks import random_network

        return random_network()
    with torch.device(settings.device):
        return PicoPose(VIT_L).eval()


def open_pipeline(network: PicoPose, device: str, precision: str, rules: str, renderer: EstimateRenderer) -> Pipeline:
    """Return a pipeline without objects; the default rules refine as `infer` does."""
    inference_network = InferenceNetwork(network, device=device, precision=precision)
    hypotheses = HYPOTHESES if rules == "paper" else REFINED_HYPOTHESES
    matcher = Matcher(inference_network, TemplateStore(inference_network), make_rules(rules, hypotheses))
    refiner = Refiner(
        load_local_features(device, precision), renderer, DEFAULT_REFINE_ROUNDS, matcher.store.silhouettes
    )
    return Pipeline(matcher, refiner if rules == "default" else None, device)


def matmul_rates(device: str, dry: bool) -> dict[str, float]:
    """Return the best rate of a large matrix product in FLOP/s, by kind of arithmetic."""
    side, rates = 256 if dry else MATRIX_SIDE, {}
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
    ):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        best = math.inf
        for _ in range(6):
            best = min(best, timed(lambda a=a, b=b: a @ b, device))
        rates[name] = 2 * side**3 / best
    torch.set_float32_matmul_precision("highest")
    return rates


def timed(work: Callable[[], Any], device: str) -> float:
    """Return the seconds of some work on the device."""
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Pipeline:
    """Runs of the tool's pipeline with one matcher."""

    matcher: Matcher
    refiner: Refiner | None
    device: str

    def estimate(self, tasks: Sequence[Any], images: Sequence[Any], workers: int = 2, record: Any = None) -> np.ndarray:
        """Return the poses (N,4,4)."""
        results = estimate_groups(
            plan_groups(tasks, BATCH_SIZE),
            lambda task: images[task.im_id],
            self.matcher,
            PipelineOptions(BATCH_SIZE, workers),
            refiner=self.refiner,
            record=record,
        )
        return np.stack([one.T_cam_from_obj for result in results for one in result.estimates])

    def measure(self, tasks: Sequence[Any], images: Sequence[Any], *, workers: int = 2) -> tuple[np.ndarray, Numbers]:
        """Return the poses, and detections per second, milliseconds per detection by stage and peak memory.

        The milliseconds of PnP are summed over all threads.
        """
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        stages: dict[str, float] = {}

        def record(stage: str, start: float, end: float, _: str) -> None:
            stages[stage] = stages.get(stage, 0.0) + end - start

        poses: list[np.ndarray] = []
        wall_s = timed(lambda: poses.append(self.estimate(tasks, images, workers, record)), self.device)
        count = sum(len(task.detections) for task in tasks)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device != "cpu" else 0.0
        return poses[0], {
            "detections_per_s": count / wall_s,
            "detections": count,
            "workers": workers,
            "ms_per_detection": {stage: 1000 * seconds / count for stage, seconds in stages.items()},
            "peak_device_memory_gb": peak,
        }

    def count_flops(self, tasks: Sequence[Any], images: Sequence[Any]) -> float:
        """Return the floating-point operations of matrix products and convolutions per detection, as executed."""
        with FlopCounterMode(display=False) as counter:
            self.estimate(tasks, images)
        return float(counter.get_total_flops()) / sum(len(task.detections) for task in tasks)

    def trace(self, tasks: Sequence[Any], images: Sequence[Any], path: Path) -> None:
        """Write a timeline of all threads."""
        with recording(path) as record:
            self.estimate(tasks, images, record=record)

    def busy(self, tasks: Sequence[Any], images: Sequence[Any]) -> Numbers:
        """Return the share of the time in which the GPU works, and the kernels that take most of it."""
        wall_s = timed(lambda: self.estimate(tasks, images), self.device)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            profiled_s = timed(lambda: self.estimate(tasks, images), self.device)
        rows = [row for row in profiler.key_averages() if row.self_device_time_total]
        spent: dict[str, float] = {}
        for row in rows:
            name = row.key[:KERNEL_NAME_CHARACTERS]
            spent[name] = spent.get(name, 0.0) + row.self_device_time_total / 1e6
        copies = sum(seconds for name, seconds in spent.items() if name.startswith(("Memcpy", "Memset")))
        kernels = sum(spent.values()) - copies
        return {
            "share_kernels": kernels / wall_s,
            "share_with_copies": (kernels + copies) / wall_s,
            "wall_s": wall_s,
            "profiled_wall_s": profiled_s,
            "kernels_s": kernels,
            "copies_s": copies,
            "launches": sum(row.count for row in rows),
            "most": dict(sorted(spent.items(), key=lambda item: -item[1])[:8]),
        }
