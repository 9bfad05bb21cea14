"""Measured depth against a render: distances from the rendered surface, as rows of the robust solver and as a verdict.

A sample of the depth image always falls on the same pixel of the render, whatever the distance that was measured there.
The plane that touches the rendered surface at that pixel is what its measured point is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from picopose_cli.base.types import Array
from picopose_cli.pose.depth_samples import DepthSamples, depth_noise_m
from picopose_cli.pose.residuals import PlaneResiduals

OUTSIDE_WEIGHT = 0.5
"""Weight of samples outside of the mask: masks of detectors miss parts of objects."""
MIN_COSINE = 0.15
"""Of the angle between normal and ray: a surface seen at a flatter angle is not compared."""
MAX_BEND = 0.3
"""Largest change of the slope from one pixel to the next, in slopes and a constant: at an edge there is no plane."""
GATE = 2.4
"""Rows that are farther from the surface than this, in reaches, are of something else."""
LEAST_REACH_STDS = 2.5
"""Least reach of a row, in standard deviations: that of the solver's narrowest kernel."""
TOLERANCE_STDS = 2.0
"""A point is on the surface up to this distance, in standard deviations."""


@dataclass(frozen=True)
class Touching:
    """The samples on a render's silhouette with a depth, M of them, and the planes that touch the surface there.

    `sample` (M,) indices of the samples; `xyz_cam_m` (M,3) points of the rendered surface, `normal` (M,3) of unit
    length, towards the camera's far side; `distance_m` (M,): of the measured point along the normal, positive behind
    the surface; `is_plane` (M,) bool: whether the surface has a normal that can be trusted.
    """

    sample: Array
    xyz_cam_m: Array
    normal: Array
    distance_m: Array
    is_plane: Array


def touching_planes(samples: DepthSamples, depth_m: Array) -> Touching:
    """Return where samples fall on a render `depth_m` (S,S), 0 outside of the object.

    The inverse depth of a plane is linear in the image, so that differences of it give the normal exactly.
    """
    side_px = samples.side_px
    inverse = np.zeros((side_px + 2, side_px + 2))  # a border: what is beside the image is not the object
    np.divide(1.0, depth_m, out=inverse[1:-1, 1:-1], where=depth_m > 0, dtype=np.float64)
    row, col = np.divmod(samples.pixel, side_px)
    sample = np.flatnonzero(samples.measured & (inverse[row + 1, col + 1] > 0))
    row, col = row[sample], col[sample]
    here = inverse[row + 1, col + 1]
    along_u, is_smooth_u = _slope(here, inverse[row + 1, col], inverse[row + 1, col + 2])
    along_v, is_smooth_v = _slope(here, inverse[row, col + 1], inverse[row + 2, col + 1])
    constant = here - along_u * (col + 0.5) - along_v * (row + 0.5)
    K = samples.K  # the plane m . x = 1 has m = K^T (along_u, along_v, constant)
    plane = np.stack(
        [K[0, 0] * along_u, K[0, 1] * along_u + K[1, 1] * along_v, K[0, 2] * along_u + K[1, 2] * along_v + constant],
        axis=1,
    )
    length, rays = _lengths(plane), samples.rays[sample]
    flat = is_smooth_u & is_smooth_v & (here > MIN_COSINE * length * _lengths(rays))
    measured, xyz_cam_m = samples.xyz_m[sample], rays / here[:, None]
    along_normal = (np.einsum("ij,ij->i", plane, measured) - 1) / length
    distance_m = np.where(flat, along_normal, measured[:, 2] - xyz_cam_m[:, 2])
    return Touching(sample, xyz_cam_m, plane / length[:, None], distance_m, flat)


def _lengths(vectors: Array) -> Array:
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)))


def _slope(here: Array, before: Array, after: Array) -> tuple[Array, Array]:
    """Return the slopes (M,) of the inverse depth from its values at pixels and their neighbours, and which are good.

    Where a neighbour is not on the object the other side alone counts.
    """
    has_before, has_after = before > 0, after > 0
    rising, falling = np.where(has_after, after - here, 0.0), np.where(has_before, here - before, 0.0)
    slope = (rising + falling) / np.maximum(has_before.astype(int) + has_after, 1)
    bend = np.where(has_before & has_after, np.abs(rising - falling), 0.0)
    return slope, (has_before | has_after) & (bend <= MAX_BEND * (np.abs(slope) + 2e-3 * here))


def depth_residuals(
    samples: Sequence[DepthSamples],
    touching: Sequence[Touching],
    T_cam_from_obj: Array,
    reach: float,
    device: torch.device,
) -> PlaneResiduals:
    """Return the rows of B poses (B,4,4) whose renders samples touch.

    `reach`: distance of the surface at which a row loses its weight, in diagonals of what is seen of the object; it is
    never less than the noise allows.
    """
    of_poses = [_rows(*one, reach) for one in zip(samples, touching, T_cam_from_obj, strict=True)]
    padded = np.zeros((10, len(of_poses), max([1, *map(len, of_poses)])))
    padded[8:] = 1
    for index, of_pose in enumerate(of_poses):
        padded[:, index, : len(of_pose)] = of_pose.T
    rows = torch.from_numpy(padded).to(device)
    return PlaneResiduals(
        rows[:3].permute(1, 2, 0), rows[3:6].permute(1, 2, 0), rows[6], rows[7], rows[8], rows[9]
    )  # fmt: skip


def _rows(samples: DepthSamples, touching: Touching, T: Array, reach: float) -> Array:
    """Return xyz_obj_m, normal, offset_m, weight, std_m and kernel_scale of the samples that touch planes, (N,10)."""
    std_m = depth_noise_m(samples.xyz_m[touching.sample, 2])
    size_m = np.linalg.norm(np.ptp(touching.xyz_cam_m, axis=0)) if len(touching.sample) else 0.0
    reach_m = np.maximum(reach * size_m, LEAST_REACH_STDS * std_m)
    used = touching.is_plane & (np.abs(touching.distance_m) < GATE * reach_m)
    sample, normal, xyz_cam = touching.sample[used], touching.normal[used], touching.xyz_cam_m[used]
    measured, std_m = samples.xyz_m[sample], std_m[used]
    xyz_obj = (xyz_cam - T[:3, 3]) @ T[:3, :3]
    offset = (normal * measured).sum(axis=1)
    weight = np.where(samples.in_mask[sample], 1.0, OUTSIDE_WEIGHT)
    kernel_scale = reach_m[used] / (LEAST_REACH_STDS * std_m)
    numbers = np.stack([offset, weight, std_m, kernel_scale], axis=1)
    return np.concatenate([xyz_obj, normal, numbers], axis=1)


@dataclass(frozen=True)
class DepthVerdict:
    """What a depth image says of a pose.

    `agreement` in [0, 1]: of the samples that are on the render's silhouette and speak for or against it, the share
    that is on the surface: one behind it refutes the pose, one in front of it within the mask, too, but in front and
    outside of the mask something else occludes the object. `explained` in [0, 1]: share of the mask's depths that are
    on the surface. `overlap` in [0, 1]: intersection over union of silhouette and mask, without what is occluded.
    """

    agreement: float
    explained: float
    overlap: float


def judge_pose(samples: DepthSamples, touching: Touching, more_std_m: float = 0.0) -> DepthVerdict:
    """Return what the depth image says of the pose of a render; `more_std_m`: noise of the pose's own surface."""
    std_m = np.hypot(depth_noise_m(samples.xyz_m[touching.sample, 2]), more_std_m)
    distance, in_mask = touching.distance_m / std_m, samples.in_mask[touching.sample]
    on_surface = 1 / (1 + (distance / TOLERANCE_STDS) ** 2) ** 2
    says_nothing = (distance < -TOLERANCE_STDS) & ~in_mask
    speaking = max(int((~says_nothing).sum()), 1)
    in_all = max(int((samples.in_mask & samples.measured).sum()), 1)
    agreement = float(on_surface[~says_nothing].sum() / speaking)
    beside = np.count_nonzero(~in_mask & ~says_nothing)
    overlap = float(np.count_nonzero(in_mask) / (in_all + beside))
    return DepthVerdict(agreement, float(on_surface[in_mask].sum() / in_all), overlap)
