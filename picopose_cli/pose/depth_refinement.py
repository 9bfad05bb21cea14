"""Poses are finished on the depth image, where there is one.

A picture shows the distance of an object by its size alone, so that this is what a pose by RGB knows least. Candidates
are moved along their rays to the measured distance, then solved again with both their matches in the picture and the
measured points, each weighted by its noise, and chosen by what picture and depth say of them together. Where none is
sure, poses are searched that the depth image agrees with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch

from picopose_cli.base.geometry import project_points
from picopose_cli.base.types import Array, Correspondences
from picopose_cli.pose.close_ups import shrink
from picopose_cli.pose.confidence import MIN_DOUBT, depth_confidence
from picopose_cli.pose.contour_poses import ContourPose
from picopose_cli.pose.contour_search import contour_agreement, prepare_photograph
from picopose_cli.pose.contours import find_contour
from picopose_cli.pose.depth_placement import DepthRenderer, DepthSubject, place_candidates, touch
from picopose_cli.pose.depth_rows import DepthVerdict, Touching, depth_residuals, judge_pose
from picopose_cli.pose.depth_samples import DepthSamples
from picopose_cli.pose.depth_search import search_starts, turned_poses
from picopose_cli.pose.plane_blocks import PlaneBlocks
from picopose_cli.pose.refine import RefinedPose
from picopose_cli.pose.residuals import PosePairs, pair_residuals
from picopose_cli.pose.robust import minimise
from picopose_cli.pose.row_blocks import RowBlocks
from picopose_cli.pose.rules import RankedPose
from picopose_cli.pose.silhouette_starts import Silhouettes
from picopose_cli.pose.solve import SOLVED_AT_ONCE, RobustPose, is_possible

ROUNDS = ((1.0, (5.0, 2.5)), (0.4, (2.5,)), (0.0, (2.5,)))
"""Rounds of the solver, each with a new render: reach of the depth rows, in REACH, and the solver's kernels."""
REACH = 0.06
"""Distance of the surface at which a depth row loses its weight in the first round, in diagonals of the silhouette."""
CONTENDER = 0.1
"""Candidates are solved whose confidence is at least this share of that of the best one."""
SURE = 0.6
"""Poses are searched for detections without a pose of this confidence."""
CLEAR, TURN_ODDS = 0.7, 0.5
"""Poses of less confidence by the picture are turned; the odds of a turn by the picture, in those of the pose."""
KEPT_STDS = 2.5
"""Kernel by which matches count as kept, in standard deviations."""
ANCHOR_STD = 0.04
"""Standard deviation by which a pose without matches holds its place in the picture, in sides of the render."""
ANCHOR_STEP = 7
"""Every so many samples are such an anchor."""


@dataclass(frozen=True)
class DepthPose:
    """A pose `T_cam_from_obj` (4,4) metres that was finished on depth.

    `image_confidence` in [0, 1] is that of the candidate that it comes from, and `kept` the share of the candidate's
    matches in the picture that still hold; `verdict` is the depth image's.
    """

    T_cam_from_obj: Array
    image_confidence: float
    kept: float
    verdict: DepthVerdict

    @property
    def quantities(self) -> tuple[float, ...]:
        """What the confidence is made of: see `DEPTH_WEIGHTS`."""
        odds = self.image_confidence / max(1 - self.image_confidence, MIN_DOUBT)
        return odds, self.kept, self.verdict.agreement, self.verdict.explained, self.verdict.overlap

    @property
    def confidence(self) -> float:
        """Probability that the pose is right."""
        return depth_confidence(self.quantities)


@dataclass(frozen=True)
class TurnedPose:
    """A pose `T_cam_from_obj` (4,4) metres that differs by a turn from one with a confidence by the picture."""

    T_cam_from_obj: Array
    confidence: float


@dataclass(frozen=True)
class Finished:
    """The poses of a detection, most confident first; with a `problem` they are those by RGB.

    `ratio` of measured and expected distance of its best candidate, None where nothing can be compared, and where the
    picture gives that candidate little confidence.
    """

    poses: Sequence[RankedPose]
    problem: str | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class _Candidate:
    """A pose `T` (4,4) of the detection `subject`, an index, where samples touch it, and the candidate `of` by RGB."""

    subject: int
    T: Array
    touching: Touching
    of: RankedPose


class DepthRefiner:
    """Finishes poses on depth images; `silhouettes` returns those of an object's templates, where searches start."""

    def __init__(self, render: DepthRenderer, device: torch.device, silhouettes: Callable[[int], Silhouettes]) -> None:
        self._render = render
        self._device = device
        self._silhouettes = silhouettes

    def finish(self, subjects: Sequence[DepthSubject], threads: Executor) -> list[Finished]:
        """Return the finished poses of each detection, which do not depend on the other detections."""
        placed = list(threads.map(lambda subject: place_candidates(self._render, subject), subjects))
        starts = [(i, T, of) for i, found in enumerate(placed) if found.problem is None for T, of in found.starts]
        poses = self._finish(subjects, starts, threads)
        unsure = [i for i, found in enumerate(poses) if found and found[0].confidence < SURE]
        searched = zip(unsure, threads.map(lambda i: self._search(subjects[i], poses[i]), unsure), strict=True)
        more_starts = [(i, one.T_cam_from_obj, one) for i, found in searched for one in found]
        poses = _joined(poses, self._finish(subjects, more_starts, threads))
        doubtful = [i for i, found in enumerate(poses) if found and found[0].image_confidence < CLEAR]
        turned = zip(doubtful, threads.map(lambda i: self._turn(subjects[i], poses[i][0]), doubtful), strict=True)
        turned_starts = [(i, one.T_cam_from_obj, one) for i, found in turned for one in found]
        poses = _joined(poses, self._finish(subjects, turned_starts, threads))
        return [
            Finished(subject.candidates, found.problem, found.ratio)
            if found.problem is not None
            else Finished(of_subject, None, found.ratio)
            for subject, found, of_subject in zip(subjects, placed, poses, strict=True)
        ]

    def _finish(
        self, subjects: Sequence[DepthSubject], starts: Sequence[tuple[int, Array, RankedPose]], threads: Executor
    ) -> list[list[DepthPose]]:
        """Return the poses of each detection, most confident first, after starts: (its index, pose (4,4), by RGB)."""
        before = self._touched(subjects, starts, threads)
        at_start = self._judge(subjects, before)
        best: dict[int, float] = {}
        for one, pose in zip(before, at_start, strict=True):
            best[one.subject] = max(best.get(one.subject, 0.0), pose.confidence)
        followed = [
            one for one, pose in zip(before, at_start, strict=True) if pose.confidence >= CONTENDER * best[one.subject]
        ]
        after: list[_Candidate] = []
        for first in range(0, len(followed), SOLVED_AT_ONCE):
            after += self._solve(subjects, followed[first : first + SOLVED_AT_ONCE], threads)
        poses: list[list[DepthPose]] = [[] for _ in subjects]
        solved = self._judge(subjects, after)
        for one, pose in zip([*after, *before], [*solved, *at_start], strict=True):  # what was better before stays
            poses[one.subject].append(pose)
        return [_most_confident_first(of_subject) for of_subject in poses]

    def _touched(
        self, subjects: Sequence[DepthSubject], poses: Sequence[tuple[int, Array, RankedPose]], threads: Executor
    ) -> list[_Candidate]:
        touching = threads.map(lambda one: touch(self._render, subjects[one[0]], one[1]), poses)
        return [_Candidate(i, T, on_surface, of) for (i, T, of), on_surface in zip(poses, touching, strict=True)]

    def _solve(
        self, subjects: Sequence[DepthSubject], candidates: Sequence[_Candidate], threads: Executor
    ) -> list[_Candidate]:
        """Return candidates after the rounds of the joint solver."""
        fixed = [pairs_of(one.of) for one in candidates]
        samples = [subjects[one.subject].samples for one in candidates]
        for share, scales in ROUNDS:
            T, touching = np.stack([one.T for one in candidates]), [one.touching for one in candidates]
            pairs = [
                _anchors(of_pose, one.touching, one.T) if known is None else known
                for known, of_pose, one in zip(fixed, samples, candidates, strict=True)
            ]
            rows = depth_residuals(samples, touching, T, share * REACH, self._device)
            start = torch.from_numpy(T[:, None].astype(np.float64)).to(self._device)
            moved = minimise([self._rows_in_image(pairs), PlaneBlocks(rows)], start, scales)[:, 0].cpu().numpy()
            T = np.where(is_possible(moved)[:, None, None], moved, T)
            candidates = self._touched(
                subjects, [(one.subject, pose, one.of) for one, pose in zip(candidates, T, strict=True)], threads
            )
        return list(candidates)

    def _judge(self, subjects: Sequence[DepthSubject], candidates: Sequence[_Candidate]) -> list[DepthPose]:
        """Return candidates with what picture and depth say of them."""
        return [
            DepthPose(one.T, one.of.confidence, share, judge_pose(subjects[one.subject].samples, one.touching))
            for one, share in zip(candidates, self._kept(candidates), strict=True)
        ]

    def _search(self, subject: DepthSubject, poses: Sequence[DepthPose]) -> list[ContourPose]:
        """Return other poses that depth agrees with, with what the picture's contours say of them."""
        silhouettes = self._silhouettes(subject.obj_id)
        found = search_starts(self._render, subject, silhouettes, [one.T_cam_from_obj for one in poses])
        small = shrink(subject.close_up, subject.samples.side_px)
        photo, judged = prepare_photograph(small), []
        for T in found:
            depth_m = self._render.depth(subject.obj_id, T, small.K, small.side_px)
            agreement = contour_agreement(photo, depth_m, find_contour(depth_m, small.K, T))
            judged.append(ContourPose(T, agreement, small.mask_iou(depth_m > 0), subject.close_up.side_px))
        return judged

    def _turn(self, subject: DepthSubject, pose: DepthPose) -> list[TurnedPose]:
        """Return turns of a pose, which the picture is taken to show less than the pose itself: depth must speak."""
        odds = TURN_ODDS * pose.image_confidence / max(1 - pose.image_confidence, MIN_DOUBT)
        centre_m = self._silhouettes(subject.obj_id).centre_m
        found = turned_poses(self._render, subject, pose.T_cam_from_obj, centre_m)
        return [TurnedPose(T, odds / (1 + odds)) for T in found]

    def _kept(self, candidates: Sequence[_Candidate]) -> list[float]:
        """Return the share of each candidate's matches that agree with it, of those that agree with the pose by RGB."""
        known = [(i, pairs) for i, one in enumerate(candidates) if (pairs := pairs_of(one.of)) is not None]
        shares = [1.0] * len(candidates)
        if not known:
            return shares
        T = np.stack([[candidates[i].T, candidates[i].of.T_cam_from_obj] for i, _ in known])
        with torch.inference_mode():
            rows = self._rows_in_image([pairs for _, pairs in known])
            now, before = rows.agreement(torch.from_numpy(T).to(self._device), KEPT_STDS).cpu().numpy().T
        for (i, _), share in zip(known, now / np.maximum(before, 1e-9), strict=True):
            shares[i] = float(min(share, 1.0))
        return shares

    def _rows_in_image(self, pairs: Sequence[PosePairs]) -> RowBlocks:
        K = torch.from_numpy(np.stack([one.K for one in pairs]).astype(np.float64)).to(self._device)
        std_px = np.array([one.std_px for one in pairs])
        return RowBlocks(pair_residuals([one.correspondences for one in pairs], std_px, self._device), K)


def _joined(poses: Sequence[Sequence[DepthPose]], more: Sequence[Sequence[DepthPose]]) -> list[list[DepthPose]]:
    return [_most_confident_first([*one, *other]) for one, other in zip(poses, more, strict=True)]


def _most_confident_first(poses: Sequence[DepthPose]) -> list[DepthPose]:
    return sorted(poses, key=lambda pose: -pose.confidence)


def pairs_of(pose: RankedPose) -> PosePairs | None:
    """Return the matches in the picture that a pose was solved from, None for one that has none."""
    return pose.pairs if isinstance(pose, RefinedPose | RobustPose) else None


def _anchors(samples: DepthSamples, touching: Touching, T: Array) -> PosePairs:
    """Return pairs that hold a pose (4,4) loosely where it is in the picture: depth may leave it free to slide."""
    xyz_cam = touching.xyz_cam_m[::ANCHOR_STEP]
    xyz_obj = (xyz_cam - T[:3, 3]) @ T[:3, :3]
    pairs = Correspondences(project_points(samples.K, xyz_cam), xyz_obj, np.ones(len(xyz_cam)))
    return PosePairs(pairs, samples.K, ANCHOR_STD * samples.side_px)
