"""Fit the weights of `picopose_cli/pose/confidence.py` on generated data, and say how well they predict.

    python benchmarks/calibrate_confidence.py [DATA ...] [--images 20] [--work DIR] [--depth]

DATA are folders of BOP data sets as `synthesis` writes them, with detections_noisy.json. Without any, data sets of the
benchmark's classes are written with other seeds: no object and no image of the benchmark may be used. Every pose that
refinement compares, of right and of wrong detections, is a sample: is its MSSD below a tenth of the diameter? The
tables are of predictions for each half of the objects by weights that were fitted on the other half, and of the present
weights; the weights that are printed are fitted on all objects. Samples are kept below --work as long as data and code
are the same. With --depth the poses are finished on the data sets' depth, too, which should be that
of a sensor.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy.bench import NOISY, Settings
from accuracy.classes import CLASSES
from accuracy.data import SEED, code_sha256, data_sha256, written_bench
from run_info import ROOT, describe_run, write_result

from picopose_cli.base.options import InferOptions
from picopose_cli.base.symmetries import symmetry_transforms
from picopose_cli.base.types import Array
from picopose_cli.bop.datasets import Dataset, mesh_path, read_object_infos
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.network.local_matcher import load_local_features
from picopose_cli.pose import confidence
from picopose_cli.pose.contour_poses import ContourPose
from picopose_cli.pose.depth_refinement import DepthPose, DepthRefiner
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.pose.feature_file import feature_file
from picopose_cli.pose.finishing import finish_poses
from picopose_cli.pose.image_groups import ImageGroup
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.queries import crop_queries, stack_queries
from picopose_cli.pose.refine import RefinedPose, Refiner
from picopose_cli.pose.rules import RankedPose
from picopose_cli.pose.solve import RobustPose
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.runs.inputs import RunInputs, load_image, read_inputs
from picopose_cli.runs.onboarding import open_matcher
from picopose_cli.scoring.pose_errors import mssd
from picopose_cli.scoring.thresholds import MSSD_THRESHOLDS
from picopose_cli.synthesis.bop_dataset import DETECTIONS
from picopose_cli.synthesis.bop_models import textured_object
from picopose_cli.templates.bank import read_bank

KINDS = {
    "refined": (confidence.REFINED_OFFSETS, confidence.REFINED_WEIGHTS),
    "contours": (confidence.CONTOUR_OFFSETS, confidence.CONTOUR_WEIGHTS),
    "unrefined": (confidence.UNREFINED_OFFSETS, confidence.UNREFINED_WEIGHTS),
    "depth": (confidence.DEPTH_OFFSETS, confidence.DEPTH_WEIGHTS),
}
"""Offsets and present weights by kind of pose."""
EARLIER = {
    "refined": (1.09, 0.93, 2.75, 0.0, 4.61),
    "contours": (6.0, 2.0, 0.0, 4.0),
    "unrefined": (2.23, 1.8, 0.0, 4.9),
    "depth": confidence.DEPTH_WEIGHTS,
}
"""Weights before the first fit with wrong detections, of contours a guess: from these a fit starts."""
SEED_STEP = 1000
"""Between a benchmark's seed and that of the data here."""
RIGHT_DIAMETERS, WRONG_DIAMETERS = 0.1, 1.0
"""Error from which on a pose is wrong, and error of those that are farther off than any threshold."""
BINS, NEWTON_STEPS = 10, 30
PRIOR, WEAK_PRIOR = 10.0, 0.5
"""Precision of the earlier weights, and of the last one (that of size, which is new) and the constant: with it, the log
loss for objects that were left out is .324 in place of .344 (four development sets, 558 detections)."""
Weights = Mapping[str, Array]


@dataclass(frozen=True)
class Sample:
    """A pose of a detection: what its confidence is made of, and its MSSD in diameters."""

    obj: str
    detection: str
    kind: str
    quantities: tuple[float, ...]
    error: float


def main() -> None:
    """Write results/calibrate_confidence.json and print the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="*", metavar="DATA")
    parser.add_argument("--weights", type=Path, default=ROOT / "weights/mini.safetensors")
    parser.add_argument("--objects", type=int, default=12, help="of each data set that is written")
    parser.add_argument("--images", type=int, default=20, help="of each data set")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "picopose-calibrate")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--depth", action="store_true", help="poses that are finished on depth, in place of the others")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/calibrate_confidence.json")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    samples = [one for inputs in every_inputs(arguments) for one in kept_samples(inputs, arguments)]
    run = describe_run()
    for root in arguments.data:
        run["command"] = run["command"].replace(str(root), root.name)
    run["command"] = run["command"].replace(str(arguments.work), "DIR")
    write_result(arguments.output, run | calibrated(samples))


def every_inputs(arguments: argparse.Namespace) -> Iterator[RunInputs]:
    """Yield the inputs of a run on each data set, with all its detections."""
    depth = "on" if arguments.depth else "off"
    options = InferOptions(
        "", weights=arguments.weights, targets="bop24", device="cpu", limit=arguments.images, depth=depth
    )
    for root in arguments.data:
        yield read_inputs(of_dataset(options, root, root / "templates", arguments.work))
    if arguments.data:
        return
    settings = Settings(arguments.work, arguments.weights, "cpu", "fp32", arguments.workers)
    for one in CLASSES:
        name, objects = f"calibrate-{one.name}", arguments.objects
        shared = "calibrate-textured" if one.make_object is textured_object else None
        seed = (SEED if shared else one.seed) + SEED_STEP
        bench = written_bench(name, objects, arguments.images, settings, seed, one.make_object, one.conditions, shared)
        yield read_inputs(of_dataset(options, bench.dataset.root, bench.banks_dir, arguments.work))


def of_dataset(options: InferOptions, root: Path, templates: Path, work: Path) -> InferOptions:
    """Return the options of a run on a data set."""
    output = work / f"calibrate_{root.name.replace('-', '')}-test.csv"
    detections = str(root / DETECTIONS[NOISY])
    return replace(options, dataset=str(root.resolve()), templates=templates, detections=detections, output=output)


def kept_samples(inputs: RunInputs, arguments: argparse.Namespace) -> list[Sample]:
    """Return the samples of a data set, computed where they are not kept yet."""
    name, code = inputs.dataset.name, code_sha256()[:8]
    kind = "depth-" if arguments.depth else ""
    path = arguments.work / f"samples-{kind}{name}-{arguments.images}-{data_sha256(inputs.dataset)[:8]}-{code}.json"
    if not path.is_file():
        samples = samples_of(inputs, arguments.workers)
        path.write_text(json.dumps([asdict(one) for one in samples]))
    found = [Sample(**{**one, "quantities": tuple(one["quantities"])}) for one in json.loads(path.read_text())]
    print(f"{name}: {len({one.detection for one in found})} detections, {len(found)} poses", flush=True)
    return found


def samples_of(inputs: RunInputs, workers: int) -> list[Sample]:
    """Return the samples of a data set."""
    matcher, meshes = open_matcher(inputs), {}
    for one in inputs.usable_objects.values():
        file = feature_file(one.bank, weights_sha256=inputs.weights_sha256, precision=inputs.precision, device="cpu")
        matcher.store.add_object(read_bank(one.bank), file=file, info=one.symmetries)
        if one.mesh is not None:
            meshes[one.obj_id] = (one.mesh, one.provenance.mesh_unit)
    rounds, silhouettes = inputs.options.rounds, matcher.store.silhouettes
    renderer = EstimateRenderer(meshes)
    refiner = Refiner(load_local_features(), renderer, rounds, silhouettes)
    depth_refiner = DepthRefiner(renderer, matcher.device, silhouettes)
    judge = Judge(inputs.dataset)
    samples = []
    with ThreadPoolExecutor(workers) as threads:
        for group in inputs.groups:
            samples += group_samples(group, matcher, refiner, depth_refiner, judge, threads)
    return samples


def group_samples(
    group: ImageGroup,
    matcher: Matcher,
    refiner: Refiner,
    depth_refiner: DepthRefiner,
    judge: Judge,
    threads: ThreadPoolExecutor,
) -> Iterator[Sample]:
    """Yield the samples of images that go through the network together, of detections with depth those by depth."""
    members = [
        (task, query)
        for task in group
        for query in crop_queries(task, load_image(task), matcher.store.obj_ids, close_ups=True)[0]
    ]
    if not members:
        return
    hypotheses = matcher.match(stack_queries([query for _, query in members]))
    poses = matcher.rules.solve(hypotheses, np.stack([query.K for _, query in members]), matcher.device)
    finished = finish_poses([query for _, query in members], poses, refiner, depth_refiner, threads)
    for (task, query), before, (after, on_depth) in zip(members, poses, finished, strict=True):
        if on_depth is not None and on_depth.problem is not None:
            continue
        obj, place = f"{judge.dataset.name}/{query.detection.obj_id}", f"{task.scene_id}/{task.im_id}/{query.position}"
        compared = after if on_depth is not None else {id(pose): pose for pose in (before[0], *after)}.values()
        for pose in compared:
            error = judge.error(task.scene_id, task.im_id, query.detection.obj_id, pose.T_cam_from_obj)
            yield Sample(obj, f"{judge.dataset.name}/{place}", *quantities(pose), error)


def quantities(pose: RankedPose) -> tuple[str, tuple[float, ...]]:
    """Return the kind of a pose and what its confidence is made of."""
    if isinstance(pose, RefinedPose):
        return "refined", pose.quantities
    if isinstance(pose, ContourPose):
        return "contours", pose.quantities
    if isinstance(pose, DepthPose):
        return "depth", pose.quantities
    assert isinstance(pose, RobustPose)
    return "unrefined", pose.quantities


class Judge:
    """Compares poses with the ground truth of a data set."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._infos = read_object_infos(dataset)
        self._points_m = {one: read_mesh(mesh_path(dataset, one), "mm").vertices_m for one in self._infos}
        self._truth = {scene_id: read_ground_truth(dataset, scene_id) for scene_id in dataset.scene_ids()}

    def error(self, scene_id: int, im_id: int, obj_id: int, T: Array) -> float:
        """Return the MSSD of a pose (4,4) to the nearest instance, in diameters, at most WRONG_DIAMETERS."""
        true = [one.T_cam_from_obj for one in self._truth[scene_id].get(im_id, ()) if one.obj_id == obj_id]
        if not true or not np.isfinite(T).all():
            return WRONG_DIAMETERS
        info = self._infos[obj_id]
        errors_m = mssd(T[None], np.stack(true), self._points_m[obj_id], symmetry_transforms(info))
        return min(float(errors_m.min()) / info.diameter_m, WRONG_DIAMETERS)


def calibrated(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the weights fitted on all objects, and tables for each half of them by those of the other half."""
    objects = sorted({one.obj for one in samples})
    halves = [[one for one in samples if one.obj in objects[i::2]] for i in range(2)]
    kinds = [kind for kind in KINDS if all(any(one.kind == kind for one in half) for half in halves)]
    of_other = [fitted(halves[1], kinds), fitted(halves[0], kinds)]
    present = {kind: np.array(KINDS[kind][1]) for kind in kinds}
    weights = fitted(samples, kinds)
    result: dict[str, Any] = {"objects": len(objects), "poses": len(samples), "kinds": {}}
    for kind in kinds:
        designs = [design(half, kind) for half in halves]
        right = np.concatenate([right for _, right in designs])
        found = {"weights": weights[kind].round(2).tolist()}
        for name, used in (("fitted", of_other), ("present", [present, present])):
            predicted = [sigmoid(X @ each[kind]) for (X, _), each in zip(designs, used, strict=True)]
            found[name] = reliability(np.concatenate(predicted), right)
            print(f"{kind}, {name} weights: calibration error {found[name]['error']:.3f}, {found['weights']}")
        result["kinds"][kind] = found
    for name, used in (("chosen_by_fitted", of_other), ("chosen_by_present", [present, present])):
        result[name] = found = chosen(halves, used)
        print(f"{name}: AR MSSD {found['AR_MSSD']:.4f}, calibration error {found['error']:.3f}")
    return result


def fitted(samples: Sequence[Sample], kinds: Sequence[str]) -> Weights:
    """Return the weights of each kind by the samples."""
    return {kind: regress(*design(samples, kind), np.array(EARLIER[kind])) for kind in kinds}


def design(samples: Sequence[Sample], kind: str) -> tuple[Array, Array]:
    """Return the logarithms of the quantities and ones (N,Q+1), and which poses are right (N,), of a kind."""
    of_kind = [one for one in samples if one.kind == kind]
    X = np.log(np.array([one.quantities for one in of_kind]) + np.array(KINDS[kind][0]))
    right = np.array([one.error < RIGHT_DIAMETERS for one in of_kind], float)
    return np.column_stack([X, np.ones(len(X))]), right


def chosen(halves: Sequence[Sequence[Sample]], weights: Sequence[Weights]) -> dict[str, Any]:
    """Return accuracy and reliability of the most confident pose of each detection, by the weights for its half."""
    best: dict[str, tuple[float, float]] = {}
    for half, of_half in zip(halves, weights, strict=True):
        for one in half:
            row = np.append(np.log(np.array(one.quantities) + np.array(KINDS[one.kind][0])), 1)
            found = float(sigmoid(row @ of_half[one.kind])), one.error
            best[one.detection] = max(best.get(one.detection, found), found, key=lambda pair: pair[0])
    predicted, errors = np.array(list(best.values())).T
    recall = float((errors[:, None] < MSSD_THRESHOLDS).mean())
    right = (errors < RIGHT_DIAMETERS).astype(float)
    return {"AR_MSSD": recall, "log_loss": log_loss(predicted, right), **reliability(predicted, right)}


def log_loss(predicted: Array, right: Array) -> float:
    """Return the mean negative logarithm of the probability of what is true."""
    return float(-np.log(np.where(right > 0, predicted, 1 - predicted).clip(1e-9)).mean())


def reliability(predicted: Array, right: Array) -> dict[str, Any]:
    """Return the expected calibration error of probabilities (N,) and its table: mean and share by tenths."""
    bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
    table = [
        {"poses": int(mask.sum()), "confidence": float(predicted[mask].mean()), "right": float(right[mask].mean())}
        for mask in (bins == i for i in range(BINS))
        if mask.any()
    ]
    error = sum(row["poses"] * abs(row["confidence"] - row["right"]) for row in table) / len(predicted)
    return {"poses": len(predicted), "error": error, "reliability": table}


def regress(X: Array, right: Array, earlier: Array) -> Array:
    """Return the weights (Q,) of the logistic regression of `right` (N,) on `X` (N,Q), whose last column is ones.

    They are drawn to the `earlier` ones (Q,).
    """
    prior = np.full(X.shape[1], PRIOR)
    prior[-2:] = WEAK_PRIOR
    weights = np.zeros(X.shape[1])  # where the curvature is largest: Newton steps from there do not diverge
    for _ in range(NEWTON_STEPS):
        predicted = sigmoid(X @ weights)
        gradient = X.T @ (predicted - right) + prior * (weights - earlier)
        curvature = X.T @ (X * (predicted * (1 - predicted))[:, None]) + np.diag(prior)
        weights -= np.linalg.solve(curvature, gradient)
    return weights


def sigmoid(values: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-values)))


if __name__ == "__main__":
    main()
