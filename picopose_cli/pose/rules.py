"""The two ways to infer poses with the same network: the paper's, as released, and the tool's default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.grid import lift_cell_corners, round_to_micrometres
from picopose_cli.base.symmetries import drop_equivalent_views
from picopose_cli.base.types import Array, Correspondences
from picopose_cli.pose.affine_search import COARSE, FINE, Round
from picopose_cli.pose.close_ups import close_up_side_px
from picopose_cli.pose.correspondences import (
    cell_centre_points,
    released_correspondences,
    rotate_to_ray,
    subcell_correspondences,
)
from picopose_cli.pose.ransac import RansacPose, solve_released
from picopose_cli.pose.residuals import PAIR_STD_PX, PosePairs
from picopose_cli.pose.solve import RobustPose, solve_robust
from picopose_cli.pose.template_store import OnboardedObject

SEARCHED_TEMPLATES = 80
"""Templates per detection whose 2D similarity is searched coarsely by the default rules."""
FINELY_SEARCHED_TEMPLATES = 24
"""Of those, the templates of the best alignment after the coarse search, which are searched finely."""


@dataclass(frozen=True)
class Hypothesis:
    """One template compared with one detection.

    `view` indexes the bank's views; `template_score` is stage 1's; `T_stage2` (4,4) metres is the pose implied by the
    2D similarity; `correspondences` are stage 3's; `crop_scale` is in crop px per image px; `alignment` in [0, 1] is
    the mean match probability of the 2D similarity (1: not searched).
    """

    view: int
    template_score: float
    T_stage2: Array
    correspondences: Correspondences
    crop_scale: float
    alignment: float

    @property
    def std_px(self) -> float:
        """Standard deviation of the right ones among stage 3's correspondences, image px."""
        return PAIR_STD_PX / self.crop_scale


class RankedPose(Protocol):
    """A pose that a hypothesis or its refinement gave."""

    @property
    def T_cam_from_obj(self) -> Array:
        """Pose (4,4), metres."""

    @property
    def confidence(self) -> float:
        """Confidence in [0, 1], by which the detector's score is multiplied."""


class HypothesisPose(RankedPose, Protocol):
    """A pose that a hypothesis gave."""

    @property
    def selection_score(self) -> float:
        """Number by which the best hypothesis of a detection is chosen: the highest."""


class Rules(Protocol):
    """What differs between the ways to infer; everything else is in `Matcher`."""

    can_refine: ClassVar[bool]
    """Whether poses can be refined by comparison with their renders."""
    solves_batches: ClassVar[bool]
    """Whether the detections of a batch are best solved by one call, otherwise each by a call of its own."""
    perspective_crops: ClassVar[bool]
    """Whether virtual cameras make crops of pinhole images, too, far off the axis (see `queries`)."""

    @property
    def search_steps(self) -> Sequence[tuple[Sequence[Round], int]]:
        """Rounds of the search around stage 2's similarity, and the number of templates that are kept after them."""

    def choose_templates(self, ranked_views: Sequence[int], equivalent: NDArray[np.bool_] | None) -> list[int]:
        """Return the positions in `ranked_views`, best first, of the templates that stage 2 is run on.

        `equivalent` (V,V) bool: equivalent views of a symmetric object, otherwise None.
        """

    def stage2_poses(self, T_cam_from_obj: Array) -> Array:
        """Return the stage-2 poses (N,4,4) of the poses (N,4,4) that 2D similarities imply by the released formula."""

    def correspondences(
        self, onboarded: OnboardedObject, view: int, flow: Array, certainty_logit: Array, A_crop_from_image: Array
    ) -> Correspondences:
        """Return the correspondences of stage 3's `flow` (2,64,64) and `certainty_logit` (64,64) for a view."""

    def solve(
        self, hypotheses: Sequence[Sequence[Hypothesis]], K: Array, device: torch.device
    ) -> Sequence[Sequence[HypothesisPose]]:
        """Return the poses of the hypotheses of each detection, best first; `K` (B,3,3) of their images. Thread-safe.

        `device` computes them where that is possible; they do not depend on which detections are solved together.
        """


@dataclass(frozen=True)
class PaperRules:
    """The released inference: best templates by score, stage 2 as regressed, EPnP in RANSAC, choice by inlier ratio."""

    hypotheses: int
    can_refine: ClassVar[bool] = False
    solves_batches: ClassVar[bool] = False
    perspective_crops: ClassVar[bool] = False
    search_steps: ClassVar[Sequence[tuple[Sequence[Round], int]]] = ()

    def choose_templates(self, ranked_views: Sequence[int], _: NDArray[np.bool_] | None) -> list[int]:
        """Return the positions of the best `hypotheses` templates."""
        return list(range(len(ranked_views)))[: self.hypotheses]

    def stage2_poses(self, T_cam_from_obj: Array) -> Array:
        """Return the poses (N,4,4) as they are."""
        return T_cam_from_obj

    def correspondences(
        self, onboarded: OnboardedObject, view: int, flow: Array, certainty_logit: Array, A_crop_from_image: Array
    ) -> Correspondences:
        """Return the released correspondences, whose targets are cell centres."""
        A_crop_tmpl, T = onboarded.A_crop_from_image[view], onboarded.T_tmpl_from_obj[view]
        xyz = round_to_micrometres(lift_cell_corners(onboarded.depth_corner_m[view], onboarded.K, A_crop_tmpl, T))
        return released_correspondences(flow, certainty_logit, xyz, A_crop_from_image)

    def solve(self, hypotheses: Sequence[Sequence[Hypothesis]], K: Array, _: torch.device) -> list[list[RansacPose]]:
        """Return the RANSAC poses, highest inlier ratio first; one without a solution has its stage-2 pose, ratio 0."""
        return [_best_first([_solve_released(one, K_of) for one in of]) for of, K_of in zip(hypotheses, K, strict=True)]


@dataclass(frozen=True)
class DefaultRules:
    """The tool's inference: 2D similarities searched for many templates, sub-cell correspondences, robust solver."""

    hypotheses: int
    can_refine: ClassVar[bool] = True
    solves_batches: ClassVar[bool] = True
    perspective_crops: ClassVar[bool] = True

    @property
    def search_steps(self) -> Sequence[tuple[Sequence[Round], int]]:
        """A coarse search of all chosen templates, then a fine one of the best."""
        return (COARSE, max(FINELY_SEARCHED_TEMPLATES, self.hypotheses)), (FINE, self.hypotheses)

    def choose_templates(self, ranked_views: Sequence[int], equivalent: NDArray[np.bool_] | None) -> list[int]:
        """Return the positions of the best 80 templates (or `hypotheses`, if more), one of each equivalent views."""
        positions = list(range(len(ranked_views)))
        if equivalent is not None:
            positions = drop_equivalent_views(ranked_views, equivalent)
        return positions[: max(SEARCHED_TEMPLATES, self.hypotheses)]

    def stage2_poses(self, T_cam_from_obj: Array) -> Array:
        """Return the poses (N,4,4) rotated to the objects' rays."""
        return rotate_to_ray(T_cam_from_obj)

    def correspondences(
        self, onboarded: OnboardedObject, view: int, flow: Array, certainty_logit: Array, A_crop_from_image: Array
    ) -> Correspondences:
        """Return correspondences with continuous targets, of cells whose centre shows the object."""
        depth, A_crop_tmpl = onboarded.depth_centre_m[view], onboarded.A_crop_from_image[view]
        xyz = cell_centre_points(depth, onboarded.K, A_crop_tmpl, onboarded.T_tmpl_from_obj[view])
        return subcell_correspondences(flow, certainty_logit, xyz, depth > 0, A_crop_from_image)

    def solve(
        self, hypotheses: Sequence[Sequence[Hypothesis]], K: Array, device: torch.device
    ) -> list[list[RobustPose]]:
        """Return the robust poses, highest selection score first; one without a solution has its stage-2 pose."""
        every = [one for of_detection in hypotheses for one in of_detection]
        K_of_each = np.repeat(K, [len(of_detection) for of_detection in hypotheses], axis=0)
        std_px, starts = np.array([one.std_px for one in every]), np.array([one.T_stage2 for one in every])
        found = iter(solve_robust([one.correspondences for one in every], K_of_each, std_px, starts, device))
        return [
            _best_first([_complete(one, next(found), K_of) for one in of_detection])
            for of_detection, K_of in zip(hypotheses, K, strict=True)
        ]


Pose = TypeVar("Pose", bound=HypothesisPose)


def _best_first(poses: Sequence[Pose]) -> list[Pose]:
    return sorted(poses, key=lambda pose: -pose.selection_score)  # stable: the better hypothesis first among equals


def _solve_released(hypothesis: Hypothesis, K: Array) -> RansacPose:
    return solve_released(hypothesis.correspondences, K) or RansacPose(hypothesis.T_stage2, 0, 0.0)


def _complete(hypothesis: Hypothesis, pose: RobustPose | None, K: Array) -> RobustPose:
    """Return a hypothesis' pose with all that is known of it; `K` (3,3) px of the image."""
    pairs = PosePairs(hypothesis.correspondences, K, hypothesis.std_px)
    side_px = close_up_side_px(hypothesis.crop_scale)
    found = pose or RobustPose(hypothesis.T_stage2, 0.0)
    return replace(found, alignment=hypothesis.alignment, pairs=pairs, side_px=side_px)


def make_rules(name: str, hypotheses: int) -> Rules:
    """Return the rules `default` or `paper`, by which `hypotheses` templates per detection reach stage 3.

    Raises PicoPoseError for another name.
    """
    if name == "default":
        return DefaultRules(hypotheses)
    if name == "paper":
        return PaperRules(hypotheses)
    raise PicoPoseError(f"the rules {name!r} are not known", fix="choose default or paper")
