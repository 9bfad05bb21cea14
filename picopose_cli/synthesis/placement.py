"""Poses of objects in front of a camera: floating close together, or resting on a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Array
from picopose_cli.synthesis.objects import SyntheticObject

_PROJECTED_SHARE = 0.72
"""Size of an object's box in the image relative to its projected diagonal, on average over viewing directions."""
_NEAREST_DIAMETERS, _NEAREST_ON_TABLE_DIAMETERS = 1.4, 2.5
"""Smallest distance of an object from the camera."""


@dataclass(frozen=True)
class Framing:
    """The image that objects are placed in: its camera matrix `K` (3,3) and size.

    `side_px` is the longest side of the first object's box; `roll_rad` the largest rotation in the image plane.
    """

    K: Array
    size_hw: tuple[int, int]
    side_px: float
    roll_rad: float

    def distance_m(self, item: SyntheticObject, side_px: float, nearest_diameters: float) -> float:
        """Return the depth at which the box of an object has a side of `side_px`, or the smallest allowed depth."""
        z_m = self.K[0, 0] * item.diameter_m * _PROJECTED_SHARE / side_px
        return float(max(z_m, nearest_diameters * item.diameter_m))


def look_at(direction: Array, roll_rad: float) -> Array:
    """Return R_cam_from_obj (3,3) of a camera in `direction` (3,) from the object, z axis up, then rolled."""
    forward = -direction / np.linalg.norm(direction)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    if np.linalg.norm(right) < 1e-6:
        right = np.array([1.0, 0.0, 0.0])
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    cos, sin = np.cos(roll_rad), np.sin(roll_rad)
    return np.asarray(np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ R)


def place_floating(rng: np.random.Generator, chosen: Sequence[SyntheticObject], framing: Framing) -> list[Array]:
    """Return each T_cam_from_obj (4,4) of objects placed next to each other in the image, touching or overlapping."""
    height = framing.size_hw[0]
    poses: list[Array] = []
    centres, sides = np.empty((0, 2)), np.empty(0)
    for item in chosen:
        side = framing.side_px if not poses else framing.side_px * float(np.exp(rng.uniform(-0.7, 0.5)))
        side = min(side, 0.9 * height)
        centre = _centre_in_image(rng, centres, sides, side, framing.size_hw)
        z_m = framing.distance_m(item, side, _NEAREST_DIAMETERS)
        ray = np.linalg.inv(framing.K) @ (*centre, 1.0)
        R = look_at(rng.normal(size=3), rng.uniform(-framing.roll_rad, framing.roll_rad))
        poses.append(make_T(_facing(ray) @ R, ray * z_m))
        centres, sides = np.concatenate([centres, centre[None]]), np.append(sides, side)
    return poses


def _centre_in_image(
    rng: np.random.Generator, centres: Array, sides: Array, side: float, size_hw: tuple[int, int]
) -> Array:
    """Return the centre (2,) px of the next object: anywhere for the first one, then beside one of those placed."""
    height, width = size_hw
    if not len(sides):
        margin = min(0.5 * side, 0.45 * height)
        return np.array([rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)])
    other = int(rng.integers(len(sides)))
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.75) * (side + sides[other])
    centre = centres[other] + reach * np.array([np.cos(angle), np.sin(angle)])
    return np.asarray(np.clip(centre, 0.05 * side, np.array([width, height]) - 0.05 * side))


def _facing(ray: Array) -> Array:
    """Return the smallest rotation (3,3) that takes the optical axis to a ray (3,): upright objects stay upright."""
    ray = ray / np.linalg.norm(ray)
    axis = np.cross((0.0, 0.0, 1.0), ray)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + cross + cross @ cross / (1 + ray[2]))


def place_on_table(
    rng: np.random.Generator, chosen: Sequence[SyntheticObject], framing: Framing
) -> tuple[Array, list[Array]]:
    """Return T_cam_from_table (4,4) and each T_cam_from_obj (4,4) of objects placed side by side on a table."""
    poses: list[Array] = []
    spots, radii = np.empty((0, 2)), np.empty(0)
    for item in chosen:
        R = _resting_rotation(rng)
        vertices = item.mesh.vertices_m @ R.T
        radius = 0.5 * float(np.mean(np.ptp(vertices[:, :2], axis=0)))
        spot = _free_spot(rng, spots, radii, radius)
        poses.append(make_T(R, np.array([*spot, -vertices[:, 2].min()])))
        spots, radii = np.concatenate([spots, spot[None]]), np.append(radii, radius)
    T_cam_from_table = _table_pose(rng, chosen[0], spots, radii, framing)
    return T_cam_from_table, [T_cam_from_table @ T for T in poses]


def _table_pose(
    rng: np.random.Generator, first: SyntheticObject, spots: Array, radii: Array, framing: Framing
) -> Array:
    """Return T_cam_from_table (4,4) of a camera above a table with objects of `radii` (N,) m at `spots` (N,2) m."""
    elevation, azimuth = np.arcsin(rng.uniform(0.4, 0.98)), rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    roll_rad = min(framing.roll_rad, 0.25) if rng.random() < 0.7 else framing.roll_rad
    R = look_at(direction, rng.uniform(-roll_rad, roll_rad))
    height, width = framing.size_hw
    aim = np.array([rng.uniform(0.35, 0.65) * width, rng.uniform(0.35, 0.65) * height, 1.0])
    middle = np.array([*spots.mean(axis=0), 0.3 * first.diameter_m])
    # Far enough for all of them to be in front of the camera.
    reach_m = 1.2 * float((np.linalg.norm(spots - middle[:2], axis=1) + radii).max())
    z_m = max(framing.distance_m(first, framing.side_px, _NEAREST_ON_TABLE_DIAMETERS), reach_m)
    return make_T(R, np.linalg.inv(framing.K) @ aim * z_m - R @ middle)


def _resting_rotation(rng: np.random.Generator) -> Array:
    """Return R_table_from_obj (3,3): upright, or on one of its six sides, with a random rotation about the vertical."""
    R = np.eye(3)
    if rng.random() < 0.5:
        R = R[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)[:, None]
        R[0] *= np.linalg.det(R)
    yaw = rng.uniform(0, 2 * np.pi)
    R_yaw = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    return np.asarray(R_yaw @ R)


def _free_spot(rng: np.random.Generator, spots: Array, radii: Array, radius: float) -> Array:
    """Return the centre (2,) of a new disc that touches one of the discs (N,2), overlaps none, near their mean."""
    if not len(spots):
        return np.zeros(2)
    angle = rng.uniform(0, 2 * np.pi, 24)
    beside = rng.integers(0, len(spots), 24)
    reach = (radii[beside] + radius) * rng.uniform(0.9, 1.15, 24)
    tried = spots[beside] + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    gap = np.linalg.norm(tried[:, None] - spots, axis=-1) - 0.85 * (radii + radius)
    cost = np.linalg.norm(tried - spots.mean(axis=0), axis=1) + 100 * np.maximum(-gap, 0).sum(axis=1)
    return np.asarray(tried[cost.argmin()])
