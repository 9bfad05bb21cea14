"""How accurate the poses are, stage by stage, on procedural objects that no training has seen and on real photographs.

    python benchmarks/bench_accuracy.py [--weights FILE] [--objects 20] [--images 200] [--work DIR] [--real DIR]

Renders the banks, estimates and scores with the functions of the commands. Every line of the table is a BOP result
file below --work. One pass of the network serves all lines that follow from the same flows; what a pass has finished
is kept in a journal, so a stopped run goes on where it was with the same weights and the same code. The data set is
kept too: empty the folder when its generator has changed. --real adds the BOP-format data sets in a folder; --images
0 leaves the procedural one out; --quick tries everything on a few images.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
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
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256
from picopose_cli.base.geometry import project_points, transform_points
from picopose_cli.base.options import DEFAULT_PROCESSES, PRECISIONS, InferOptions, RenderTemplatesOptions, ScoreOptions
from picopose_cli.base.tasks import ImageTask
from picopose_cli.base.types import Array, Correspondences, ObjectInfo, PoseEstimate, QueryBatch, TemplateBank
from picopose_cli.bop.datasets import Dataset, mesh_path, object_ids, open_dataset, read_object_infos
from picopose_cli.bop.detections import find_detections, read_detections
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.result_names import result_file_name
from picopose_cli.bop.results import read_results, write_results
from picopose_cli.bop.targets import read_image_targets, read_targets
from picopose_cli.commands import render_templates
from picopose_cli.network.checkpoint import load_network
from picopose_cli.network.devices import choose_device, choose_precision, device_name
from picopose_cli.network.matching import masks_on_grid
from picopose_cli.network.offsets import OffsetFeatures
from picopose_cli.network.picopose import PicoPose
from picopose_cli.pose.correspondences import (
    affine_poses,
    cell_centre_points,
    released_correspondences,
    rotate_to_ray,
    subcell_correspondences,
)
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.pose.inference_network import InferenceNetwork
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.pipeline import DEFAULT_BATCH_SIZE, ImageGroup, plan_groups
from picopose_cli.pose.queries import Query, crop_queries, stack_queries
from picopose_cli.pose.ransac import RANSAC_PX, RansacPose, solve_released
from picopose_cli.pose.refine import Refiner
from picopose_cli.pose.rules import DefaultRules, Hypothesis, PaperRules, RankedPose
from picopose_cli.pose.solve import RobustPose, count_soft_inliers, solve_robust
from picopose_cli.pose.template_store import TemplateStore
from picopose_cli.runs.inputs import load_image, make_image_tasks
from picopose_cli.runs.scores import score_file
from picopose_cli.scoring.detection import DetectionScores
from picopose_cli.scoring.localisation import LocalisationScores, Tally
from picopose_cli.scoring.thresholds import MSSD_THRESHOLDS
from picopose_cli.synthesis.bop_dataset import DETECTIONS, write_procedural_dataset
from picopose_cli.templates.bank import bank_path, read_bank
from picopose_cli.templates.crops import normalise_bgr
from picopose_cli.training.batches import ViewBatch
from picopose_cli.training.supervision import true_affine
from picopose_cli.training.validation_metrics import view_angles_deg

Item = TypeVar("Item")
Solution = RansacPose | RobustPose | None
Record = dict[str, list[list[Any]]]
"""Rows of a group of images by slug of the line: scene, image, object, score, pose (4,4) metres, seconds."""

SEED = 20
"""Of the procedural data set."""
SYMMETRIC_SEED, SYMMETRIC_OBJECTS = 21, 12
"""Of the data set of symmetric objects; it has half as many images."""
PROCEDURAL_MASKS = ("gt", "rough")
"""Of its detections files: those with one right detection of each target."""
NOISY = "noisy"
"""Of its detections files: the one with wrong detections too, for the detection task."""
QUICK = {"objects": 3, "images": 6}
DRAWS = 4000
CONFIDENCE_PERCENT = (2.5, 97.5)
TENTH = int(np.argmin(np.abs(MSSD_THRESHOLDS - 0.1)))
"""Where the recall at an MSSD of a tenth of the diameter stands."""
UNKNOWN_TIME_S = -1.0
SAID_EVERY = 5
"""Groups of images between two lines about the progress."""
ESTIMATING_CODE = (
    "network/*.py",
    "pose/*.py",
    "templates/*.py",
    "base/geometry.py",
    "base/grid.py",
    "base/symmetries.py",
)
"""Parts of the package whose change makes result files out of date."""
NUMBERS = ("AR", "AR_VSD", "AR_MSSD", "AR_MSPD", "share_mssd_below_tenth", "median_s_an_image")
WIDE = 160
"""Columns of the tables where no terminal says its own."""
CAPTION = "95 %: bootstrap over the objects; above: AR above --rules paper, 5 hypotheses, same draws; worst: object"
SYMMETRIC_CAPTION = "above: AR above the same line without the symmetries"
DETECTION_CAPTION = "above: mAP above that of the detector's score; 95 %: bootstrap over the objects"
REAL_CAPTION = "no AR without depth images; each mean is over the sets that have the number"


@dataclass(frozen=True)
class Line:
    """A way to estimate: which flows, and which rules turn them into a pose.

    `flows`: stage 3 as it starts from stage 2's `regressed` similarity or from the `searched` one (`unaware`: without
    the objects' symmetries), 5 hypotheses a detection, of which the first `hypotheses` are taken (0: the first one's
    stage-2 pose); or from the `truth`. `sub_cell` pairs, `robust` solver, choice by `soft_inliers`: each replaces the
    released rule. `rounds` of refinement follow. The result file's score is that of `infer` or, with
    `detector_score`, the detection's.
    """

    slug: str
    title: str
    hypotheses: int
    flows: str
    sub_cell: bool = False
    robust: bool = False
    soft_inliers: bool = False
    rounds: int = 0
    detector_score: bool = False

    @property
    def chain(self) -> Line:
        """What this line and those with more or fewer rounds have in common."""
        return replace(self, slug="", title="", rounds=0, detector_score=False)


def ours(slug: str, hypotheses: int, rounds: int = 0, flows: str = "searched") -> Line:
    """Return a line with all of the tool's default rules."""
    title = f"--rules default, {hypotheses} hypothes{'i' if hypotheses == 1 else 'e'}s, --refine {rounds}"
    return Line(slug, title, hypotheses, flows, True, True, True, rounds)


HYPOTHESES = 5
ROUNDS = 3
ORACLE = Line("oracle", "oracle: nearest template", 0, "truth")
PAPER = Line("paper5", "--rules paper, 5 hypotheses", 5, "regressed")
SEARCH_ALONE = Line("searched", "paper, searched similarity alone", 5, "searched")
OURS = ours("ours5", HYPOTHESES)
REGRESSED = (
    Line("stage2", "stage 2 alone, best template", 0, "regressed"),
    Line("paper1", "--rules paper, 1 hypothesis", 1, "regressed"),
    Line("paper3", "--rules paper, 3 hypotheses", 3, "regressed"),
    PAPER,
    Line("subcell", "paper, sub-cell pairs alone", 5, "regressed", sub_cell=True),
    Line("robust", "paper, robust solver alone", 5, "regressed", robust=True),
    Line("soft-inliers", "paper, choice by soft inliers alone", 5, "regressed", soft_inliers=True),
    replace(ours("unsearched", 5, flows="regressed"), title="these three together"),
)
REFINED = tuple(ours(f"ours5-{n}", HYPOTHESES, n) for n in range(1, ROUNDS + 1))
SEARCHED = (SEARCH_ALONE, OURS, *REFINED)
FEWER = tuple(ours(f"ours{count}-{n}", count, n) for count in (1, 3) for n in range(ROUNDS + 1))
"""Fewer hypotheses: what accuracy costs, which is asked with rough masks only."""
FROM_TRUTH = (
    Line("truth-paper", "stage 3 from the truth, paper's rules", 1, "truth"),
    replace(ours("truth-ours", 1, flows="truth"), title="stage 3 from the truth, default rules"),
)
LINES = (*REGRESSED, *SEARCHED, *FEWER, *FROM_TRUTH)
REAL_LINES = (PAPER, OURS, *REFINED)
UNAWARE = tuple(replace(line, slug=f"unaware{line.rounds}", flows="unaware") for line in (OURS, REFINED[0]))
DETECTION = (
    replace(OURS, title="--refine 0, the tool's score"),
    replace(REFINED[0], slug="detector", title="--refine 1, the detector's score", detector_score=True),
    replace(REFINED[0], title="--refine 1, the tool's score"),
)


@dataclass(frozen=True)
class Recorded(Hypothesis):
    """A hypothesis with stage 3's own numbers: `flow` (2,64,64), `logit` (64,64)."""

    flow: Array
    logit: Array


class RecordingMatcher(Matcher):
    """The tool's matcher, whose hypotheses keep their flows."""

    stage3_s = 0.0
    """Seconds spent in stage 3 so far."""

    def for_pass(self, flows: str) -> RecordingMatcher:
        """Return a matcher of the same network and objects whose stage 3 starts as a line says."""
        store = copy.copy(self.store)
        if flows == "unaware":
            store._objects = {key: replace(one, equivalent_views=None) for key, one in store._objects.items()}
        rules = PaperRules(HYPOTHESES) if flows == "regressed" else DefaultRules(HYPOTHESES)
        return RecordingMatcher(self._network, store, rules)

    def _regress_offsets(self, *arguments: Any) -> list[Hypothesis]:
        started = time.perf_counter()
        found = super()._regress_offsets(*arguments)
        self.stage3_s += time.perf_counter() - started
        return found

    def _hypotheses(
        self, batch: QueryBatch, aligned: list[Any], A: Array, flow: Array, logit: Array
    ) -> list[Hypothesis]:
        found = super()._hypotheses(batch, aligned, A, flow, logit)
        values = [[getattr(one, field.name) for field in fields(Hypothesis)] for one in found]
        return [Recorded(*of_one, flow[i], logit[i]) for i, of_one in enumerate(values)]


class Solved:
    """The hypotheses of a detection and what the rules make of them, each rule once, with the seconds that it took."""

    def __init__(self, found: Sequence[Recorded], bank: TemplateBank, A_crop: Array, K: Array) -> None:
        self._found, self._bank, self._A_crop, self._K = found, bank, A_crop, K
        self._known: dict[tuple[int, bool, bool], tuple[Correspondences, Solution, float]] = {}

    def poses(self, line: Line) -> tuple[list[RobustPose], float]:
        """Return the poses that a line's rules make of its hypotheses, the chosen one first, and the seconds of it."""
        if not line.hypotheses:
            return [RobustPose(self._fallback(line, 0), 0.0)], 0.0
        poses, seconds = zip(*(self._pose(line, i) for i in range(min(line.hypotheses, len(self._found)))), strict=True)
        return sorted(poses, key=lambda pose: -pose.selection_score), sum(seconds)

    def _pose(self, line: Line, i: int) -> tuple[RobustPose, float]:
        """Return a hypothesis' pose; its `soft_inliers` are what the line chooses by, maybe an inlier ratio."""
        key = i, line.sub_cell, line.robust
        if key not in self._known:
            started = time.perf_counter()
            pairs, solution = self._solve(line, i)
            self._known[key] = pairs, solution, time.perf_counter() - started
        pairs, solution, seconds = self._known[key]
        if solution is None:
            return RobustPose(self._fallback(line, i), 0.0), seconds
        alignment = self._found[i].alignment if line.soft_inliers else 1.0
        T = solution.T_cam_from_obj
        if line.soft_inliers:
            reason = count_soft_inliers(T, pairs, self._K, self._A_crop[0, 0])
        else:
            reason = solution.inlier_ratio if isinstance(solution, RansacPose) else inlier_ratio(T, pairs, self._K)
        return RobustPose(T, reason, alignment), seconds

    def _solve(self, line: Line, i: int) -> tuple[Correspondences, Solution]:
        one, bank = self._found[i], self._bank
        if line.sub_cell:
            depth = bank.depth_centre_m[one.view]
            xyz = cell_centre_points(depth, bank.K, bank.A_crop_from_image[one.view], bank.T_tmpl_from_obj[one.view])
            pairs = subcell_correspondences(one.flow, one.logit, xyz, depth > 0, self._A_crop)
        else:
            pairs = released_correspondences(one.flow, one.logit, bank.xyz_obj_m[one.view], self._A_crop)
        if not line.robust:
            return pairs, solve_released(pairs, self._K)
        return pairs, solve_robust(pairs, self._K, float(self._A_crop[0, 0]), self._fallback(line, i))

    def _fallback(self, line: Line, i: int) -> Array:
        """Return the stage-2 pose of a hypothesis; those of the searched similarity are turned already."""
        T = self._found[i].T_stage2
        turned: Array = rotate_to_ray(T[None])[0] if line.robust and line.flows == "regressed" else T
        return turned


def line_score(line: Line, query: Query, pose: RankedPose) -> float:
    """Return the score of a pose in a line's result file."""
    calibrated = line.soft_inliers and not line.detector_score
    return query.detection.score * (pose.confidence if calibrated else 1.0)


def inlier_ratio(T_cam_from_obj: Array, pairs: Correspondences, K: Array) -> float:
    """Return the share of pairs within the released rule's 2 px of the image."""
    off_px = project_points(K, transform_points(T_cam_from_obj, pairs.xyz_obj_m)) - pairs.uv_image
    return float((np.linalg.norm(off_px, axis=1) < RANSAC_PX).mean())


@dataclass(frozen=True)
class TrueStarts:
    """What stages 1 and 2 should say of N detections: `views` (N,) of their `banks`, the similarity (N,3,3) crop px.

    `T_stage2` (N,4,4) metres: the pose that both imply, which is all an oracle of these stages can reach.
    """

    banks: tuple[TemplateBank, ...]
    views: tuple[int, ...]
    A_obs_from_tmpl: Array
    T_stage2: Array


def true_starts(banks: Sequence[TemplateBank], T_true: Array, K: Array, A_crop_from_image: Array) -> TrueStarts:
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
    targets = true_affine(_geometry(K, A_crop_from_image, T_true), _geometry(K_tmpl, A_crop_tmpl, T_tmpl))
    A = targets.A_obs_from_tmpl.double().numpy()
    T_stage2 = rotate_to_ray(affine_poses(A, A_crop_from_image, A_crop_tmpl, K, K_tmpl, T_tmpl))
    return TrueStarts(tuple(banks), tuple(views), A, T_stage2)


def _geometry(K: Array, A_crop_from_image: Array, T_cam_from_obj: Array) -> ViewBatch:
    """Return views without their pictures, which the targets of stage 2 do not need."""
    no_picture = (torch.empty(0),) * 3
    return ViewBatch(
        *no_picture, *(torch.from_numpy(array).double() for array in (K, A_crop_from_image, T_cam_from_obj))
    )


@torch.inference_mode()
def offsets_from_truth(network: PicoPose, batch: QueryBatch, starts: TrueStarts, device: str) -> tuple[Array, Array]:
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


def poses_from_truth(network: PicoPose, batch: QueryBatch, starts: TrueStarts, device: str) -> dict[str, Array]:
    """Return the poses (N,4,4) of stage 3 from the truth, by the slug of the line."""
    flows, logits = offsets_from_truth(network, batch, starts, device)
    poses: dict[str, list[Array]] = {line.slug: [] for line in FROM_TRUTH}
    for i, (bank, view) in enumerate(zip(starts.banks, starts.views, strict=True)):
        no_pairs = Correspondences(np.empty((0, 2)), np.empty((0, 3)), np.empty(0))
        one = Recorded(view, 0.0, starts.T_stage2[i], no_pairs, 1.0, 1.0, flows[i], logits[i])
        solved = Solved([one], bank, batch.A_crop_from_image[i], batch.K[i])
        for line in FROM_TRUTH:
            poses[line.slug].append(solved.poses(line)[0][0].T_cam_from_obj)
    return {slug: np.stack(found) for slug, found in poses.items()}


@dataclass(frozen=True)
class Bench:
    """A data set with its banks and result files in two folders; `detections` are files by kind of mask."""

    dataset: Dataset
    detections: dict[str, Path]
    banks_dir: Path
    results_dir: Path
    weights: Path
    device: str
    precision: str
    workers: int

    @cached_property
    def banks(self) -> dict[int, TemplateBank]:
        """The banks of the objects that are asked for."""
        return {obj_id: read_bank(bank_path(self.banks_dir, obj_id)) for obj_id in object_ids(self.dataset)}

    @cached_property
    def network(self) -> PicoPose:
        """The network on its device."""
        return load_network(self.weights, self.device)

    @cached_property
    def matcher(self) -> RecordingMatcher:
        """The matcher that every pass takes its own from, with the template features of all objects."""
        precision = choose_precision(self.precision, self.device)
        network = InferenceNetwork(self.network, device=self.device, precision=precision)
        matcher = RecordingMatcher(network, TemplateStore(network), DefaultRules(HYPOTHESES))
        for bank in shown(self.banks.values(), len(self.banks), "templates"):
            matcher.store.add_object(bank, info=self._symmetric.get(bank.obj_id))
        return matcher

    @cached_property
    def _symmetric(self) -> dict[int, ObjectInfo]:
        return {obj_id: info for obj_id, info in read_object_infos(self.dataset).items() if info.is_symmetric}

    def onboard(self) -> float:
        """Compute the template features, and return the seconds that it took."""
        started = time.perf_counter()
        _ = self.matcher
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

    def make(self, lines: Sequence[Line], masks: str, console: Console) -> None:
        """Write the result files of lines that follow from the same flows; what has been done is not done again.

        Of lines that differ in their rounds of refinement that with one round less must come before.
        """
        flows = lines[0].flows
        groups = plan_groups(self._tasks(masks), DEFAULT_BATCH_SIZE)
        journal = self.path(lines[-1], masks).with_name(f"{flows}-{masks}.jsonl")
        journal.parent.mkdir(parents=True, exist_ok=True)
        done = read_journal(journal)
        started, begun = time.perf_counter(), len(done)
        matcher = None if flows == "truth" else self.matcher.for_pass(flows)
        for number, group in enumerate(groups[begun:], start=begun + 1):
            record = self._from_truth(group) if matcher is None else self._estimate(group, lines, matcher)
            done.append(record)
            with journal.open("a") as file:
                file.write(json.dumps(record) + "\n")
            if number % SAID_EVERY == 0 or number == len(groups):
                spent_s = time.perf_counter() - started
                left_s = spent_s / (number - begun) * (len(groups) - number)
                what = f"{self.dataset.name}, {masks} masks, {flows}: {number}/{len(groups)} groups"
                console.print(f"{what}, {spent_s:.0f} s, about {left_s / 60:.0f} min left")
        for line in lines:
            rows = [row for record in done for row in record[line.slug]]
            write_results(self.path(line, masks), [PoseEstimate(*row[:4], np.array(row[4]), row[5]) for row in rows])

    def _tasks(self, masks: str) -> list[ImageTask]:
        targets = read_image_targets(self.dataset) if masks == NOISY else read_targets(self.dataset)
        return make_image_tasks(self.dataset, targets, read_detections(self.detections[masks]).by_image)

    def _estimate(self, group: ImageGroup, lines: Sequence[Line], matcher: RecordingMatcher) -> Record:
        """Return the rows of a group of images by line: one pass of the network, then every line's rules."""
        record: Record = {line.slug: [] for line in lines}
        members = [
            (task, query) for task in group for query in crop_queries(task, load_image(task), set(self.banks))[0]
        ]
        for first in range(0, len(members), DEFAULT_BATCH_SIZE):
            part = members[first : first + DEFAULT_BATCH_SIZE]
            queries = [query for _, query in part]
            batch = stack_queries(queries)
            started, before_s = time.perf_counter(), matcher.stage3_s
            matched = matcher.match(batch)
            network_s, stage3_s = time.perf_counter() - started, matcher.stage3_s - before_s
            solved = [
                Solved(of_query, self.banks[query.detection.obj_id], query.A_crop_from_image, query.K)
                for of_query, query in zip(matched.hypotheses, queries, strict=True)
            ]
            poses: dict[Line, Sequence[Sequence[RankedPose]]] = {}
            own_s: dict[Line, float] = {}
            for line in lines:
                started = time.perf_counter()
                if line.rounds:
                    earlier = self._line_before(line, lines)
                    poses[line] = self._refine(batch, matched.query_features, poses[earlier], matcher)
                    own_s[line] = own_s[earlier] + time.perf_counter() - started
                else:
                    with ThreadPoolExecutor(InferOptions.workers) as threads:
                        answers = list(threads.map(partial(Solved.poses, line=line), solved))
                    poses[line], own_s[line] = [answer[0] for answer in answers], sum(answer[1] for answer in answers)
                share_s = (network_s - stage3_s * (1 - line.hypotheses / HYPOTHESES) + own_s[line]) / len(part)
                record[line.slug] += [
                    [task.scene_id, task.im_id, query.detection.obj_id, line_score(line, query, of_query[0]),
                     of_query[0].T_cam_from_obj.tolist(), share_s]
                    for (task, query), of_query in zip(part, poses[line], strict=True)
                ]  # fmt: skip
        return {slug: with_image_times(rows) for slug, rows in record.items()}

    @staticmethod
    def _line_before(line: Line, lines: Sequence[Line]) -> Line:
        """Return the line with one round of refinement less."""
        return next(other for other in lines if other.chain == line.chain and other.rounds == line.rounds - 1)

    def _refine(
        self,
        batch: QueryBatch,
        query_features: OffsetFeatures,
        candidates: Sequence[Sequence[RankedPose]],
        matcher: RecordingMatcher,
    ) -> list[tuple[RankedPose, ...]]:
        """Return the candidates after one more round."""
        with ThreadPoolExecutor(InferOptions.workers) as threads:
            return Refiner(matcher, self._render, 1).refine(batch, query_features, candidates, threads)

    @cached_property
    def _render(self) -> EstimateRenderer:
        return EstimateRenderer({obj_id: (mesh_path(self.dataset, obj_id), "mm") for obj_id in self.banks})

    def _from_truth(self, group: ImageGroup) -> Record:
        """Return the rows of the oracle, and of stage 3 from its templates and similarities."""
        record: Record = {line.slug: [] for line in (ORACLE, *FROM_TRUTH)}
        for task in group:
            queries, _ = crop_queries(task, load_image(task), set(self.banks))
            batch = stack_queries(queries)
            obj_ids = batch.obj_ids.tolist()
            banks = [self.banks[obj_id] for obj_id in obj_ids]
            starts = true_starts(banks, self._true(task, obj_ids), batch.K, batch.A_crop_from_image)
            poses = poses_from_truth(self.network, batch, starts, self.device)
            poses[ORACLE.slug] = starts.T_stage2
            for slug, of_line in poses.items():
                record[slug] += [
                    [task.scene_id, task.im_id, obj_id, 1.0, T.tolist(), UNKNOWN_TIME_S]
                    for obj_id, T in zip(obj_ids, of_line, strict=True)
                ]
        return record

    def _true(self, task: ImageTask, obj_ids: Sequence[int]) -> Array:
        """Return the true poses (N,4,4) of an image's objects, of which each is there once."""
        return np.stack([self._truths[task.scene_id, task.im_id, obj_id] for obj_id in obj_ids])

    @cached_property
    def _truths(self) -> dict[tuple[int, int, int], Array]:
        return {
            (scene_id, im_id, instance.obj_id): instance.T_cam_from_obj
            for scene_id in self.dataset.scene_ids()
            for im_id, instances in read_ground_truth(self.dataset, scene_id).items()
            for instance in instances
        }

    def score(self, line: Line, masks: str) -> LocalisationScores:
        """Score a line's result file as `picopose score` does."""
        scores = score_file(self.path(line, masks), self._score_options(line, masks, "bop19")).scores
        assert isinstance(scores, LocalisationScores)
        return scores

    def score_detection(self, line: Line) -> DetectionScores:
        """Score a line's result file of the detection task as `picopose score --targets bop24` does."""
        scores = score_file(self.path(line, NOISY), self._score_options(line, NOISY, "bop24")).scores
        assert isinstance(scores, DetectionScores)
        return scores

    def _score_options(self, line: Line, masks: str, targets: str) -> ScoreOptions:
        root, split = self.dataset.root, self.dataset.split
        paths = (self.path(line, masks),)
        return ScoreOptions(paths, root.parent, dataset=root.name, split=split, targets=targets, workers=self.workers)


def shown(items: Iterable[Item], count: int, what: str) -> Iterable[Item]:
    """Yield the items with a bar on a terminal."""
    return track(items, what, total=count, transient=True, disable=not sys.stdout.isatty())


def with_image_times(rows: Sequence[list[Any]]) -> list[list[Any]]:
    """Return rows whose last entry, a detection's seconds, gives way to the sum over its image."""
    of_image: dict[tuple[int, int], float] = defaultdict(float)
    for row in rows:
        of_image[row[0], row[1]] += row[-1]
    return [[*row[:-1], of_image[row[0], row[1]]] for row in rows]


def read_journal(path: Path) -> list[Record]:
    """Return what a pass has finished; a last line that was cut off counts as not done, and is taken away."""
    if not path.is_file():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def bootstrap_interval(values: Array, weights: Array) -> tuple[float, float]:
    """Return the 95 % interval of the weighted mean of `values` (N,), by drawing N of them again and again.

    The same draws every time, so that the interval of a difference is that of pairs.
    """
    drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    means = (values * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    low, high = np.percentile(means, CONFIDENCE_PERCENT)
    return float(low), float(high)


def object_recalls(objects: dict[int, Tally]) -> tuple[Array, Array]:
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


def make_missing(bench: Bench, lines: Sequence[Line], masks: str, console: Console) -> None:
    """Make the result files that are not there yet."""
    missing = dict.fromkeys(line.flows for line in lines if not bench.path(line, masks).is_file())
    if any(flows != "truth" for flows in missing):
        console.print(f"{bench.dataset.name}: template features: {bench.onboard():.0f} s")
    for flows in missing:
        bench.make([line for line in lines if line.flows == flows], masks, console)


def measure_procedural(bench: Bench, console: Console) -> list[dict[str, Any]]:
    """Return a row for each line and kind of mask, after making the result files that are missing."""
    rows = []
    for masks in PROCEDURAL_MASKS:
        lines = [line for line in (ORACLE, *LINES) if is_asked(line, masks)]
        make_missing(bench, lines, masks, console)
        paper = bench.score(PAPER, masks)
        rows += [_procedural_row(bench, line, masks, None if line is ORACLE else paper) for line in lines]
    return rows


def is_asked(line: Line, masks: str) -> bool:
    """Say whether a line is measured with a kind of mask."""
    return masks == "gt" if line.flows == "truth" else masks == "rough" or line not in FEWER


def measure_symmetric(bench: Bench, console: Console) -> list[dict[str, Any]]:
    """Return rows without and with the objects' symmetries, rough masks."""
    lines = (*UNAWARE, OURS, REFINED[0])
    make_missing(bench, lines, "rough", console)
    unaware = [bench.score(line, "rough") for line in UNAWARE]
    rows = [_procedural_row(bench, line, "rough", unaware[line.rounds]) for line in lines]
    for row, line in zip(rows, lines, strict=True):
        row["line"] = f"--refine {line.rounds}, symmetries {'not ' if line in UNAWARE else ''}used"
    return rows


def measure_detection(bench: Bench, console: Console) -> list[dict[str, Any]]:
    """Return a row for each kind of score of the detection task, from detections of which many are wrong."""
    make_missing(bench, DETECTION, NOISY, console)
    rows, detector = [], None
    for line in DETECTION:
        scores = bench.score_detection(line)
        objects = np.array([precision_of(scores, obj_id) for obj_id in scores.objects])
        summary = scores.summary()
        row = {"line": line.title, **{name: summary[f"bop24_{name}"] for name in ("mAP", "mAP_mssd", "mAP_mspd")}}
        weights = np.ones(len(objects))
        row |= {"estimates": len(read_results(bench.path(line, NOISY)).score), "objects": len(objects)}
        row["mAP_95"] = bootstrap_interval(objects, weights)
        detector = objects if line.detector_score else detector
        if detector is not None:
            row |= {
                "above": float((objects - detector).mean()),
                "above_95": bootstrap_interval(objects - detector, weights),
            }
        rows.append(row)
    return rows


def precision_of(scores: DetectionScores, obj_id: int) -> float:
    """Return an object's part of the mAP."""
    return float(np.mean([scores.object_mean(obj_id, error) for error in ("mssd", "mspd")]))


def _procedural_row(bench: Bench, line: Line, masks: str, other: LocalisationScores | None) -> dict[str, Any]:
    """Return a line's numbers with the intervals of its AR and of what it is above that of another line."""
    scores = bench.score(line, masks)
    recalls, targets = object_recalls(scores.objects)
    row = {"line": line.title, "masks": masks, **describe_scores(scores, bench.path(line, masks))}
    row["AR_95"] = bootstrap_interval(recalls, targets)
    if other is not None:
        gains = recalls - object_recalls(other.objects)[0]
        row["AR_above"] = float(np.average(gains, weights=targets))
        row["AR_above_95"] = bootstrap_interval(gains, targets)
        row["worst_object_above"] = float(gains.min())
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
            make_missing(bench, REAL_LINES, "detections", console)
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
    for head in ("found", *heads, *(("AR 95 %", "above, 95 %", "worst") if named == "masks" else ())):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        cells = [_number(row[name]) for name in NUMBERS]
        if named == "masks":
            worst = row.get("worst_object_above")
            cells += [_interval(row["AR_95"]), _above(row), "-" if worst is None else f"{worst:+.3f}"]
        table.add_row(row[named], row["line"], f"{row['estimates']}/{row['targets']}", *cells)
    return table


def detection_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows of the detection task as a table for a terminal."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="detection, with wrong detections", title_justify="left")
    table.caption = DETECTION_CAPTION
    for head in ("line", "estimates", "mAP", "MSSD", "MSPD", "mAP 95 %", "above, 95 %"):
        table.add_column(head)
    for row in rows:
        numbers = [_number(row[name]) for name in ("mAP", "mAP_mssd", "mAP_mspd")]
        above = f"{row['above']:+.3f} ({_interval(row['above_95'], '+')})" if "above" in row else "-"
        table.add_row(row["line"], str(row["estimates"]), *numbers, _interval(row["mAP_95"]), above)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(ends: tuple[float, float], sign: str = "") -> str:
    return f"{ends[0]:{sign}.3f} {ends[1]:{sign}.3f}"


def _above(row: dict[str, Any]) -> str:
    if "AR_above" not in row:
        return "-"
    return f"{row['AR_above']:+.3f} ({_interval(row['AR_above_95'], '+')})"


def procedural_bench(made_by: str, arguments: argparse.Namespace, *, symmetric: bool = False) -> Bench:
    """Return a procedural data set with its banks, both made where they are missing."""
    objects = min(arguments.objects, SYMMETRIC_OBJECTS) if symmetric else arguments.objects
    images = -(-arguments.images // 2) if symmetric else arguments.images
    name = f"{'symmetric' if symmetric else 'unseen'}{objects}x{images}"
    root = arguments.work / "data" / name
    detections = {masks: root / file for masks, file in DETECTIONS.items()}
    if not all(file.is_file() for file in detections.values()):  # they are written last
        started, seed = time.perf_counter(), SYMMETRIC_SEED if symmetric else SEED
        write_procedural_dataset(root.parent, name, objects=objects, images=images, seed=seed, symmetric=symmetric)
        print(f"{name} written in {time.perf_counter() - started:.0f} s")
    return make_bench(open_dataset(name, root.parent), detections, made_by, arguments)


def make_bench(dataset: Dataset, detections: dict[str, Path], made_by: str, arguments: argparse.Namespace) -> Bench:
    """Return a data set with its banks rendered; `made_by` says which weights and code its result files are from."""
    made_by = f"{data_sha256(dataset)[:8]}-{made_by}"
    folders = arguments.work / "banks" / dataset.name, arguments.work / "results" / dataset.name / made_by
    bench = Bench(
        dataset, detections, *folders, arguments.weights, arguments.device, arguments.precision, arguments.workers
    )
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
    parser.add_argument("--precision", choices=PRECISIONS, default=InferOptions.precision)
    parser.add_argument("--workers", type=int, default=DEFAULT_PROCESSES, help="processes that render and score")
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
    sha256 = file_sha256(arguments.weights)
    made_by = f"{sha256[:8]}-{code_sha256()[:8]}-{arguments.device.replace(':', '')}-{arguments.precision}"
    weights = {"weights": arguments.weights.name, "weights_sha256": sha256}
    result: dict[str, Any] = {
        **run,
        "device": device_name(arguments.device),
        "precision": arguments.precision,
        **weights,
    }
    if arguments.images:
        bench = procedural_bench(made_by, arguments)
        rows = measure_procedural(bench, console)
        result |= {"objects": arguments.objects, "images": arguments.images, "seed": SEED}
        result |= {"data_sha256": data_sha256(bench.dataset), "rows": rows}
        console.print(accuracy_table(f"{arguments.objects} unseen objects, {arguments.images} images", CAPTION, rows))
        detection = measure_detection(bench, console)
        console.print(detection_table(detection))
        symmetric = measure_symmetric(procedural_bench(made_by, arguments, symmetric=True), console)
        console.print(accuracy_table("symmetric objects", SYMMETRIC_CAPTION, symmetric))
        result |= {"detection": detection, "symmetric_objects": symmetric}
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
