"""Poses are finished on the depth image, where there is one.

A picture shows the distance of an object by its size alone, so that this is what a pose by RGB knows least. Candidates
are moved along their rays to the measured distance, then solved again with both their matches in the picture and the
measured points, each weighted by its noise, and chosen by what picture and depth say of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import project_points
from picopose_cli.base.types import Array, Correspondences
from picopose_cli.pose.confidence import depth_confidence
from picopose_cli.pose.depth_rows import DepthVerdict, Touching, depth_residuals, judge_pose, touching_planes
from picopose_cli.pose.depth_samples import DepthSamples
from picopose_cli.pose.plane_blocks import PlaneBlocks
from picopose_cli.pose.refine import RefinedPose
from picopose_cli.pose.residuals import PosePairs, pair_residuals
from picopose_cli.pose.robust import minimise
from picopose_cli.pose.row_blocks import RowBlocks
from picopose_cli.pose.rules import RankedPose
from picopose_cli.pose.solve import SOLVED_AT_ONCE, RobustPose, is_possible

CANDIDATES = 4
"""Poses of a detection, the most confident ones, that are finished on depth."""
SHIFTS = 2
"""Times that a candidate is moved along its ray."""
ROUNDS = ((1.0, (5.0, 2.5)), (0.5, (2.5,)), (0.25, (2.5,)), (0.0, (2.5,)))
"""Rounds of the solver, each with a new render: reach of the depth rows, in REACH, and the solver's kernels."""
REACH = 0.06
"""Distance of the surface at which a depth row loses its weight in the first round, in diagonals of the silhouette."""
KEPT_STDS = 2.5
"""Kernel by which matches count as kept, in standard deviations."""
SHIFT_SPREAD, SHIFT_PRIOR = 0.02, 0.15
"""Of distances: differences that are of one surface, and the standard deviation of the error of a pose by RGB."""
SHIFT_QUANTILES = 41
MIN_SAMPLES = 30
"""Depths in the mask with which a detection is finished on depth."""
MIN_MEASURED_SHARE = 0.1
"""Likewise, of the mask."""
MAX_RATIO = 2.0
"""Ratio of measured and expected distance, or its inverse, above which depth and pose are of different things."""
TRUSTED = 0.2
"""Confidence by the picture from which on a pose may say that the scale of the depth is wrong."""
ANCHOR_STD = 0.02
"""Standard deviation by which a pose without matches holds its place in the picture, in sides of the render."""
ANCHOR_STEP = 7
"""Every so many samples are such an anchor."""


class DepthRenderer(Protocol):
    """Renders the depth of objects in square images, from any thread."""

    def depth(self, obj_id: int, T_cam_from_obj: Array, K: Array, side_px: int) -> Array:
        """Return the depth (S,S) f32, metres, 0 outside of the object; raises PicoPoseError if it cannot."""


@dataclass(frozen=True)
class DepthSubject:
    """A detection to be finished: its object, its depth, and its candidate poses, most confident first."""

    obj_id: int
    samples: DepthSamples
    candidates: Sequence[RankedPose]


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
    def confidence(self) -> float:
        """Probability that the pose is right."""
        return depth_confidence(self.image_confidence, self.kept, self.verdict.agreement, self.verdict.explained)


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
    """A pose `T` (4,4) of the detection `subject`, an index, and the candidate `of` by RGB."""

    subject: int
    T: Array
    of: RankedPose


class DepthRefiner:
    """Finishes poses on depth images."""

    def __init__(self, render: DepthRenderer, device: torch.device) -> None:
        self._render = render
        self._device = device

    def finish(self, subjects: Sequence[DepthSubject], threads: Executor) -> list[Finished]:
        """Return the finished poses of each detection, which do not depend on the other detections."""
        placed = list(threads.map(self._place, subjects))
        candidates = [
            _Candidate(i, T, of) for i, found in enumerate(placed) if found.problem is None for T, of in found.starts
        ]
        solved: list[_Candidate] = []
        for first in range(0, len(candidates), SOLVED_AT_ONCE):
            solved += self._solve(subjects, candidates[first : first + SOLVED_AT_ONCE], threads)
        tried = [*solved, *candidates]  # what the solver makes worse stays as it was
        poses: list[list[DepthPose]] = [[] for _ in subjects]
        for one, pose in zip(tried, self._judge(subjects, tried, threads), strict=True):
            poses[one.subject].append(pose)
        return [
            Finished(subject.candidates, found.problem, found.ratio)
            if found.problem is not None
            else Finished(sorted(of_subject, key=lambda pose: -pose.confidence), None, found.ratio)
            for subject, found, of_subject in zip(subjects, placed, poses, strict=True)
        ]

    def _touch(self, subject: DepthSubject, T: Array) -> Touching:
        samples = subject.samples
        return touching_planes(samples, self._render.depth(subject.obj_id, T, samples.K, samples.side_px))

    def _place(self, subject: DepthSubject) -> _Placed:
        """Move the best candidates along their rays to the measured distance."""
        samples = subject.samples
        if (samples.in_mask & samples.measured).sum() < MIN_SAMPLES or samples.measured_share < MIN_MEASURED_SHARE:
            return _Placed(f"{samples.measured_share:.0%} of its mask have a depth", None, ())
        finite = [one for one in subject.candidates if is_possible(one.T_cam_from_obj)][:CANDIDATES]
        try:
            moved = [self._move_along_ray(subject, one.T_cam_from_obj) for one in finite]
        except PicoPoseError as error:  # no mesh
            return _Placed(str(error), None, ())
        ratio, confidence = next(
            ((ratio, one.confidence) for one, (_, ratio) in zip(finite, moved, strict=True) if ratio is not None),
            (None, 0.0),
        )
        trusted = ratio if confidence >= TRUSTED else None
        starts = [
            (T, one)
            for one, (T, ratio) in zip(finite, moved, strict=True)
            if ratio is not None and 1 / MAX_RATIO < ratio < MAX_RATIO
        ]
        if ratio is None:
            return _Placed("no pose is where depth was measured", None, ())
        if not starts:
            return _Placed(f"the measured distance is {ratio:.3g} of the expected one", trusted, ())
        return _Placed(None, trusted, starts)

    def _move_along_ray(self, subject: DepthSubject, T: Array) -> tuple[Array, float | None]:
        """Return a pose at the measured distance, and the ratio of this distance to that before; None without any."""
        samples, first_ratio = subject.samples, None
        for _ in range(SHIFTS):
            touching = self._touch(subject, T)
            sample = touching.sample
            on_mask = samples.in_mask[sample]
            if on_mask.sum() < MIN_SAMPLES:
                break
            measured, rendered = samples.xyz_m[sample[on_mask], 2], touching.xyz_cam_m[on_mask, 2]
            ratio = float(np.median(measured / rendered))
            first_ratio = ratio if first_ratio is None else first_ratio
            if not 1 / MAX_RATIO < ratio < MAX_RATIO:
                break
            T = T.copy()
            T[:3, 3] *= 1 + robust_shift(measured - rendered, float(np.median(rendered))) / T[2, 3]
        return T, first_ratio

    def _solve(
        self, subjects: Sequence[DepthSubject], candidates: Sequence[_Candidate], threads: Executor
    ) -> list[_Candidate]:
        """Return candidates after the rounds of the joint solver."""
        T = np.stack([one.T for one in candidates])
        samples = [subjects[one.subject].samples for one in candidates]
        fixed = [pairs_of(one.of) for one in candidates]
        for share, scales in ROUNDS:
            reach = share * REACH
            touching = list(threads.map(lambda one, pose: self._touch(subjects[one.subject], pose), candidates, T))
            pairs = [
                _anchors(of_pose, on_surface, pose) if known is None else known
                for known, of_pose, on_surface, pose in zip(fixed, samples, touching, T, strict=True)
            ]
            kinds = self._rows_in_image(pairs), PlaneBlocks(depth_residuals(samples, touching, T, reach, self._device))
            start = torch.from_numpy(T[:, None].astype(np.float64)).to(self._device)
            moved = minimise(kinds, start, scales)[:, 0].cpu().numpy()
            T = np.where(is_possible(moved)[:, None, None], moved, T)
        return [_Candidate(one.subject, pose, one.of) for one, pose in zip(candidates, T, strict=True)]

    def _judge(
        self, subjects: Sequence[DepthSubject], candidates: Sequence[_Candidate], threads: Executor
    ) -> list[DepthPose]:
        """Return candidates with what picture and depth say of them."""

        def verdict(one: _Candidate) -> DepthVerdict:
            subject = subjects[one.subject]
            return judge_pose(subject.samples, self._touch(subject, one.T))

        verdicts, kept = threads.map(verdict, candidates), self._kept(candidates)
        return [
            DepthPose(one.T, one.of.confidence, share, found)
            for one, share, found in zip(candidates, kept, verdicts, strict=True)
        ]

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


@dataclass(frozen=True)
class _Placed:
    """Why a detection is not finished on depth, its ratio of distances, and the poses that the solver starts from."""

    problem: str | None
    ratio: float | None
    starts: Sequence[tuple[Array, RankedPose]]


def robust_shift(differences_m: Array, distance_m: float) -> float:
    """Return by how much a surface at a distance is too near, from measured minus rendered depth (N,) of its pixels.

    It is the median of the differences around the most frequent one: rough masks show the background, and occluders.
    That near the pose by RGB is preferred.
    """
    spread_m, prior_m = SHIFT_SPREAD * distance_m, SHIFT_PRIOR * distance_m
    tried = np.quantile(differences_m, np.linspace(0, 1, SHIFT_QUANTILES))
    near = 1 / (1 + ((differences_m - tried[:, None]) / spread_m) ** 2) ** 2
    best = tried[np.argmax(near.sum(axis=1) * np.exp(-0.5 * (tried / prior_m) ** 2))]
    return float(np.median(differences_m[np.abs(differences_m - best) <= 2 * spread_m]))


def pairs_of(pose: RankedPose) -> PosePairs | None:
    """Return the matches in the picture that a pose was solved from, None for one that has none."""
    return pose.pairs if isinstance(pose, RefinedPose | RobustPose) else None


def _anchors(samples: DepthSamples, touching: Touching, T: Array) -> PosePairs:
    """Return pairs that hold a pose (4,4) loosely where it is in the picture: depth may leave it free to slide."""
    xyz_cam = touching.xyz_cam_m[::ANCHOR_STEP]
    xyz_obj = (xyz_cam - T[:3, 3]) @ T[:3, :3]
    pairs = Correspondences(project_points(samples.K, xyz_cam), xyz_obj, np.ones(len(xyz_cam)))
    return PosePairs(pairs, samples.K, ANCHOR_STD * samples.side_px)
