"""How fast detections become poses, against the released order of work on the same weights and inputs, in one run.

    python benchmarks/bench_infer.py [--images 2] [--views 24] [--weights FILE] [--device auto] [--work DIR]

The network has the released sizes; without --weights its weights are random, which changes no time but that of PnP: its
pairs are mostly outliers, the slow case. Template onboarding is the same work for both sides and is not counted. A
process of its own then starts with the features of 21 objects on disk (12 GB below --work, removed at the end), and one
with the small network shows what ten times the images cost.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from released_schedule import (
    BATCH_SIZE,
    HYPOTHESES,
    ReleasedTemplates,
    onboard,
    released_hypotheses,
    whole_volume,
)
from run_info import describe_run, write_result
from torch.utils.flop_counter import FlopCounterMode

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.environment import peak_memory_mb
from picopose_cli.base.files import file_sha256
from picopose_cli.base.geometry import apply_affine, project_points
from picopose_cli.base.tasks import ImageTask, LoadedImage
from picopose_cli.base.types import Detection, Provenance, QueryBatch, TemplateBank
from picopose_cli.network.bundled import bundled_weights
from picopose_cli.network.checkpoint import load_network, save_network
from picopose_cli.network.config import VIT_L
from picopose_cli.network.devices import choose_device, device_name, has_fast_bf16
from picopose_cli.network.picopose import PicoPose, store_in_bf16
from picopose_cli.pose.correspondences import affine_poses, released_correspondences
from picopose_cli.pose.feature_file import FeatureChunk, feature_file
from picopose_cli.pose.inference_network import InferenceNetwork, load_inference_network
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.pipeline import PipelineOptions, estimate_images
from picopose_cli.pose.queries import crop_queries, stack_queries
from picopose_cli.pose.ransac import RansacPose, solve_released
from picopose_cli.pose.rules import PaperRules
from picopose_cli.pose.template_store import TemplateStore
from picopose_cli.templates.bank import bank_path, read_bank, write_bank
from picopose_cli.templates.crops import normalise_bgr
from picopose_cli.templates.views import template_camera, view_poses

HEIGHT, WIDTH = 480, 640
K = np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])
OBJECTS = (1, 2)
DETECTIONS = 4
START_OBJECTS = 21
SCALE_IMAGES = 20
LEAST_SPEED_UP = 4.0
MOST_START_S, MOST_START_MB = 30.0, 6000.0
STAGES = ("extract", "offset_features", "regress_affine", "regress_offsets")


def make_bank(obj_id: int, views: int) -> TemplateBank:
    """Return a bank of `views` of the 162 views with pictures of smoothed noise in a round mask."""
    rng = np.random.default_rng(obj_id)
    row, col = np.indices((224, 224)) - 111.5
    mask = row**2 + col**2 < 105**2
    crops = rng.integers(0, 256, (views, 28, 28, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    K_tmpl = template_camera()
    poses = view_poses()[np.linspace(0, 161, views).astype(int)].copy()
    poses[:, :3, 3] = (0, 0, 0.4)
    return TemplateBank(
        obj_id=obj_id,
        crops_rgb=crops * mask[..., None],
        masks=np.tile(mask, (views, 1, 1)),
        depth_corner_m=rng.uniform(0.34, 0.46, (views, 64, 64)).astype(np.float32),
        depth_centre_m=np.full((views, 64, 64), 0.35, np.float32),
        K=K_tmpl,
        A_crop_from_image=np.tile(np.array([[1.2, 0, -272], [0, 1.2, -176], [0, 0, 1]]), (views, 1, 1)),
        T_tmpl_from_obj=poses,
        diameter_m=0.12,
        provenance=Provenance("noise", "0" * 64, "mm", "software", "none", ""),
    )


def make_tasks(images: int) -> tuple[list[ImageTask], list[LoadedImage]]:
    """Return tasks of four detections each and their images of noise."""
    rng = np.random.default_rng(0)
    tasks, loaded = [], []
    for im_id in range(images):
        masks, detections = [], []
        for number in range(DETECTIONS):
            mask = np.zeros((HEIGHT, WIDTH), bool)
            row, col = rng.integers(20, 280), rng.integers(20, 440)
            mask[row : row + 150, col : col + 170] = True
            masks.append(mask)
            box = (float(col), float(row), 170.0, 150.0)
            detections.append(Detection(OBJECTS[number % len(OBJECTS)], 0.9, box, None, 0.0))
        image = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        tasks.append(ImageTask(0, im_id, Path(f"{im_id}.png"), Pinhole(K), tuple(detections)))
        loaded.append(LoadedImage(image, tuple(masks)))
    return tasks, loaded


class Clock:
    """Seconds of wall clock and of the CPU, all threads together: the second can be compared on a busy machine too."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def read(self, count: int = 1) -> dict[str, float]:
        """Return the seconds since the start, a `count`-th of them."""
        wall, cpu = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        return {"wall_s": wall / count, "cpu_s": cpu / count}


def run_released(
    network: PicoPose,
    banks: dict[int, TemplateBank],
    tasks: Sequence[ImageTask],
    images: Sequence[LoadedImage],
    device: str,
) -> tuple[np.ndarray, dict[str, float]]:
    """Return the poses (N,4,4) and the seconds a detection of the released order of work, onboarding not counted."""
    templates = {obj_id: onboard_released(network, bank, device) for obj_id, bank in banks.items()}
    clock, poses = Clock(), []
    for task, image in zip(tasks, images, strict=True):
        queries, _ = crop_queries(task, image, set(banks))
        for start in range(0, len(queries), BATCH_SIZE):
            batch = stack_queries(queries[start : start + BATCH_SIZE])
            poses += released_batch(network, banks, templates, batch, device)
    return np.stack(poses), clock.read(len(poses))


def onboard_released(network: PicoPose, bank: TemplateBank, device: str) -> ReleasedTemplates:
    origins = apply_affine(bank.A_crop_from_image, project_points(bank.K, bank.T_tmpl_from_obj[:, None, :3, 3]))[:, 0]
    arrays = normalise_bgr(bank.crops_rgb), bank.masks, origins.astype(np.float32)
    return onboard(network, *(torch.from_numpy(array).to(device) for array in arrays))


def released_batch(
    network: PicoPose,
    banks: dict[int, TemplateBank],
    templates: dict[int, ReleasedTemplates],
    batch: QueryBatch,
    device: str,
) -> list[np.ndarray]:
    """Estimate one batch: the network hypothesis by hypothesis, then PnP one after another."""
    inputs, masks = (torch.from_numpy(array).to(device) for array in (batch.inputs, batch.masks))
    of_object = [templates[obj_id] for obj_id in batch.obj_ids.tolist()]
    ranked = released_hypotheses(network, inputs, masks, of_object)
    poses = []
    for row, obj_id in enumerate(batch.obj_ids.tolist()):
        bank, found = banks[obj_id], []
        for hypothesis in ranked:
            view = int(hypothesis.views[row])
            A = hypothesis.affine.A_obs_from_tmpl[row].double().cpu().numpy()
            crops = batch.A_crop_from_image[row], bank.A_crop_from_image[view]
            parts = (A, *crops, batch.K[row], bank.K, bank.T_tmpl_from_obj[view])
            T_stage2 = affine_poses(*(part[None] for part in parts))[0]
            flow = hypothesis.offsets.flows[-1][row].cpu().numpy()
            logit = hypothesis.offsets.certainty_logits[-1][row, 0].cpu().numpy()
            pairs = released_correspondences(flow, logit, bank.xyz_obj_m[view], batch.A_crop_from_image[row])
            found.append(solve_released(pairs, batch.K[row]) or RansacPose(T_stage2, 0, 0.0))
        poses.append(max(found, key=lambda pose: pose.inlier_ratio).T_cam_from_obj)
    return poses


def make_matcher(network: PicoPose, device: str, precision: str) -> Matcher:
    """Return a matcher by the paper's rules without objects."""
    inference = InferenceNetwork(network, device=device, precision=precision)
    return Matcher(inference, TemplateStore(inference), PaperRules(HYPOTHESES))


def run_ours(
    matcher: Matcher, tasks: Sequence[ImageTask], images: Sequence[LoadedImage]
) -> tuple[np.ndarray, dict[str, float]]:
    """Return the poses (N,4,4) and the seconds a detection of the whole pipeline."""
    clock, poses = Clock(), []
    for result in estimate_images(tasks, lambda task: images[task.im_id], matcher, PipelineOptions(16, workers=2)):
        poses += [estimate.T_cam_from_obj for estimate in result.estimates]
    return np.stack(poses), clock.read(len(poses))


def measure_ours(
    network: PicoPose,
    banks: dict[int, TemplateBank],
    tasks: Sequence[ImageTask],
    images: Sequence[LoadedImage],
    device: str,
    precision: str,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the poses and what they cost with the template features just made (cold) and on the device (warm)."""
    matcher = make_matcher(network, device, precision)
    clock = Clock()
    for bank in banks.values():
        matcher.store.add_object(bank)
    onboarding = clock.read(sum(len(bank.crops_rgb) for bank in banks.values()))
    cold_poses, cold = run_ours(matcher, tasks, images)
    (warm_poses, warm), stages = time_stages(network, lambda: run_ours(matcher, tasks, images), len(cold_poses))
    identical = bool((cold_poses == warm_poses).all())
    numbers = {"onboarding_a_view": onboarding, "cold": cold, "warm": warm, "stages_cpu_s": stages}
    return warm_poses, numbers | {"passes_identical": identical}


def time_stages(network: PicoPose, work: Callable[[], Any], count: int) -> tuple[Any, dict[str, float]]:
    """Return what some work returns and its CPU seconds by stage, a `count`-th; `rest`: matching, crops, PnP."""
    seconds = dict.fromkeys(STAGES, 0.0)

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            clock = Clock()
            returned = method(*arguments, **options)
            seconds[name] += clock.read(count)["cpu_s"]
            return returned

        return call

    clock = Clock()
    for name in STAGES:
        setattr(network, name, timed(name, getattr(network, name)))
    try:
        result = work()
    finally:
        for name in STAGES:
            delattr(network, name)
    return result, seconds | {"rest": clock.read(count)["cpu_s"] - sum(seconds.values())}


def arithmetic(network: PicoPose, views: int) -> dict[str, float]:
    """Return the floating-point operations of a detection by stage, with direct convolutions and the whole volume."""
    grid, width = VIT_L.grid, VIT_L.vit.width
    one = torch.zeros(1, 2, dtype=torch.int64)
    counts = {}
    with torch.inference_mode(), whole_volume():
        with FlopCounterMode(display=False) as counter:
            maps = network.extract(torch.zeros(1, 3, 224, 224))
        counts["extract"] = float(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            features = network.offset_features(maps)
        counts["offset_features"] = float(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            network.regress_offsets(features, features, one, torch.eye(3)[None], torch.ones(1, grid, grid))
        counts["regress_offsets"] = HYPOTHESES * float(counter.get_total_flops())
    return counts | {"matching": 2.0 * views * grid**4 * width}


def peak_flops(dtype: torch.dtype) -> float:
    """Return the best rate of stage 3's largest convolution, operations a CPU second of one core."""
    features = torch.randn(2, 640, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(512, 640, 3, 3, dtype=dtype)
    best = 0.0
    with torch.inference_mode():
        for _ in range(8):
            clock = Clock()
            F.conv2d(features, weight, padding=1)
            best = max(best, 2 * 640 * 512 * 9 * 2 * 64**2 / clock.read()["cpu_s"])
    return best


def compare_flows(network: PicoPose, half: PicoPose) -> dict[str, float]:
    """Return how far flows in bf16 lie from those in fp32, in cells of the finest grid."""
    inputs = F.interpolate(torch.randn(2, 3, 28, 28), size=224, mode="bilinear")
    flows = []
    for one, enabled in ((network, False), (half, True)):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            features = one.offset_features(one.extract(inputs))
            pairs, affine = torch.tensor([[0, 0], [1, 0]]), torch.eye(3).repeat(2, 1, 1)
            flows.append(one.regress_offsets(features, features, pairs, affine, torch.ones(2, 16, 16)).flows[-1])
    difference = (flows[0] - flows[1]).norm(dim=1)
    return {"median_cells": float(difference.median()), "max_cells": float(difference.max())}


def make_start(work: Path, network: PicoPose, precision: str) -> None:
    """Write weights, and banks and features of 21 objects: the same 16 views again and again."""
    save_network(work / "weights.safetensors", network, half=True)
    sha256 = file_sha256(work / "weights.safetensors")
    bank = make_bank(1, 162)
    cells, offsets = make_matcher(network, "cpu", precision).store._compute(bank.crops_rgb[:16])

    def chunks() -> Iterator[FeatureChunk]:
        for start in range(0, 162, 16):
            yield cells[: 162 - start], offsets[: 162 - start]

    for obj_id in range(1, START_OBJECTS + 1):
        write_bank(bank_path(work, obj_id), replace(bank, obj_id=obj_id))
        feature_file(bank_path(work, obj_id), weights_sha256=sha256, precision=precision, device="cpu").write(
            162, chunks()
        )


def expect_all_views(views: int) -> None:
    """Stop if features are computed, which is reported in parts."""
    if views != 162:
        sys.exit("the features were computed again")


def second_start(work: Path, precision: str) -> dict[str, float]:
    """Return what a start from `make_start`'s files costs up to the first estimate, in this process."""
    clock = Clock()
    weights = work / "weights.safetensors"
    sha256, network = file_sha256(weights), load_inference_network(weights, device="cpu", precision=precision)
    matcher = Matcher(network, TemplateStore(network), PaperRules(HYPOTHESES))
    for obj_id in range(1, START_OBJECTS + 1):
        path = bank_path(work, obj_id)
        file = feature_file(path, weights_sha256=sha256, precision=precision, device="cpu")
        matcher.store.add_object(read_bank(path), file=file, on_progress=expect_all_views)
    ready = clock.read()
    (task, *_), (image, *_) = make_tasks(1)
    first = replace(task, detections=task.detections[:1])
    run_ours(matcher, [first], [LoadedImage(image.image_rgb, image.masks[:1])])
    return {
        "ready_s": ready["wall_s"],
        "first_estimate_s": clock.read()["wall_s"],
        "first_estimate_cpu_s": clock.read()["cpu_s"],
        "peak_memory_mb": peak_memory_mb(),
    }


def cost_over_images() -> dict[str, float]:
    """Return what ten times the images cost with the small network, in this process."""
    matcher = make_matcher(load_network(bundled_weights()), "cpu", "fp32")
    for obj_id in OBJECTS:
        matcher.store.add_object(make_bank(obj_id, 24))
    (task, *_), (image, *_) = make_tasks(1)
    costs, peaks = [], []
    for count in (SCALE_IMAGES, SCALE_IMAGES, 10 * SCALE_IMAGES, SCALE_IMAGES):  # the first warms up
        clock = Clock()
        run_ours(matcher, [replace(task, im_id=0)] * count, [image])
        costs.append(clock.read())
        peaks.append(peak_memory_mb())
    _, before, ten_times, after = costs
    ratios = {key: ten_times[key] / ((before[key] + after[key]) / 2) for key in before}
    return {
        "images": SCALE_IMAGES,
        "wall_s_of_10_times": ten_times["wall_s"],
        "ratio_wall": ratios["wall_s"],
        "ratio_cpu": ratios["cpu_s"],
        "peak_memory_mb": peaks[1],
        "peak_memory_mb_of_10_times": peaks[2],
    }


def in_a_child(*arguments: str) -> dict[str, float]:
    """Return what this script reports in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def pose_differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return for each detection the largest difference between two poses' entries."""
    return np.abs(a - b).max(axis=(1, 2))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return every number of the benchmark."""
    device = choose_device(arguments.device)
    precisions = ("fp32", "bf16") if has_fast_bf16(device) else ("fp32",)
    torch.manual_seed(0)
    network = load_network(arguments.weights, device) if arguments.weights else PicoPose(VIT_L).eval().to(device)
    banks = {obj_id: make_bank(obj_id, arguments.views) for obj_id in OBJECTS}
    tasks, images = make_tasks(arguments.images)
    poses, released = run_released(network, banks, tasks, images, device)
    result: dict[str, Any] = {
        "device": device_name(device),
        "detections": len(poses),
        "views": arguments.views,
        "released": released,
    }
    half = store_in_bf16(copy.deepcopy(network)) if "bf16" in precisions else network
    flops = arithmetic(network, arguments.views) if device == "cpu" else {}
    for precision in precisions:
        of_precision = half if precision == "bf16" else network
        found, numbers = measure_ours(of_precision, banks, tasks, images, device, precision)
        for name in ("cold", "warm"):
            ratios = {key: released[key] / numbers[name][key] for key in released}
            numbers[f"speed_up_{name}"] = {"wall": ratios["wall_s"], "cpu": ratios["cpu_s"]}
        differences = pose_differences(poses, found)
        numbers |= {
            "same_poses": int((differences < 1e-3).sum()),
            "median_pose_difference": float(np.median(differences)),
        }
        if flops:
            peak = peak_flops(torch.bfloat16 if precision == "bf16" else torch.float32)
            bound = sum(flops.values()) / peak
            numbers |= {"peak_gflops_a_core": peak / 1e9, "bound_cpu_s": bound}
            numbers["share_of_bound"] = bound / numbers["warm"]["cpu_s"]
        result[precision] = numbers
        print(json.dumps({"released": released, precision: numbers}), file=sys.stderr)  # the rest takes minutes more
    if flops:
        result["gflop_a_detection"] = {name: count / 1e9 for name, count in flops.items()}
    if device == "cpu" and len(precisions) > 1:
        result["bf16"]["flow_against_fp32"] = compare_flows(network, half)
    result["peak_memory_mb"] = peak_memory_mb()
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        make_start(Path(work), half, precisions[-1])
        result["second_start"] = in_a_child("--child", work, precisions[-1])
        print(json.dumps(result["second_start"]), file=sys.stderr)
    result["cost_over_images"] = in_a_child("--child")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--views", type=int, default=24)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/bench_infer.json")
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        numbers = second_start(Path(arguments.child[0]), arguments.child[1]) if arguments.child else cost_over_images()
        print(json.dumps(numbers))
        return
    run = describe_run()
    result = measure(arguments)
    print(json.dumps(result, indent=1))
    write_result(arguments.output, run | result)
    best = max(result[precision]["speed_up_warm"]["cpu"] for precision in ("fp32", "bf16") if precision in result)
    start = result["second_start"]
    if best < LEAST_SPEED_UP or start["first_estimate_s"] > MOST_START_S or start["peak_memory_mb"] > MOST_START_MB:
        sys.exit(f"missed: speed-up {LEAST_SPEED_UP}, start within {MOST_START_S} s and {MOST_START_MB} MB")


if __name__ == "__main__":
    main()
