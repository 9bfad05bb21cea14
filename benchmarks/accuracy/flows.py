"""Flows of one pass of the network, and the poses that each variant's rules make of them.

The rules and solvers are the package's; a variant combines those of `PaperRules` and `DefaultRules`.
The stage-2 poses of a mixed variant assume objects centred on their origin, as all procedural objects are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from accuracy.variants import HYPOTHESES, Variant
from picopose_cli.base.geometry import project_points, transform_points
from picopose_cli.base.types import Array, Correspondences
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.ransac import RANSAC_PX, RansacPose
from picopose_cli.pose.residuals import pair_residuals
from picopose_cli.pose.row_blocks import RowBlocks
from picopose_cli.pose.rules import DefaultRules, Hypothesis, HypothesisPose, PaperRules, Rules
from picopose_cli.pose.solve import RobustPose
from picopose_cli.pose.template_store import OnboardedObject

PAPER_RULES, DEFAULT_RULES = PaperRules(HYPOTHESES), DefaultRules(HYPOTHESES)


@dataclass(frozen=True)
class RecordedFlow(Correspondences):
    """Correspondences with the output of stage 3 that they were made of: the arguments of `Rules.correspondences`."""

    onboarded: OnboardedObject
    view: int
    flow: Array
    certainty_logit: Array
    A_crop_from_image: Array

    @classmethod
    def record(cls, rules: Rules, *output: Any) -> RecordedFlow:
        """Return the correspondences of stage 3's output by some rules, with that output."""
        pairs = rules.correspondences(*output)
        return cls(pairs.uv_image, pairs.xyz_obj_m, pairs.certainty, *output)

    def correspondences(self, rules: Rules) -> Correspondences:
        """Return the correspondences by other rules."""
        return rules.correspondences(self.onboarded, self.view, self.flow, self.certainty_logit, self.A_crop_from_image)


class RecordingPaperRules(PaperRules):
    """The paper's rules, with the flows in the correspondences."""

    def correspondences(self, *output: Any) -> RecordedFlow:
        """Return the correspondences with stage 3's output."""
        return RecordedFlow.record(PAPER_RULES, *output)


class RecordingDefaultRules(DefaultRules):
    """The default rules, with the flows in the correspondences."""

    def correspondences(self, *output: Any) -> RecordedFlow:
        """Return the correspondences with stage 3's output."""
        return RecordedFlow.record(DEFAULT_RULES, *output)


class SymmetryUnawareRules(RecordingDefaultRules):
    """The default rules, which search equivalent views of a symmetric object like any others."""

    def choose_templates(self, ranked_views: Sequence[int], _: NDArray[np.bool_] | None) -> list[int]:
        """Return the positions of the templates as for an object without symmetries."""
        return super().choose_templates(ranked_views, None)


RULES_OF_FLOWS: dict[str, Rules] = {
    "regressed": RecordingPaperRules(HYPOTHESES),
    "searched": RecordingDefaultRules(HYPOTHESES),
    "unaware": SymmetryUnawareRules(HYPOTHESES),
}
"""By `Variant.flows`: the rules of the pass that gives these flows."""


class TimedMatcher(Matcher):
    """A matcher that counts the seconds spent in stage 3."""

    stage3_s = 0.0

    def _regress_offsets(self, *arguments: Any) -> list[Hypothesis]:
        started = time.perf_counter()
        found = super()._regress_offsets(*arguments)
        self.stage3_s += time.perf_counter() - started
        return found


class DetectionSolver:
    """The poses of one detection by any variant; poses that variants share are computed once.

    The correspondences of its `hypotheses` are `RecordedFlow`s; `K` (3,3) of the image.
    """

    def __init__(self, hypotheses: Sequence[Hypothesis], K: Array) -> None:
        self._hypotheses, self._K = hypotheses, K
        self._solved: dict[tuple[int, bool, bool], tuple[Hypothesis, HypothesisPose, float]] = {}

    def poses(self, variant: Variant) -> tuple[list[HypothesisPose], float]:
        """Return the poses of a variant before refinement, best first, and the seconds that they take."""
        if not variant.hypotheses:
            return [RansacPose(self._hypotheses[0].T_stage2, 0, 0.0)], 0.0
        found, seconds = [], 0.0
        for i in range(min(variant.hypotheses, len(self._hypotheses))):
            hypothesis, pose, pose_s = self._solve(variant, i)
            found.append(with_choice(variant, hypothesis, pose, self._K))
            seconds += pose_s
        return sorted(found, key=lambda pose: -pose.selection_score), seconds

    def _solve(self, variant: Variant, i: int) -> tuple[Hypothesis, HypothesisPose, float]:
        """Return a hypothesis with the variant's correspondences, the pose of the variant's solver, and its seconds."""
        key = i, variant.sub_cell, variant.robust
        if key not in self._solved:
            started = time.perf_counter()
            solver = DEFAULT_RULES if variant.robust else PAPER_RULES
            hypothesis, T = self._hypotheses[i], self._hypotheses[i].T_stage2
            if variant.flows == "regressed":  # other flows come with the stage-2 poses of the default rules
                T = solver.stage2_poses(T[None])[0]
            recorded = hypothesis.correspondences
            assert isinstance(recorded, RecordedFlow)
            pairs = recorded.correspondences(DEFAULT_RULES if variant.sub_cell else PAPER_RULES)
            hypothesis = replace(hypothesis, correspondences=pairs, T_stage2=T)
            ((pose,),) = solver.solve([[hypothesis]], self._K[None], torch.device("cpu"))
            self._solved[key] = hypothesis, pose, time.perf_counter() - started
        return self._solved[key]


def with_choice(variant: Variant, hypothesis: Hypothesis, pose: HypothesisPose, K: Array) -> HypothesisPose:
    """Return a solver's pose with the quantities by which the variant chooses: 0 where the solver found none."""
    if variant.soft_inliers == variant.robust:
        return pose  # by those of the solver's own rules
    T, pairs, found = pose.T_cam_from_obj, hypothesis.correspondences, pose.selection_score > 0
    if variant.soft_inliers:
        count = count_soft_inliers(T, pairs, K, hypothesis.std_px) if found else 0.0
        return RobustPose(T, count, hypothesis.alignment)
    inliers = count_inliers(T, pairs, K) if found else 0
    return RansacPose(T, inliers, inliers / max(len(pairs.uv_image), 1))


def count_soft_inliers(T_cam_from_obj: Array, pairs: Correspondences, K: Array, std_px: float) -> float:
    """Return the certainty-weighted number of soft inliers of a pose."""
    residuals = pair_residuals([pairs], np.array([std_px]), torch.device("cpu"))
    rows = RowBlocks(residuals, torch.from_numpy(K)[None])
    return float(rows.soft_inliers(torch.from_numpy(T_cam_from_obj)[None, None]))


def count_inliers(T_cam_from_obj: Array, pairs: Correspondences, K: Array) -> int:
    """Return the number of correspondences within the released rule's 2 px of the image."""
    error_px = project_points(K, transform_points(T_cam_from_obj, pairs.xyz_obj_m)) - pairs.uv_image
    return int((np.linalg.norm(error_px, axis=1) < RANSAC_PX).sum())
