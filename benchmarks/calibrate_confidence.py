"""Fit the weights of `picopose_cli/pose/confidence.py` on generated data, and say how well they predict.

    python benchmarks/calibrate_confidence.py [--objects 12] [--images 60] [--work DIR]

Data sets of the benchmark's classes are written with other seeds, so that no object and no image of the benchmark is
used. Every refined pose, and every pose before refinement, is a sample: is its MSSD below a tenth of the diameter? The
reliability table is that of predictions for objects that were left out of the fit, in five parts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accuracy.bench import Bench, Settings
from accuracy.classes import CLASSES
from accuracy.data import SEED, written_bench
from run_info import ROOT, describe_run, write_result

from picopose_cli.base.options import DEFAULT_REFINE_ROUNDS
from picopose_cli.base.symmetries import symmetry_transforms
from picopose_cli.base.tasks import ImageTask
from picopose_cli.base.types import GRID_CELLS, Array
from picopose_cli.bop.datasets import mesh_path, read_object_infos
from picopose_cli.network.local_matcher import load_local_features
from picopose_cli.pose import confidence
from picopose_cli.pose.contour_poses import ContourPose
from picopose_cli.pose.pipeline import DEFAULT_BATCH_SIZE, plan_groups
from picopose_cli.pose.queries import crop_queries, stack_queries
from picopose_cli.pose.refine import RefinedPose, Refiner, Subject
from picopose_cli.pose.solve import RobustPose
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.runs.inputs import load_image
from picopose_cli.scoring.pose_errors import mssd
from picopose_cli.synthesis.bop_models import textured_object

OFFSETS = {
    "refined": confidence.REFINED_OFFSETS,
    "contours": confidence.CONTOUR_OFFSETS,
    "unrefined": confidence.UNREFINED_OFFSETS,
}
"""By kind of pose."""
SEED_STEP = 1000
"""Between a benchmark's seed and that of the data here."""
RIGHT_DIAMETERS = 0.1
PARTS, BINS, PRIOR, NEWTON_STEPS = 5, 10, 0.5, 30


@dataclass(frozen=True)
class Sample:
    """A pose: its object, what its confidence is made of, and whether it is right."""

    obj: str
    quantities: tuple[float, ...]
    right: bool


def main() -> None:
    """Write results/calibrate_confidence.json and print the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights/mini.safetensors")
    parser.add_argument("--objects", type=int, default=12)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "picopose-calibrate")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/calibrate_confidence.json")
    arguments = parser.parse_args()
    settings = Settings(arguments.work, arguments.weights, "cpu", "fp32", arguments.workers)
    found = [samples_of(bench) for bench in benches(arguments.objects, arguments.images, settings)]
    result = {
        kind: fitted([sample for of_set in found for sample in of_set[kind]], of_kind)
        for kind, of_kind in OFFSETS.items()
    }
    for name, found in result.items():
        print(f"{name}: weights {found['weights']}, expected calibration error {found['calibration_error']:.3f}")
    write_result(arguments.output, describe_run() | result)


def benches(objects: int, images: int, settings: Settings) -> Iterator[Bench]:
    """Yield a data set of textured objects and one of each class, those in poor conditions with fewer images."""
    textured = "calibrate-textured"
    yield written_bench(textured, objects, images, settings, SEED + SEED_STEP, textured_object)
    for one in CLASSES[1:]:  # the first is that of the textured objects
        shared = textured if one.make_object is textured_object else None
        count, seed = (images // 3 if shared else images), one.seed + SEED_STEP
        name = f"calibrate-{one.name}"
        yield written_bench(name, objects, count, settings, seed, one.make_object, one.conditions, shared)


def samples_of(bench: Bench) -> dict[str, list[Sample]]:
    """Return the samples of a data set's detections with rough masks, by kind of pose."""
    matcher = bench.matcher("searched")
    refiner = Refiner(load_local_features(), bench.renderer, DEFAULT_REFINE_ROUNDS, matcher.store.silhouettes)
    found: dict[str, list[Sample]] = {kind: [] for kind in OFFSETS}
    with ThreadPoolExecutor(bench.settings.workers) as threads:
        for group in plan_groups(bench.tasks("rough"), DEFAULT_BATCH_SIZE):
            members = [
                (task, query)
                for task in group
                for query in crop_queries(task, load_image(task), matcher.store.obj_ids, close_ups=True)[0]
            ]
            hypotheses = matcher.match(stack_queries([query for _, query in members]))
            poses = matcher.rules.solve(hypotheses, np.stack([query.K for _, query in members]), matcher.device)
            subjects = [
                Subject(query.detection.obj_id, query.close_up, of_query)
                for (_, query), of_query in zip(members, poses, strict=True)
            ]
            refined = refiner.refine(subjects, threads)
            for (task, query), before, after in zip(members, poses, refined, strict=True):
                for pose in {id(pose): pose for pose in (before[0], *after)}.values():
                    kind, values = quantities(pose)
                    right = is_right(bench, task, query.detection.obj_id, pose.T_cam_from_obj)
                    found[kind].append(Sample(f"{bench.banks_dir.name}/{query.detection.obj_id}", values, right))
    print(f"{bench.dataset.name}: {len(found['refined'])} refined poses", flush=True)
    return found


def quantities(pose: RefinedPose | ContourPose | RobustPose) -> tuple[str, tuple[float, ...]]:
    """Return the kind of a pose and what its confidence is made of."""
    if isinstance(pose, RefinedPose):
        return "refined", (pose.flow_support, pose.match_support, pose.mask_iou)
    if isinstance(pose, ContourPose):
        return "contours", (pose.agreement, pose.mask_iou)
    return "unrefined", (pose.soft_inliers / GRID_CELLS**2, pose.alignment)


def is_right(bench: Bench, task: ImageTask, obj_id: int, T: Array) -> bool:
    """Return whether the MSSD of a pose is below a tenth of the object's diameter."""
    info = read_object_infos(bench.dataset)[obj_id]
    points_m = read_mesh(mesh_path(bench.dataset, obj_id), "mm").vertices_m
    T_true = bench.truths[task.scene_id, task.im_id, obj_id]
    limit_m = RIGHT_DIAMETERS * info.diameter_m
    return bool(mssd(T[None], T_true[None], points_m, symmetry_transforms(info), limit_m=limit_m)[0, 0] < limit_m)


def fitted(samples: Sequence[Sample], offsets: Sequence[float]) -> dict[str, Any]:
    """Return the weights of a logistic regression and the reliability table of its predictions for other objects."""
    X = np.log(np.array([one.quantities for one in samples]) + np.array(offsets))
    X, right = np.column_stack([X, np.ones(len(X))]), np.array([one.right for one in samples], float)
    objects = sorted({one.obj for one in samples})
    part = np.array([objects.index(one.obj) % PARTS for one in samples])
    predicted = np.zeros(len(X))
    for left_out in range(PARTS):
        of_part = part == left_out
        predicted[of_part] = _sigmoid(X[of_part] @ regress(X[~of_part], right[~of_part]))
    bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
    table = [
        {"poses": int(mask.sum()), "confidence": float(predicted[mask].mean()), "right": float(right[mask].mean())}
        for mask in (bins == i for i in range(BINS))
        if mask.any()
    ]
    error = sum(row["poses"] * abs(row["confidence"] - row["right"]) for row in table) / len(X)
    return {"weights": regress(X, right).round(3).tolist(), "calibration_error": error, "reliability": table}


def regress(X: Array, right: Array) -> Array:
    """Return the weights (Q,) of the logistic regression of `right` (N,) on `X` (N,Q), whose last column is ones."""
    prior = np.full(X.shape[1], PRIOR)
    prior[-1] = 0
    weights = np.zeros(X.shape[1])
    for _ in range(NEWTON_STEPS):
        predicted = _sigmoid(X @ weights)
        gradient = X.T @ (predicted - right) + prior * weights
        curvature = X.T @ (X * (predicted * (1 - predicted))[:, None]) + np.diag(prior + 1e-9)
        weights -= np.linalg.solve(curvature, gradient)
    return weights


def _sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-values)))


if __name__ == "__main__":
    main()
