"""Passes over groups of images, each of which gives the poses of all variants with the same flows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from accuracy.flows import DetectionSolver, TimedMatcher
from accuracy.oracle import poses_from_truth, true_starts
from accuracy.variants import FROM_TRUTH, HYPOTHESES, ORACLE, Variant
from picopose_cli.base.options import InferOptions
from picopose_cli.base.tasks import ImageTask
from picopose_cli.base.types import Array, TemplateBank
from picopose_cli.network.local_matcher import LocalMatcher
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.pose.image_groups import ImageGroup
from picopose_cli.pose.inference_network import InferenceNetwork
from picopose_cli.pose.pipeline import DEFAULT_BATCH_SIZE
from picopose_cli.pose.queries import Query, crop_queries, stack_queries
from picopose_cli.pose.refine import Refiner, Subject
from picopose_cli.pose.rules import RankedPose
from picopose_cli.runs.inputs import load_image

UNKNOWN_TIME_S = -1.0

Row = list[Any]
"""Of a result file: scene, image, object, score, pose (4,4) metres, seconds."""
Record = dict[str, list[Row]]
"""Rows of a group of images by slug of the variant."""
Solutions = tuple[Sequence[Sequence[RankedPose]], float]
"""Poses of each detection of a batch, best first, and the seconds that they all took."""
Pass = Callable[[ImageGroup], Record]


@dataclass(frozen=True)
class InferencePass:
    """One pass of the network for `variants` whose flows `matcher` computes; the rest is for their refinement."""

    variants: Sequence[Variant]
    matcher: TimedMatcher
    local_matcher: LocalMatcher
    render: EstimateRenderer

    def __call__(self, group: ImageGroup) -> Record:
        """Return the rows of a group of images."""
        record: Record = {variant.slug: [] for variant in self.variants}
        known = self.matcher.store.obj_ids
        virtual = self.matcher.rules.perspective_crops
        members = [
            (task, query)
            for task in group
            for query in crop_queries(task, load_image(task), known, perspective_crops=virtual, close_ups=True)[0]
        ]
        for first in range(0, len(members), DEFAULT_BATCH_SIZE):
            for slug, rows in self._estimate(members[first : first + DEFAULT_BATCH_SIZE]).items():
                record[slug] += rows
        return {slug: with_image_times(rows) for slug, rows in record.items()}

    def _estimate(self, members: Sequence[tuple[ImageTask, Query]]) -> Record:
        """Return the rows of a batch of detections, with the seconds of each detection."""
        batch = stack_queries([query for _, query in members])
        started, stage3_before_s = time.perf_counter(), self.matcher.stage3_s
        matched = self.matcher.match(batch)
        network_s, stage3_s = time.perf_counter() - started, self.matcher.stage3_s - stage3_before_s
        solvers = [
            DetectionSolver(hypotheses, query.K) for hypotheses, (_, query) in zip(matched, members, strict=True)
        ]
        record: Record = {}
        with ThreadPoolExecutor(InferOptions.workers) as threads:
            for variant in self.variants:
                poses, own_s = solve(solvers, variant, threads)
                if variant.rounds:
                    queries = [query for _, query in members]
                    poses, own_s = self._refine(queries, variant.rounds, (poses, own_s), threads)
                skipped_s = stage3_s * (1 - variant.hypotheses / HYPOTHESES)  # of hypotheses that the variant lacks
                time_s = (network_s - skipped_s + own_s) / len(members)
                record[variant.slug] = [
                    make_row(task, query, variant, found[0], time_s)
                    for (task, query), found in zip(members, poses, strict=True)
                ]
        return record

    def _refine(self, queries: Sequence[Query], rounds: int, before: Solutions, threads: Executor) -> Solutions:
        """Return the poses after some rounds of refinement."""
        poses, before_s = before
        started = time.perf_counter()
        subjects = [
            Subject(query.detection.obj_id, query.close_up, of_query)
            for query, of_query in zip(queries, poses, strict=True)
            if query.close_up is not None
        ]
        refined = Refiner(self.local_matcher, self.render, rounds, self.matcher.store.silhouettes).refine(
            subjects, threads
        )
        return refined, before_s + time.perf_counter() - started


def solve(solvers: Sequence[DetectionSolver], variant: Variant, threads: Executor) -> Solutions:
    """Return the poses of a variant before refinement."""
    poses, seconds = zip(*threads.map(lambda solver: solver.poses(variant), solvers), strict=True)
    return poses, sum(seconds)


@dataclass(frozen=True)
class TruthPass:
    """The oracle, and stage 3 from its templates and similarities; images show each object once.

    `banks` by object; `truths` are the true poses (4,4) by (scene_id, im_id, obj_id).
    """

    network: InferenceNetwork
    matcher: TimedMatcher
    banks: Mapping[int, TemplateBank]
    truths: Mapping[tuple[int, int, int], Array]

    def __call__(self, group: ImageGroup) -> Record:
        """Return the rows of a group of images, without times."""
        record: Record = {variant.slug: [] for variant in (ORACLE, *FROM_TRUTH)}
        for task in group:
            batch = stack_queries(crop_queries(task, load_image(task), self.matcher.store.obj_ids)[0])
            obj_ids = batch.obj_ids.tolist()
            T_true = np.stack([self.truths[task.scene_id, task.im_id, obj_id] for obj_id in obj_ids])
            banks = [self.banks[obj_id] for obj_id in obj_ids]
            starts = true_starts(banks, T_true, batch.K, batch.A_crop_from_image)
            query_features = self.network.extract_offset_features(batch.inputs)
            poses = poses_from_truth(self.network, self.matcher, batch, query_features, starts)
            poses[ORACLE.slug] = starts.T_stage2
            for slug, found in poses.items():
                record[slug] += [
                    [task.scene_id, task.im_id, obj_id, 1.0, T.tolist(), UNKNOWN_TIME_S]
                    for obj_id, T in zip(obj_ids, found, strict=True)
                ]
        return record


def make_row(task: ImageTask, query: Query, variant: Variant, pose: RankedPose, time_s: float) -> Row:
    """Return the row of a detection's pose."""
    score = query.detection.score * (1.0 if variant.detector_score else pose.confidence)
    T = query.pose_in_camera(pose.T_cam_from_obj)
    return [task.scene_id, task.im_id, query.detection.obj_id, score, T.tolist(), time_s]


def with_image_times(rows: Sequence[Row]) -> list[Row]:
    """Return rows of detections with the sum over their image in place of their own seconds."""
    image_s: dict[tuple[int, int], float] = defaultdict(float)
    for row in rows:
        image_s[row[0], row[1]] += row[-1]
    return [[*row[:-1], image_s[row[0], row[1]]] for row in rows]
