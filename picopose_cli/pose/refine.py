"""Refinement: an estimate is rendered, the render is a template that looks from the right side, and stage 3 runs again.

The nearest template of a bank is up to 9 degrees off, and stage 2's similarity more than that; the render at an
estimate starts from what is known by then. The paper has no such step. Several candidates are refined side by side:
which of them is right shows better afterwards, when each has been compared with what it would look like. For the same
reason the overlap of its silhouette with the detection's mask then takes the place of what stage 1's matches said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

import cv2
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import rotation_angle_rad
from picopose_cli.base.types import Array, QueryBatch, TemplateView
from picopose_cli.network.offsets import OffsetFeatures
from picopose_cli.pose.correspondences import cell_centre_points, pose_affines, subcell_correspondences
from picopose_cli.pose.matcher import Estimator
from picopose_cli.pose.solve import RobustPose, solve_robust

CANDIDATES = 3
"""Poses of a detection that are refined; with one alone the choice of the hypothesis stays what it was."""
STILL_DEG, STILL_SHARE = 0.1, 5e-4
"""A pose that turns by less, and moves by less than this share of its distance, is not refined again."""
VIEWS_AT_ONCE = 16
"""Renders that go through the network together."""

Render = Callable[[int, Array], TemplateView]
"""Takes (obj_id, T_cam_from_obj) and draws the object as seen along its ray; any thread may call it. Raises
PicoPoseError where nothing can be drawn."""


class Refiner:
    """Refines poses in `rounds` rounds with the estimator's network."""

    def __init__(self, estimator: Estimator, render: Render, rounds: int) -> None:
        self._estimator = estimator
        self._render = render
        self._rounds = rounds

    def refine(
        self, batch: QueryBatch, candidates: Sequence[Sequence[RobustPose]], threads: Executor
    ) -> list[tuple[RobustPose, ...]]:
        """Return the refined candidates of each detection of a batch, the one of most worth first.

        `candidates` a detection, best first, are what `Estimator.candidates` found; at least one each. Evidence is that
        of the last round: compared with its own render a pose is judged best. What cannot be rendered stays as it is.
        """
        features = self._estimator.look(batch)
        poses = [list(of_query[:CANDIDATES]) for of_query in candidates]
        places = [(query, i) for query, of_query in enumerate(poses) for i in range(len(of_query))]
        for _ in range(self._rounds):
            before = {place: poses[place[0]][place[1]] for place in places}
            for first in range(0, len(places), VIEWS_AT_ONCE):
                part = places[first : first + VIEWS_AT_ONCE]
                starts = [(query, poses[query][i]) for query, i in part]
                for (query, i), pose in zip(part, self._round(batch, features, starts, threads), strict=True):
                    poses[query][i] = pose
            places = [(query, i) for query, i in places if not is_still(before[query, i], poses[query][i])]
        return [tuple(sorted(of_query, key=lambda pose: -pose.worth)) for of_query in poses]

    def _round(
        self, batch: QueryBatch, features: OffsetFeatures, starts: Sequence[tuple[int, RobustPose]], threads: Executor
    ) -> list[RobustPose]:
        """Render some poses, match and solve again."""
        drawn = list(threads.map(lambda start: self._draw(int(batch.obj_ids[start[0]]), start[1]), starts))
        rows = [i for i, view in enumerate(drawn) if view is not None]
        views = [view for view in drawn if view is not None]
        refined = [pose for _, pose in starts]
        if not views:
            return refined
        queries, T = [starts[i][0] for i in rows], np.stack([refined[i].T_cam_from_obj for i in rows])
        A = view_affines(T, batch, queries, views)
        flows, logits = self._estimator.match_views(features, queries, views, A)

        def solve(i: int) -> RobustPose:
            query, start = starts[rows[i]]
            A_crop, K = batch.A_crop_from_image[query], batch.K[query]
            found = solve_view(flows[i], logits[i], views[i], A_crop, K, start.T_cam_from_obj)
            pose = found or RobustPose(start.T_cam_from_obj, 0.0)
            A_end = view_affines(pose.T_cam_from_obj[None], batch, [query], [views[i]])[0]
            return replace(pose, support=overlap(views[i].mask, batch.masks[query], A_end))

        for i, pose in zip(rows, threads.map(solve, range(len(rows))), strict=True):
            refined[i] = pose
        return refined

    def _draw(self, obj_id: int, pose: RobustPose) -> TemplateView | None:
        if not np.isfinite(pose.T_cam_from_obj).all():
            return None
        try:
            return self._render(obj_id, pose.T_cam_from_obj)
        except PicoPoseError:  # too little of the object is seen to be cropped
            return None


def is_still(before: RobustPose, after: RobustPose) -> bool:
    """Say whether a round has left a pose where it was."""
    T, T_after = before.T_cam_from_obj, after.T_cam_from_obj
    moved = np.linalg.norm(T_after[:3, 3] - T[:3, 3])
    turned_deg = np.rad2deg(rotation_angle_rad(T[:3, :3], T_after[:3, :3]))
    return not (moved > STILL_SHARE * np.linalg.norm(T[:3, 3]) or turned_deg > STILL_DEG)


def view_affines(T: Array, batch: QueryBatch, queries: Sequence[int], views: Sequence[TemplateView]) -> Array:
    """Return where stage 3 starts, A_obs_from_tmpl (N,3,3), for poses T (N,4,4) of some of a batch's detections."""
    rows = list(queries)
    crops, cameras = np.stack([v.A_crop_from_image for v in views]), np.stack([v.K for v in views])
    T_tmpl = np.stack([view.T_tmpl_from_obj for view in views])
    return pose_affines(T, batch.A_crop_from_image[rows], crops, batch.K[rows], cameras, T_tmpl)


def overlap(template_mask: Array, observed_mask: Array, A_obs_from_tmpl: Array) -> float:
    """Return the intersection over union of an observation's mask and a template's under a similarity (3,3), crop px.

    Both masks (S,S) bool. What of the template falls outside of the observation's crop does not count.
    """
    to_centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV counts from the middle of the first pixel
    A = np.linalg.inv(to_centre) @ A_obs_from_tmpl @ to_centre
    moved = cv2.warpAffine(template_mask.astype(np.float32), A[:2], observed_mask.shape[::-1]) > 0.5
    return float((moved & observed_mask).sum() / max((moved | observed_mask).sum(), 1))


def solve_view(
    flow: Array, logit: Array, view: TemplateView, A_crop_from_image: Array, K: Array, T_start: Array
) -> RobustPose | None:
    """Return the pose that a view's flow (2,64,64) and certainty logits (64,64) speak for, None where there is none."""
    xyz = cell_centre_points(view.depth_centre_m, view.K, view.A_crop_from_image, view.T_tmpl_from_obj)
    pairs = subcell_correspondences(flow, logit, xyz, view.depth_centre_m > 0, A_crop_from_image)
    return solve_robust(pairs, K, float(A_crop_from_image[0, 0]), T_start)
