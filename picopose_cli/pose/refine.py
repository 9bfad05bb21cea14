"""Refinement: an estimate is rendered, the render is a template from the right direction, and stage 3 runs again.

The nearest template of a bank is up to 9 degrees off, and stage 2's similarity more than that; the render at an
estimate starts from what is known by then. The paper has no such step. Several candidates of a detection are refined
side by side: which of them is right shows better once each has been compared with its own render. For the same reason
the overlap of the rendered silhouette with the detection's mask then replaces the alignment in the selection score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

import cv2
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import move_origin, rotation_angle_rad
from picopose_cli.base.types import Array, Correspondences, QueryBatch, TemplateView
from picopose_cli.network.offsets import OffsetFeatures
from picopose_cli.pose.correspondences import cell_centre_points, pose_affines, subcell_correspondences
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.rules import RankedPose
from picopose_cli.pose.solve import RobustPose, solve_robust

REFINED_CANDIDATES = 3
"""Poses of a detection that are refined; with one alone the choice of the hypothesis could not change."""
CONVERGED_DEG, CONVERGED_SHARE = 0.1, 5e-4
"""A pose that rotates by less, and moves by less than this share of its distance, is not refined again."""
VIEW_CHUNK = 16
"""Renders that go through the network together."""

Render = Callable[[int, Array], TemplateView]
"""Takes (obj_id, T_cam_from_obj) and renders the object as seen along its ray; called from any thread. Raises
PicoPoseError if nothing can be rendered."""


class Refiner:
    """Refines poses in `rounds` rounds with the matcher's network."""

    def __init__(self, matcher: Matcher, render: Render, rounds: int) -> None:
        self._matcher = matcher
        self._render = render
        self._rounds = rounds

    def refine(
        self,
        batch: QueryBatch,
        query_features: OffsetFeatures,
        candidates: Sequence[Sequence[RankedPose]],
        threads: Executor,
    ) -> list[tuple[RankedPose, ...]]:
        """Return the refined candidates of each detection of a batch, highest selection score first.

        `query_features` as of `MatchedBatch`; `candidates` of each detection, best first, at least one each. The scores
        are those of the last round. A pose that cannot be rendered stays as it is.
        """
        poses = [list(of_query[:REFINED_CANDIDATES]) for of_query in candidates]
        places = [(query, i) for query, of_query in enumerate(poses) for i in range(len(of_query))]
        for _ in range(self._rounds):
            before = {(query, i): poses[query][i] for query, i in places}
            for first in range(0, len(places), VIEW_CHUNK):
                chunk = places[first : first + VIEW_CHUNK]
                starts = [(query, poses[query][i]) for query, i in chunk]
                refined = self._refine_once(batch, query_features, starts, threads)
                for (query, i), pose in zip(chunk, refined, strict=True):
                    poses[query][i] = pose
            places = [(query, i) for query, i in places if not is_converged(before[query, i], poses[query][i])]
        return [tuple(sorted(of_query, key=lambda pose: -pose.selection_score)) for of_query in poses]

    def _refine_once(
        self,
        batch: QueryBatch,
        query_features: OffsetFeatures,
        starts: Sequence[tuple[int, RankedPose]],
        threads: Executor,
    ) -> list[RankedPose]:
        """Render the poses of some (detection, pose), match and solve again."""
        renders = list(threads.map(lambda start: self._try_render(int(batch.obj_ids[start[0]]), start[1]), starts))
        rows = [i for i, view in enumerate(renders) if view is not None]
        views = [view for view in renders if view is not None]
        refined = [pose for _, pose in starts]
        if not views:
            return refined
        queries, T = [starts[i][0] for i in rows], np.stack([refined[i].T_cam_from_obj for i in rows])
        A = view_affines(T, batch, queries, views)
        flows, logits = self._matcher.match_views(query_features, queries, views, A)

        crops, K = batch.A_crop_from_image[queries], batch.K[queries]
        pairs = list(threads.map(view_correspondences, flows, logits, views, crops))
        found = solve_robust(pairs, K, crops[:, 0, 0], T, self._matcher.device)
        solved = [pose or RobustPose(start, 0.0) for pose, start in zip(found, T, strict=True)]
        A_end = view_affines(np.stack([pose.T_cam_from_obj for pose in solved]), batch, queries, views)
        overlaps = threads.map(mask_iou, [view.mask for view in views], batch.masks[queries], A_end)
        for i, pose, overlap in zip(rows, solved, overlaps, strict=True):
            refined[i] = replace(pose, mask_iou=overlap)
        return refined

    def _try_render(self, obj_id: int, pose: RankedPose) -> TemplateView | None:
        if not np.isfinite(pose.T_cam_from_obj).all():
            return None
        try:
            return self._render(obj_id, pose.T_cam_from_obj)
        except PicoPoseError:  # no mesh, or too little of the object is in the image to be cropped
            return None


def is_converged(before: RankedPose, after: RankedPose) -> bool:
    """Return whether a round has left a pose where it was."""
    T, T_after = before.T_cam_from_obj, after.T_cam_from_obj
    shift_m = np.linalg.norm(T_after[:3, 3] - T[:3, 3])
    rotation_deg = np.rad2deg(rotation_angle_rad(T[:3, :3], T_after[:3, :3]))
    return not (shift_m > CONVERGED_SHARE * np.linalg.norm(T[:3, 3]) or rotation_deg > CONVERGED_DEG)


def view_affines(T: Array, batch: QueryBatch, queries: Sequence[int], views: Sequence[TemplateView]) -> Array:
    """Return the similarities A_obs_from_tmpl (N,3,3) that stage 3 starts from, for poses T (N,4,4) of detections."""
    rows = list(queries)
    crops, cameras = np.stack([v.A_crop_from_image for v in views]), np.stack([v.K for v in views])
    centres = np.stack([view.centre_m for view in views])
    T_tmpl = move_origin(np.stack([view.T_tmpl_from_obj for view in views]), centres)
    return pose_affines(move_origin(T, centres), batch.A_crop_from_image[rows], crops, batch.K[rows], cameras, T_tmpl)


def mask_iou(template_mask: Array, observed_mask: Array, A_obs_from_tmpl: Array) -> float:
    """Return the intersection over union of an observation's mask and a template's under a similarity (3,3), crop px.

    Both masks (S,S) bool. Parts of the template outside of the observation's crop are not counted.
    """
    to_centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV counts from the centre of the first pixel
    A = np.linalg.inv(to_centre) @ A_obs_from_tmpl @ to_centre
    moved = cv2.warpAffine(template_mask.astype(np.float32), A[:2], observed_mask.shape[::-1]) > 0.5
    return float((moved & observed_mask).sum() / max((moved | observed_mask).sum(), 1))


def view_correspondences(flow: Array, logit: Array, view: TemplateView, A_crop_from_image: Array) -> Correspondences:
    """Return the correspondences of a view's flow (2,64,64) and certainty logits (64,64)."""
    xyz = cell_centre_points(view.depth_centre_m, view.K, view.A_crop_from_image, view.T_tmpl_from_obj)
    return subcell_correspondences(flow, logit, xyz, view.depth_centre_m > 0, A_crop_from_image)
