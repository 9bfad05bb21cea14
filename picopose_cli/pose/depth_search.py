"""Poses to start from that the depth image agrees with, for detections of which the picture is not sure.

The silhouettes of the templates that overlap with the mask give many poses. One small render of each is enough to move
it to the measured distance and to judge it there: what moves along its ray looks nearly the same. Many parts are nearly
symmetric, so that a pose turned by a quarter or a half about an axis of the object is tried, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from picopose_cli.base.geometry import distinct_rotations, move_origin
from picopose_cli.base.types import Array
from picopose_cli.pose.close_ups import shrink
from picopose_cli.pose.depth_placement import (
    MIN_SAMPLES,
    DepthRenderer,
    DepthSubject,
    moved_along_ray,
    robust_shift,
)
from picopose_cli.pose.depth_rows import judge_pose, touching_planes
from picopose_cli.pose.silhouette_starts import Silhouettes, silhouette_starts

STARTS = 40
"""Poses by silhouettes that are judged."""
KEPT_STARTS = 4
"""Of those, the ones that depth agrees with most and that differ."""
DISTINCT_DEG = 12.0
"""Of poses that differ by less, the best alone is kept."""
TURNS = np.stack([cv2.Rodrigues(angle * axis)[0] for axis in np.eye(3) for angle in (np.pi, np.pi / 2, -np.pi / 2)])
"""Rotations (9,3,3) of the object by which a pose is turned."""
KEPT_TURNS, TURN_SHARE = 2, 0.75
"""Turns that are kept at most, and how well depth must agree with one, in shares of the pose itself."""
ROUGHNESS = 0.03
"""Standard deviation of a start's surface, in diagonals of what is seen of it: the nearest view is degrees off."""


def search_starts(
    render: DepthRenderer, subject: DepthSubject, silhouettes: Silhouettes, known: Sequence[Array]
) -> list[Array]:
    """Return poses (4,4) at the measured distance that differ from those `known` (4,4), best first."""
    samples = subject.samples.halved()
    small = shrink(subject.close_up, samples.side_px)
    starts = silhouette_starts(silhouettes, small.mask, small.shown, small.K, STARTS)
    half = replace(subject, samples=samples)
    found = [one for one in (_placed(render, half, T) for T in starts) if one is not None]
    found.sort(key=lambda one: -one[0])
    poses = [*known, *(T for _, T in found)]
    rotations = np.stack([T[:3, :3] for T in poses]) if poses else np.zeros((0, 3, 3))
    chosen = distinct_rotations(rotations, np.deg2rad(DISTINCT_DEG), len(known) + KEPT_STARTS)
    return [poses[i] for i in chosen if i >= len(known)][:KEPT_STARTS]


def turned_poses(render: DepthRenderer, subject: DepthSubject, T_cam_from_obj: Array, centre_m: Array) -> list[Array]:
    """Return turns of a pose (4,4) that a small render does not rule out, at the measured distance, best first.

    `centre_m` (3,) of the object, about which it is turned.
    """
    half = replace(subject, samples=subject.samples.halved())
    own = _placed(render, half, T_cam_from_obj)
    turned = np.tile(move_origin(T_cam_from_obj, centre_m), (len(TURNS), 1, 1))
    turned[:, :3, :3] = turned[:, :3, :3] @ TURNS
    turned = move_origin(turned, -centre_m)
    found = [one for one in (_placed(render, half, T) for T in turned) if one is not None]
    found.sort(key=lambda one: -one[0])
    least = TURN_SHARE * own[0] if own is not None else 0.0
    return [T for score, T in found[:KEPT_TURNS] if score > least]


def _placed(render: DepthRenderer, subject: DepthSubject, T: Array) -> tuple[float, Array] | None:
    """Return how well a start (4,4) agrees with depth at the measured distance, and itself there; None if nowhere."""
    samples = subject.samples
    touching = touching_planes(samples, render.depth(subject.obj_id, T, samples.K, samples.side_px))
    on_mask = samples.in_mask[touching.sample]
    if np.count_nonzero(on_mask) < MIN_SAMPLES // 2:
        return None
    rendered = touching.xyz_cam_m[:, 2]
    distance = samples.xyz_m[touching.sample, 2] - rendered
    shift_m = robust_shift(distance[on_mask], float(np.median(rendered[on_mask])))
    moved = moved_along_ray(T, touching.xyz_cam_m[on_mask], shift_m)
    size_m = float(np.linalg.norm(np.ptp(touching.xyz_cam_m, axis=0)))
    verdict = judge_pose(samples, replace(touching, distance_m=distance - shift_m), ROUGHNESS * size_m)
    return verdict.agreement * verdict.explained * verdict.overlap, moved
