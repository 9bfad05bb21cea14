"""How accurate the poses are, stage by stage, on procedural objects that no training has seen and on real photographs.

    python benchmarks/bench_accuracy.py [--weights FILE] [--objects 20] [--images 200] [--work DIR] [--real DIR]

Renders the banks, estimates and scores with the functions of the commands. Every line of the table is a BOP result file
below --work; a file that is there already, made by the same weights and the same code, is scored as it is, so a stopped
run goes on where it was. The data set is kept too: empty the folder when its generator has changed. --real adds the
BOP-format data sets in a folder; --images 0 leaves the procedural one out; --quick tries everything on a few images.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from run_info import ROOT, describe_run, write_result

import picopose_cli
from picopose_cli.bop.datasets import Dataset, object_ids, open_dataset
from picopose_cli.bop.detections import find_detections, read_detections
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.results import read_results, result_file_name, write_results
from picopose_cli.bop.targets import read_targets
from picopose_cli.bop.tasks import load_image, make_image_tasks
from picopose_cli.commands import render_templates
from picopose_cli.commands.score import score_file
from picopose_cli.crops import normalise_bgr
from picopose_cli.errors import PicoPoseError
from picopose_cli.estimation.correspondences import affine_poses, cell_centre_points, refined_pairs, released_pairs
from picopose_cli.estimation.estimator import Estimator
from picopose_cli.estimation.pipeline import estimate_images
from picopose_cli.estimation.pnp import choose_refined, choose_released, solve_refined, solve_released
from picopose_cli.estimation.queries import crop_queries, stack_queries
from picopose_cli.geometry import Floats
from picopose_cli.network.checkpoint import load_network, weights_sha256
from picopose_cli.network.device import choose_device, choose_precision, device_name
from picopose_cli.network.matching import masks_on_grid
from picopose_cli.network.offsets import OffsetEstimate
from picopose_cli.network.picopose import PicoPose
from picopose_cli.network.vit import FeatureMaps
from picopose_cli.options import CORES, InferOptions, RenderTemplatesOptions, ScoreOptions
from picopose_cli.scoring.localisation import LocalisationScores, Tally
from picopose_cli.scoring.thresholds import MSSD_THRESHOLDS
from picopose_cli.structs import ImageTask, PoseEstimate, QueryBatch, TemplateBank
from picopose_cli.templates.bank import bank_path, read_bank
from picopose_cli.training.batches import ViewBatch
from picopose_cli.training.synthetic_bop import DETECTIONS, write_procedural_dataset
from picopose_cli.training.targets import affine_targets
from picopose_cli.training.validation import view_angles_deg

Item = TypeVar("Item")

SEED = 20
"""Of the procedural data set."""
QUICK = {"objects": 3, "images": 6}
DRAWS = 4000
CONFIDENCE_PERCENT = (2.5, 97.5)
TENTH = int(np.argmin(np.abs(MSSD_THRESHOLDS - 0.1)))
"""Where the recall at an MSSD of a tenth of the diameter stands."""
UNKNOWN_TIME_S = -1.0
ESTIMATING_CODE = ("network/*.py", "estimation/*.py", "crops.py", "geometry.py")
"""Parts of the package whose change makes result files out of date."""
NUMBERS = ("AR", "AR_VSD", "AR_MSSD", "AR_MSPD", "share_mssd_below_tenth", "median_s_an_image")
WIDE = 160
"""Columns of the tables where no terminal says its own."""
CAPTION = "95 %: bootstrap over the objects; above default: AR above that of 5 hypotheses, --paper, in the same draws"
REAL_CAPTION = "no AR without depth images; each mean is over the sets that have the number"


@dataclass(frozen=True)
class Line:
    """A way to estimate: `hypotheses` 0 is the stage-2 pose of the best template; `paper` the released rules.

    `from_truth`: stage 3 starts from the nearest template and the true similarity, in place of stages 1 and 2.
    """

    slug: str
    title: str
    hypotheses: int
    paper: bool
    from_truth: bool = False

    @property
    def cost(self) -> float:
        """About how long it takes, in hypotheses of stage 3."""
        return self.hypotheses + (0 if self.from_truth else 0.5)


ORACLE = Line("oracle", "oracle: nearest template", 0, True, from_truth=True)
DEFAULT = Line("stage3-5-paper", "stage 3, 5 hypotheses, --paper", 5, True)
REFINED = Line("stage3-5-refined", "stage 3, 5 hypotheses, --no-paper", 5, False)
FROM_TRUTH = (
    Line("truth-paper", "stage 3 from the truth, --paper", 1, True, from_truth=True),
    Line("truth-refined", "stage 3 from the truth, --no-paper", 1, False, from_truth=True),
)
LINES = (
    Line("stage2", "stage 2 alone, best template", 0, True),
    Line("stage3-1-paper", "stage 3, 1 hypothesis, --paper", 1, True),
    Line("stage3-1-refined", "stage 3, 1 hypothesis, --no-paper", 1, False),
    DEFAULT,
    REFINED,
    *FROM_TRUTH,
)
REAL_LINES = (DEFAULT, REFINED)


class StageTwo(PicoPose):
    """The network up to stage 2: it is certain of no cell, so that the estimator falls back on the stage-2 pose."""

    def offset_features(self, maps: FeatureMaps) -> tuple[torch.Tensor, ...]:
        """Return the last three maps as they are."""
        return maps[-3:]

    def regress_offsets(self, *arguments: Any, **_: Any) -> OffsetEstimate:
        """Return a flow of zeros for the pairs (N,2), the third argument."""
        pairs, grid = arguments[2], self.config.flow_grids[-1]
        flow = torch.zeros(len(pairs), 2, grid, grid, device=pairs.device)
        return OffsetEstimate((flow,), (flow[:, :1] - 1,))


class SharedEstimator(Estimator):
    """The tool's estimator, whose onboarded objects serve every line."""

    def for_line(self, line: Line) -> Estimator:
        """Return an estimator with the line's rules that has the same network and objects, and nothing else yet."""
        other = copy.copy(self)
        other._hypotheses, other._paper, other._kept = max(1, line.hypotheses), line.paper, OrderedDict()
        if not line.hypotheses:
            other._network = copy.copy(self._network)
            other._network.__class__ = StageTwo
        return other


@dataclass(frozen=True)
class TrueStarts:
    """What stages 1 and 2 should say of N detections: `views` (N,) of their `banks`, the similarity (N,3,3) crop px.

    `T_stage2` (N,4,4) metres: the pose that both imply, which is all an oracle of these stages can reach.
    """

    banks: tuple[TemplateBank, ...]
    views: tuple[int, ...]
    A_obs_from_tmpl: Floats
    T_stage2: Floats


def true_starts(banks: Sequence[TemplateBank], T_true: Floats, K: Floats, A_crop_from_image: Floats) -> TrueStarts:
    """Return the templates nearest in viewing direction, with the true similarity to N observations.

    `banks` one a detection, `T_true` (N,4,4) metres, `K` and `A_crop_from_image` (N,3,3) of the observations.
    """
    views = [
        int(view_angles_deg(torch.from_numpy(T[None]), torch.from_numpy(bank.T_tmpl_from_obj)).argmin())
        for bank, T in zip(banks, T_true, strict=True)
    ]
    chosen = list(zip(banks, views, strict=True))
    K_tmpl = np.stack([bank.K for bank in banks])
    A_crop_tmpl = np.stack([bank.A_crop_from_image[view] for bank, view in chosen])
    T_tmpl = np.stack([bank.T_tmpl_from_obj[view] for bank, view in chosen])
    targets = affine_targets(_geometry(K, A_crop_from_image, T_true), _geometry(K_tmpl, A_crop_tmpl, T_tmpl))
    A = targets.A_obs_from_tmpl.double().numpy()
    T_stage2 = affine_poses(A, A_crop_from_image, A_crop_tmpl, K, K_tmpl, T_tmpl)
    return TrueStarts(tuple(banks), tuple(views), A, T_stage2)


def _geometry(K: Floats, A_crop_from_image: Floats, T_cam_from_obj: Floats) -> ViewBatch:
    """Return views without their pictures, which the targets of stage 2 do not need."""
    no_picture = (torch.empty(0),) * 3
    return ViewBatch(
        *no_picture, *(torch.from_numpy(array).double() for array in (K, A_crop_from_image, T_cam_from_obj))
    )


@torch.inference_mode()
def offsets_from_truth(network: PicoPose, batch: QueryBatch, starts: TrueStarts, device: str) -> tuple[Floats, Floats]:
    """Return the finest flow (N,2,64,64) and certainty logits (N,64,64) of stage 3 when it starts from the truth."""
    chosen = list(zip(starts.banks, starts.views, strict=True))
    crops_rgb = np.stack([bank.crops_rgb[view] for bank, view in chosen])
    template_masks = np.stack([bank.masks[view] for bank, view in chosen])
    inputs = np.concatenate([batch.inputs, normalise_bgr(crops_rgb)])
    features = network.offset_features(network.extract(torch.from_numpy(inputs).to(device)))
    rows = torch.arange(len(chosen), device=device)
    offsets = network.regress_offsets(
        features,
        features,
        torch.stack([rows, rows + len(rows)], dim=1),
        torch.from_numpy(starts.A_obs_from_tmpl).float().to(device),
        masks_on_grid(torch.from_numpy(template_masks).to(device), network.config.grid),
    )
    return offsets.flows[-1].cpu().numpy(), offsets.certainty_logits[-1][:, 0].cpu().numpy()


def poses_from_truth(network: PicoPose, batch: QueryBatch, starts: TrueStarts, device: str) -> dict[bool, Floats]:
    """Return the poses (N,4,4) of stage 3 from the truth, by the released rules (True) and by the others (False)."""
    flows, logits = offsets_from_truth(network, batch, starts, device)
    poses: dict[bool, list[Floats]] = {True: [], False: []}
    for i, (bank, view) in enumerate(zip(starts.banks, starts.views, strict=True)):
        A_crop, K, fallback = batch.A_crop_from_image[i], batch.K[i], starts.T_stage2[i : i + 1]
        depth = bank.depth_centre_m[view]
        xyz = cell_centre_points(depth, bank.K, bank.A_crop_from_image[view], bank.T_tmpl_from_obj[view])
        released = solve_released(released_pairs(flows[i], logits[i], bank.xyz_obj_m[view], A_crop), K)
        refined = solve_refined(refined_pairs(flows[i], logits[i], xyz, depth > 0, A_crop), K)
        poses[True].append(choose_released([released], fallback))
        poses[False].append(choose_refined([refined], fallback))
    return {paper: np.stack(found) for paper, found in poses.items()}


@dataclass(frozen=True)
class Bench:
    """A data set with its banks and result files in two folders; `detections` are files by kind of mask."""

    dataset: Dataset
    detections: dict[str, Path]
    banks_dir: Path
    results_dir: Path
    weights: Path
    device: str
    workers: int

    @cached_property
    def banks(self) -> dict[int, TemplateBank]:
        """The banks of the objects that are asked for."""
        obj_ids = sorted({target.obj_id for target in read_targets(self.dataset)})
        return {obj_id: read_bank(bank_path(self.banks_dir, obj_id)) for obj_id in obj_ids}

    @cached_property
    def network(self) -> PicoPose:
        """The network on its device."""
        return load_network(self.weights, self.device)

    @cached_property
    def estimator(self) -> SharedEstimator:
        """The estimator that every line takes its own from, with the template features of all objects."""
        precision = choose_precision("auto", self.device)
        estimator = SharedEstimator(self.network, device=self.device, precision=precision, hypotheses=1, paper=True)
        for bank in shown(self.banks.values(), len(self.banks), "templates"):
            estimator.add_object(bank)
        return estimator

    def onboard(self) -> float:
        """Compute the template features, and return the seconds that it took."""
        started = time.perf_counter()
        _ = self.estimator
        return time.perf_counter() - started

    def render(self) -> None:
        """Render the banks that are not there yet."""
        root = self.dataset.root
        options = RenderTemplatesOptions(root.name, root.parent, templates=self.banks_dir, workers=self.workers)
        report = render_templates.run(options)
        if report.failed:
            raise PicoPoseError("; ".join(report.failed.values()), where=root, fix="mend or remove these meshes")

    def path(self, line: Line, masks: str) -> Path:
        """Return where the result file of a line lies."""
        name, split = self.dataset.name, self.dataset.result_split
        return self.results_dir / result_file_name(f"{line.slug}-{masks}", name, split)

    def make(self, line: Line, masks: str) -> None:
        """Write the result file of a line; stage 3 from the truth writes both of its files."""
        if line is ORACLE:
            write_results(self.path(line, masks), self._oracle(self._tasks(masks)))
        elif line.from_truth:
            for one, estimates in zip(FROM_TRUTH, self._from_truth(self._tasks(masks)), strict=True):
                write_results(self.path(one, masks), estimates)
        else:
            write_results(self.path(line, masks), self._infer(line, self._tasks(masks)))

    def _tasks(self, masks: str) -> list[ImageTask]:
        found = read_detections(self.detections[masks])
        return make_image_tasks(self.dataset, read_targets(self.dataset), found.by_image)

    def _infer(self, line: Line, tasks: Sequence[ImageTask]) -> list[PoseEstimate]:
        results = estimate_images(
            tasks,
            load_image,
            self.estimator.for_line(line),
            set(self.banks),
            batch_size=InferOptions.batch_size,
            workers=InferOptions.workers,
        )
        return [estimate for result in shown(results, len(tasks), line.title) for estimate in result.estimates]

    def _oracle(self, tasks: Iterable[ImageTask]) -> list[PoseEstimate]:
        estimates = []
        for task in tasks:
            obj_ids = [detection.obj_id for detection in task.detections]
            A_crop, K = (np.tile(matrix, (len(obj_ids), 1, 1)) for matrix in (np.eye(3), task.K))
            starts = true_starts([self.banks[obj_id] for obj_id in obj_ids], self._true(task, obj_ids), K, A_crop)
            estimates += _estimates(task, obj_ids, starts.T_stage2)
        return estimates

    def _from_truth(self, tasks: Sequence[ImageTask]) -> tuple[list[PoseEstimate], list[PoseEstimate]]:
        """Return the estimates of stage 3 from the truth, by the released rules and by the others."""
        by_rules: dict[bool, list[PoseEstimate]] = {True: [], False: []}
        for task in shown(tasks, len(tasks), "stage 3 from the truth"):
            queries, _ = crop_queries(task, load_image(task), set(self.banks))
            batch = stack_queries(queries)
            obj_ids = batch.obj_ids.tolist()
            banks = [self.banks[obj_id] for obj_id in obj_ids]
            starts = true_starts(banks, self._true(task, obj_ids), batch.K, batch.A_crop_from_image)
            for paper, poses in poses_from_truth(self.network, batch, starts, self.device).items():
                by_rules[paper] += _estimates(task, obj_ids, poses)
        return by_rules[True], by_rules[False]

    def _true(self, task: ImageTask, obj_ids: Sequence[int]) -> Floats:
        """Return the true poses (N,4,4) of an image's objects, of which each is there once."""
        return np.stack([self._truths[task.scene_id, task.im_id, obj_id] for obj_id in obj_ids])

    @cached_property
    def _truths(self) -> dict[tuple[int, int, int], Floats]:
        return {
            (scene_id, im_id, instance.obj_id): instance.T_cam_from_obj
            for scene_id in self.dataset.scene_ids()
            for im_id, instances in read_ground_truth(self.dataset, scene_id).items()
            for instance in instances
        }

    def score(self, line: Line, masks: str) -> LocalisationScores:
        """Score a line's result file as `picopose score` does."""
        root, path = self.dataset.root, self.path(line, masks)
        options = ScoreOptions((path,), root.parent, dataset=root.name, split=self.dataset.split, workers=self.workers)
        scores = score_file(path, options).scores
        assert isinstance(scores, LocalisationScores)
        return scores


def shown(items: Iterable[Item], count: int, what: str) -> Iterable[Item]:
    """Yield the items with a bar on a terminal."""
    return track(items, what, total=count, transient=True, disable=not sys.stdout.isatty())


def _estimates(task: ImageTask, obj_ids: Sequence[int], poses: Floats) -> list[PoseEstimate]:
    """Return rows of a result file for poses (N,4,4) that took no time worth knowing."""
    return [
        PoseEstimate(task.scene_id, task.im_id, obj_id, 1.0, T, UNKNOWN_TIME_S)
        for obj_id, T in zip(obj_ids, poses, strict=True)
    ]


def bootstrap_interval(values: Floats, weights: Floats) -> tuple[float, float]:
    """Return the 95 % interval of the weighted mean of `values` (N,), by drawing N of them again and again.

    The same draws every time, so that the interval of a difference is that of pairs.
    """
    drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    means = (values * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    low, high = np.percentile(means, CONFIDENCE_PERCENT)
    return float(low), float(high)


def object_recalls(objects: dict[int, Tally]) -> tuple[Floats, Floats]:
    """Return AR and number of targets (O,) of each object; the weighted mean of the first is the AR of all."""
    tallies = objects.values()
    return np.array([tally.total for tally in tallies], np.float64), np.array([tally.targets for tally in tallies])


def describe_scores(scores: LocalisationScores, path: Path) -> dict[str, Any]:
    """Return the numbers of a line; None: not known."""
    total = scores.total
    return {
        "targets": total.targets,
        "estimates": total.estimates,
        "AR": total.total,
        "AR_VSD": None if total.vsd is None else total.average_recall("vsd"),
        "AR_MSSD": total.average_recall("mssd"),
        "AR_MSPD": total.average_recall("mspd"),
        "share_mssd_below_tenth": float(total.recall("mssd")[TENTH]),
        "median_s_an_image": median_time_s(path),
    }


def median_time_s(path: Path) -> float | None:
    """Return the median over images of a result file's times, None where one is not known."""
    table = read_results(path)
    times_s = dict(zip(zip(table.scene_id, table.im_id, strict=True), table.time_s.tolist(), strict=True))
    return None if min(times_s.values()) < 0 else float(np.median(list(times_s.values())))


def mean_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each line the plain means over the data sets, each number's over those that have it."""
    means = []
    for title in dict.fromkeys(row["line"] for row in rows):
        of_line = [row for row in rows if row["line"] == title]
        known = {name: [row[name] for row in of_line if row[name] is not None] for name in NUMBERS}
        numbers = {name: float(np.mean(values)) if values else None for name, values in known.items()}
        counts = {name: sum(row[name] for row in of_line) for name in ("targets", "estimates")}
        means.append({"data": f"mean of {len(of_line)}", "line": title, **counts, **numbers})
    return means


def make_missing(bench: Bench, jobs: Sequence[tuple[Line, str]], console: Console) -> None:
    """Make the result files that are not there yet, and say about how long the rest will take."""
    missing = [job for job in jobs if not bench.path(*job).is_file()]
    if any(not line.from_truth for line, _ in missing):
        console.print(f"{bench.dataset.name}: template features: {bench.onboard():.0f} s")
    spent_s, done = 0.0, 0.0
    for number, (line, masks) in enumerate(missing, start=1):
        started = time.perf_counter()
        if not bench.path(line, masks).is_file():
            bench.make(line, masks)
        spent_s, done = spent_s + time.perf_counter() - started, done + line.cost
        left = sum(later.cost for later, _ in missing[number:])
        left_text = f", about {left * spent_s / done / 60:.0f} min left" if done and left else ""
        what = f"{bench.dataset.name}, {masks} masks, {line.title}"
        console.print(f"{what}: {time.perf_counter() - started:.0f} s{left_text}")


def measure_procedural(bench: Bench, console: Console) -> list[dict[str, Any]]:
    """Return a row for each line and kind of mask, after making the result files that are missing."""
    jobs = [(line, masks) for masks in bench.detections for line in lines_with(masks)]
    make_missing(bench, [(ORACLE, "gt"), *jobs], console)
    defaults = {masks: bench.score(DEFAULT, masks) for masks in bench.detections}
    rows = [_procedural_row(bench, line, masks, defaults[masks]) for line, masks in jobs]
    return [_procedural_row(bench, ORACLE, "gt", None), *rows]


def lines_with(masks: str) -> tuple[Line, ...]:
    """Return the lines of a kind of mask; what starts from the truth is measured with the true masks only."""
    return LINES if masks == "gt" else tuple(line for line in LINES if not line.from_truth)


def _procedural_row(bench: Bench, line: Line, masks: str, default: LocalisationScores | None) -> dict[str, Any]:
    """Return a line's numbers with the intervals of its AR and of what it is above the tool's default's."""
    scores = bench.score(line, masks)
    recalls, targets = object_recalls(scores.objects)
    row = {"line": line.title, "masks": masks, **describe_scores(scores, bench.path(line, masks))}
    row["AR_95"] = bootstrap_interval(recalls, targets)
    if default is not None:
        gains = recalls - object_recalls(default.objects)[0]
        row["AR_above_default"] = float(np.average(gains, weights=targets))
        row["AR_above_default_95"] = bootstrap_interval(gains, targets)
    return row


def measure_real(
    folder: Path, made_by: str, arguments: argparse.Namespace, console: Console
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return a row for each data set of real photographs and line, and why the others were left out."""
    rows, skipped = [], {}
    for name in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        try:
            dataset, detections = open_real(name, folder)
            bench = make_bench(dataset, {"detections": detections}, made_by, arguments)
            make_missing(bench, [(line, "detections") for line in REAL_LINES], console)
            for line in REAL_LINES:
                scores, path = bench.score(line, "detections"), bench.path(line, "detections")
                rows.append({"data": name, "line": line.title, **describe_scores(scores, path)})
        except PicoPoseError as error:
            skipped[name] = error.what.replace(f"{folder}/", "")
            console.print(f"{name} is skipped: {skipped[name]}")
    return rows, skipped


def open_real(name: str, folder: Path) -> tuple[Dataset, Path]:
    """Return a data set and its detections; raises PicoPoseError that says what it lacks to be scored."""
    dataset = open_dataset(name, folder)
    object_ids(dataset)
    if not dataset.has_public_gt:
        raise PicoPoseError("there is no ground truth", where=dataset.split_dir)
    found = sorted(dataset.root.glob("detections*.json*"))
    return dataset, found[0] if len(found) == 1 else find_detections(dataset, folder)


def accuracy_table(title: str, caption: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows as a table for a terminal."""
    heads = ("AR", "VSD", "MSSD", "MSPD", "MSSD<.1d", "s/image")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left", caption=caption)
    named = "masks" if "masks" in rows[0] else "data"
    for head in (named, "line"):
        table.add_column(head)
    for head in ("found", *heads, *(("AR 95 %", "above default, 95 %") if named == "masks" else ())):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        cells = [_number(row[name]) for name in NUMBERS]
        if named == "masks":
            cells += [_interval(row["AR_95"]), _above(row)]
        table.add_row(row[named], row["line"], f"{row['estimates']}/{row['targets']}", *cells)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(ends: tuple[float, float], sign: str = "") -> str:
    return f"{ends[0]:{sign}.3f} {ends[1]:{sign}.3f}"


def _above(row: dict[str, Any]) -> str:
    if "AR_above_default" not in row:
        return "-"
    return f"{row['AR_above_default']:+.3f} ({_interval(row['AR_above_default_95'], '+')})"


def procedural_bench(made_by: str, arguments: argparse.Namespace) -> Bench:
    """Return the procedural data set with its banks, both made where they are missing."""
    name = f"unseen{arguments.objects}x{arguments.images}"
    root = arguments.work / "data" / name
    if not all((root / file).is_file() for file in DETECTIONS.values()):  # they are written last
        started = time.perf_counter()
        write_procedural_dataset(root.parent, name, objects=arguments.objects, images=arguments.images, seed=SEED)
        print(f"{name} written in {time.perf_counter() - started:.0f} s")
    detections = {masks: root / file for masks, file in DETECTIONS.items()}
    return make_bench(open_dataset(name, root.parent), detections, made_by, arguments)


def make_bench(dataset: Dataset, detections: dict[str, Path], made_by: str, arguments: argparse.Namespace) -> Bench:
    """Return a data set with its banks rendered; `made_by` says which weights and code its result files are from."""
    made_by = f"{data_sha256(dataset)[:8]}-{made_by}"
    folders = arguments.work / "banks" / dataset.name, arguments.work / "results" / dataset.name / made_by
    bench = Bench(dataset, detections, *folders, arguments.weights, arguments.device, arguments.workers)
    bench.render()
    return bench


def hash_files(root: Path, paths: Iterable[Path]) -> str:
    """Return the SHA-256 of some files below `root` and of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def data_sha256(dataset: Dataset) -> str:
    """Return the SHA-256 of what a data set says in JSON: poses, cameras, targets, detections, sizes of its models."""
    of_scenes = dataset.split_dir.glob("*/*.json")
    return hash_files(dataset.root, [*dataset.root.glob("*.json"), *dataset.root.glob("models*/*.json"), *of_scenes])


def code_sha256() -> str:
    """Return the SHA-256 of the code that makes poses."""
    package = Path(picopose_cli.__file__).parent
    return hash_files(package, [path for place in ESTIMATING_CODE for path in package.glob(place)])


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights/mini.safetensors")
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--images", type=int, default=200, help="of the procedural data set; 0: leave it out")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "picopose-bench-accuracy")
    parser.add_argument("--real", type=Path, help="folder of BOP-format data sets of real photographs")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK['objects']} objects, {QUICK['images']} images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=CORES, help="processes that render and score")
    parser.add_argument("--output", type=Path, help="results/bench_accuracy.json, or with --quick a file below --work")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(QUICK)
    folder = arguments.work if arguments.quick else Path(__file__).parent / "results"
    arguments.output = arguments.output or folder / "bench_accuracy.json"
    return arguments


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    run, console = describe_run(), Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDE)
    arguments.device = choose_device(arguments.device)
    sha256 = weights_sha256(arguments.weights)
    made_by = f"{sha256[:8]}-{code_sha256()[:8]}-{arguments.device.replace(':', '')}"
    weights = {"weights": arguments.weights.name, "weights_sha256": sha256}
    result: dict[str, Any] = {**run, "device": device_name(arguments.device), **weights}
    if arguments.images:
        bench = procedural_bench(made_by, arguments)
        rows = measure_procedural(bench, console)
        result |= {"objects": arguments.objects, "images": arguments.images, "seed": SEED}
        result |= {"data_sha256": data_sha256(bench.dataset), "rows": rows}
        console.print(accuracy_table(f"{arguments.objects} unseen objects, {arguments.images} images", CAPTION, rows))
    if arguments.real is not None:
        rows, skipped = measure_real(arguments.real, made_by, arguments, console)
        result |= {"real": rows, "real_means": mean_rows(rows), "real_skipped": skipped}
        if rows:
            console.print(accuracy_table("real photographs", REAL_CAPTION, [*rows, *result["real_means"]]))
    return result


def main() -> None:
    arguments = read_arguments()
    try:
        result = measure(arguments)
    except PicoPoseError as error:
        sys.exit(f"bench_accuracy: {error}")
    write_result(arguments.output, result)


if __name__ == "__main__":
    main()
