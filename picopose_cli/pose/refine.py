"""Refinement: candidates are rendered, the renders are matched with the photograph, and the matches solved again.

First the best candidates of a detection are rendered small. Their renders are matched with the photograph by local
features, in two ways: cell by cell in a window, and by keypoints and LighterGlue, which finds an object far from where
it is expected. Each way gives a pose, and all matches of a detection together judge all its poses. The best are
rendered large, and optical flow between render and photograph moves them to where they belong, to a fraction of a
pixel. The paper has no such step: its third stage compares the photograph with a template up to 9 degrees off.

Objects without texture have nothing to match. Where no pose is sure, outline and folds of the surface are followed from
the templates' silhouettes (`contour_poses`), and the pose that they give is one more candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import distinct_rotations
from picopose_cli.base.types import Array, RenderedView
from picopose_cli.network.local_features import CELL_PX
from picopose_cli.network.local_matcher import LocalMatcher
from picopose_cli.pose.close_ups import MAX_SIDE_PX, CloseUp, shrink
from picopose_cli.pose.confidence import refined_confidence
from picopose_cli.pose.contour_poses import ContourPose, contour_pose
from picopose_cli.pose.contour_refinement import DrawDepth
from picopose_cli.pose.flow_matching import STEP_PX, flow_pairs
from picopose_cli.pose.local_matching import LocalFeatures, cell_pairs, glue_pairs, local_features
from picopose_cli.pose.render_matches import RenderMatches, lift_matches, solve_matches, support_of_poses
from picopose_cli.pose.residuals import PosePairs
from picopose_cli.pose.rules import RankedPose
from picopose_cli.pose.silhouette_starts import Silhouettes

MATCHED_CANDIDATES = 3
"""Poses of a detection whose renders are matched by local features."""
MATCHED_SIDE_PX = 320
"""Largest side of these renders."""
FLOW_CANDIDATES = 2
"""Poses of a detection that go on to optical flow."""
CONTENDER = 0.8
"""Of a detection's poses those are followed on whose support by flow is at least this share of the best one's."""
MATCHED_DISTINCT_DEG, DISTINCT_DEG = 15.0, 4.0
"""Of poses that differ by less, the best alone is matched by local features, and by flow."""
CELL_STD, GLUE_STD, FLOW_STD = 1 / 80, 1 / 128, 1 / 280
"""Standard deviations of right matches of cells, of LighterGlue and of flow, in sides of the render."""
JUDGED_STD = 1 / 64
"""Standard deviation by which local matches judge poses, in sides of the render."""
MIN_VISIBLE_PX = 64
"""A render that shows less is not matched."""

SURE = 0.6
"""Contours are looked for in detections without a pose of this confidence."""


class Renderer(Protocol):
    """Renders objects in square images, from any thread; raises PicoPoseError if the object cannot be rendered."""

    def __call__(self, obj_id: int, T_cam_from_obj: Array, K: Array, side_px: int) -> RenderedView:
        """Return the object at a pose (4,4), metres, in the camera `K` (3,3), px."""

    def depth(self, obj_id: int, T_cam_from_obj: Array, K: Array, side_px: int) -> Array:
        """Return the depth (S,S) f32 alone, metres, 0 outside of the object."""


@dataclass(frozen=True)
class RefinedPose:
    """A pose and how well its render agrees with the photograph.

    `T_cam_from_obj` (4,4) metres; `flow_support` in [0, 1]: soft inliers of the flow, per pixel where it is measured;
    `match_support` >= 0: soft inliers of the local matches, per visible cell; `mask_iou` in [0, 1]: overlap of the
    rendered silhouette with the detection's mask; `side_px` of its close-up. `pairs` are the matches that it was solved
    from.
    """

    T_cam_from_obj: Array
    flow_support: float
    match_support: float
    mask_iou: float
    side_px: int
    pairs: PosePairs | None = None

    @property
    def quantities(self) -> tuple[float, float, float, float]:
        """What the confidence is made of: flow support, match support, mask IoU, and share of the largest side."""
        return self.flow_support, self.match_support, self.mask_iou, self.side_px / MAX_SIDE_PX

    @property
    def confidence(self) -> float:
        """Probability that the pose is right."""
        return refined_confidence(*self.quantities)


@dataclass(frozen=True)
class Subject:
    """A detection to be refined: its object, its close-up and its candidate poses, best first, at least one."""

    obj_id: int
    close_up: CloseUp
    candidates: Sequence[RankedPose]


@dataclass(frozen=True)
class _Candidate:
    """A pose `T` (4,4) of the detection `subject`, an index, its support and its pairs as of `RefinedPose`."""

    subject: int
    T: Array
    match_support: float = 0.0
    flow_support: float = 0.0
    pairs: PosePairs | None = None


@dataclass(frozen=True)
class _Photo:
    """A close-up of at most MATCHED_SIDE_PX, and its local features."""

    close_up: CloseUp
    features: LocalFeatures


@dataclass(frozen=True)
class _LocalMatches:
    """The matches of a render, by kind, and the number of its cells that show the object."""

    kinds: tuple[RenderMatches, ...]
    cells: int


class Refiner:
    """Refines poses by comparing the photograph with renders: local features, then `rounds` rounds of optical flow.

    `silhouettes` returns those of an object's templates, from which contours start.
    """

    def __init__(
        self, matcher: LocalMatcher, render: Renderer, rounds: int, silhouettes: Callable[[int], Silhouettes]
    ) -> None:
        self._matcher = matcher
        self._render = render
        self._rounds = rounds
        self._silhouettes = silhouettes
        self._device = matcher.device

    def refine(self, subjects: Sequence[Subject], threads: Executor) -> list[tuple[RankedPose, ...]]:
        """Return the refined poses of each detection and its best candidate, most confident first.

        The candidate stays in the choice because refinement does harm where a photograph is small, blurred or dark. The
        candidates of a detection whose object cannot be rendered are returned as they are. A detection's poses do not
        depend on the other detections.
        """
        photos = list(threads.map(self._photo, subjects))
        poses = self._compare(subjects, photos, threads)
        unsure = [i for i, of_subject in enumerate(poses) if of_subject[0].confidence < SURE]
        found = list(threads.map(lambda i: self._follow_contours(subjects[i], photos[i].close_up), unsure))
        seen = [(i, pose) for i, pose in zip(unsure, found, strict=True) if pose is not None]
        again = [replace(subjects[i], candidates=[pose]) for i, pose in seen]
        compared = self._compare(again, [photos[i] for i, _ in seen], threads)
        for (i, _), more in zip(seen, compared, strict=True):
            poses[i] = _most_confident_first([*poses[i], *more])
        return poses

    def _photo(self, subject: Subject) -> _Photo:
        small = shrink(subject.close_up, MATCHED_SIDE_PX)
        return _Photo(small, local_features(self._matcher, small.rgb))

    def _compare(
        self, subjects: Sequence[Subject], photos: Sequence[_Photo], threads: Executor
    ) -> list[tuple[RankedPose, ...]]:
        """Return the poses that local features and flow make of each detection's candidates, and the best of these."""
        found = self._match(subjects, photos, threads)
        for _ in range(self._rounds):
            followed = _contenders(found)
            moved = self._follow_flow(subjects, [found[k] for k in followed], threads)
            for k, one in zip(followed, moved, strict=True):
                found[k] = one
        overlaps = threads.map(lambda one: self._mask_iou(subjects[one.subject], photos[one.subject], one.T), found)
        refined: list[list[RankedPose]] = [[] for _ in subjects]
        for one, overlap in zip(found, overlaps, strict=True):
            side_px = subjects[one.subject].close_up.side_px
            refined[one.subject].append(
                RefinedPose(one.T, one.flow_support, one.match_support, overlap, side_px, one.pairs)
            )
        return [
            _most_confident_first([*poses, subject.candidates[0]]) if poses else tuple(subject.candidates)
            for poses, subject in zip(refined, subjects, strict=True)
        ]

    def _match(self, subjects: Sequence[Subject], photos: Sequence[_Photo], threads: Executor) -> list[_Candidate]:
        """Return the poses of each detection that flow starts from: distinct, those that its matches support most."""
        small = [replace(one, close_up=photo.close_up) for one, photo in zip(subjects, photos, strict=True)]
        starts = [
            _Candidate(i, pose.T_cam_from_obj) for i, one in enumerate(small) for pose in _different(one.candidates)
        ]
        found = threads.map(
            lambda one: self._match_render(small[one.subject], photos[one.subject].features, one.T), starts
        )
        rendered = [(start, matches) for start, matches in zip(starts, found, strict=True) if matches is not None]
        solved = iter(solve_matches([kind for _, matches in rendered for kind in matches.kinds], self._device))
        poses: list[list[Array]] = [[] for _ in subjects]
        matched: list[list[_LocalMatches]] = [[] for _ in subjects]
        for start, matches in rendered:
            of_render = [next(solved) for _ in matches.kinds]
            poses[start.subject] += [start.T, *(pose.T_cam_from_obj for pose in of_render if pose is not None)]
            matched[start.subject].append(matches)
        return self._most_supported(small, poses, matched)

    def _match_render(self, subject: Subject, photo: LocalFeatures, T: Array) -> _LocalMatches | None:
        """Return the local matches of a candidate's render, None if it cannot be rendered."""
        view = self._try_render(subject, T)
        if view is None:
            return None
        K, side_px, inside = subject.close_up.K, subject.close_up.side_px, view.depth_m > 0
        features = local_features(self._matcher, view.rgb, inside)
        cells = inside[CELL_PX // 2 :: CELL_PX, CELL_PX // 2 :: CELL_PX]
        by_cells, by_keypoints = cell_pairs(features, photo, cells), glue_pairs(self._matcher, features, photo)
        kinds = (
            lift_matches(by_cells, view.depth_m, K, T, CELL_STD * side_px),
            lift_matches(by_keypoints, view.depth_m, K, T, GLUE_STD * side_px),
        )
        return _LocalMatches(kinds, int(cells.sum()))

    def _most_supported(
        self, small: Sequence[Subject], poses: Sequence[Sequence[Array]], matched: Sequence[Sequence[_LocalMatches]]
    ) -> list[_Candidate]:
        rows = [i for i, of_subject in enumerate(matched) if of_subject]
        pools = [[kind for matches in matched[i] for kind in matches.kinds] for i in rows]
        stds = [JUDGED_STD * small[i].close_up.side_px for i in rows]
        chosen = []
        supports = support_of_poses(pools, [poses[i] for i in rows], stds, self._device)
        for i, soft_inliers in zip(rows, supports, strict=True):
            support = soft_inliers / max(*(matches.cells for matches in matched[i]), 1)
            order = np.argsort(-support, kind="stable")
            distinct = order[_distinct([poses[i][k] for k in order], DISTINCT_DEG, FLOW_CANDIDATES)]
            chosen += [_Candidate(i, poses[i][k], float(support[k])) for k in distinct]
        return chosen

    def _follow_flow(
        self, subjects: Sequence[Subject], candidates: Sequence[_Candidate], threads: Executor
    ) -> list[_Candidate]:
        """Return the candidates after one round of optical flow; one that cannot be moved stays without support."""
        flows = list(threads.map(lambda one: self._flow(subjects[one.subject], one.T), candidates))
        solved = iter(solve_matches([matches for matches, _ in flows if matches is not None], self._device))
        moved = []
        for one, (matches, measured) in zip(candidates, flows, strict=True):
            pose = None if matches is None else next(solved)
            if matches is None or pose is None:
                moved.append(replace(one, flow_support=0.0))
            else:
                support = pose.soft_inliers / measured
                moved.append(replace(one, T=pose.T_cam_from_obj, flow_support=support, pairs=matches.pairs))
        return moved

    def _flow(self, subject: Subject, T: Array) -> tuple[RenderMatches | None, int]:
        """Return the matches by flow of a pose's render, and the number of pixels at which flow is measured."""
        view = self._try_render(subject, T)
        if view is None:
            return None, 0
        inside, close_up = view.depth_m > 0, subject.close_up
        pairs = flow_pairs(view.rgb, inside, close_up.rgb)
        matches = lift_matches(pairs, view.depth_m, close_up.K, T, FLOW_STD * close_up.side_px)
        return matches, max(int(inside[STEP_PX // 2 :: STEP_PX, STEP_PX // 2 :: STEP_PX].sum()), 1)

    def _follow_contours(self, subject: Subject, small: CloseUp) -> ContourPose | None:
        """Return the best pose by contours in a close-up, None where there is none or the object cannot be rendered."""

        def draw_in(close_up: CloseUp) -> DrawDepth:
            return lambda T: self._render.depth(subject.obj_id, T, close_up.K, close_up.side_px)

        finite = [pose.T_cam_from_obj for pose in subject.candidates if np.isfinite(pose.T_cam_from_obj).all()]
        starts = np.array(finite).reshape(-1, 4, 4)
        try:
            return contour_pose(small, self._silhouettes(subject.obj_id), starts, draw_in)
        except PicoPoseError:  # no mesh
            return None

    def _mask_iou(self, subject: Subject, photo: _Photo, T: Array) -> float:
        """Return the overlap of a pose's silhouette with the detection's mask."""
        small = photo.close_up
        inside = self._render.depth(subject.obj_id, T, small.K, small.side_px) > 0
        return small.mask_iou(inside) if np.count_nonzero(inside) >= MIN_VISIBLE_PX else 0.0

    def _try_render(self, subject: Subject, T: Array) -> RenderedView | None:
        """Return the render of a pose in the camera of the close-up; None if it shows nothing."""
        if not np.isfinite(T).all():
            return None
        try:
            view = self._render(subject.obj_id, T, subject.close_up.K, subject.close_up.side_px)
        except PicoPoseError:  # no mesh: the poses stay as they are
            return None
        return view if np.count_nonzero(view.depth_m) >= MIN_VISIBLE_PX else None


def _most_confident_first(poses: Sequence[RankedPose]) -> tuple[RankedPose, ...]:
    return tuple(sorted(poses, key=lambda pose: -pose.confidence))


def _contenders(candidates: Sequence[_Candidate]) -> list[int]:
    """Return the indices of the candidates that may still be the best of their detections: at first all of them."""
    best: dict[int, float] = {}
    for one in candidates:
        best[one.subject] = max(best.get(one.subject, 0.0), one.flow_support)
    return [k for k, one in enumerate(candidates) if one.flow_support >= CONTENDER * best[one.subject]]


def _different(candidates: Sequence[RankedPose]) -> list[RankedPose]:
    """Return the best candidates that differ from each other."""
    finite = [pose for pose in candidates if np.isfinite(pose.T_cam_from_obj).all()]
    chosen = _distinct([pose.T_cam_from_obj for pose in finite], MATCHED_DISTINCT_DEG, MATCHED_CANDIDATES)
    return [finite[i] for i in chosen]


def _distinct(poses: Sequence[Array], least_deg: float, count: int) -> list[int]:
    R = np.array([T[:3, :3] for T in poses]).reshape(-1, 3, 3)
    return distinct_rotations(R, np.deg2rad(least_deg), count)
