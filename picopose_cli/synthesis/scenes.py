"""What stands where: objects before a camera, floating close together or resting on a table, among clutter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picopose_cli.base.geometry import invert_T, make_T, project_points, transform_points
from picopose_cli.base.types import Array
from picopose_cli.synthesis.lighting import Light, random_light
from picopose_cli.synthesis.objects import SyntheticObject

IMAGE_HW = (480, 640)
FOCAL_PX = (400.0, 2500.0)
"""Of an image of 640 columns."""
BOX_PX = (44.0, 400.0)
"""Sides of an object's box in an image of 640 columns."""
_PROJECTED_SHARE = 0.72
"""An object's box in the image is about this share of its diagonal, seen from anywhere."""
_NEAREST_DIAMETERS = 1.4
_FULL_ROTATION_LEVEL, _SINGLE_OBJECT_LEVEL = 0.3, 0.2


@dataclass(frozen=True)
class Difficulty:
    """How hard scenes may be: set by one level in [0, 1], one thing after the other."""

    roll_rad: float
    """Rotations in the image plane go up to this, either way."""
    max_objects: int
    clutter: int
    """Most objects that nobody asks for."""
    table_share: float
    plain_share: float
    """Share of backgrounds of one plain colour."""
    light: float
    sensor: float
    rough_share: float
    """Share of masks that are rough as a detector's."""

    @staticmethod
    def at(level: float) -> Difficulty:
        """Return the difficulty of a level: upright on plain ground, then turned, then hidden, then all at once."""
        level = float(np.clip(level, 0, 1))
        crowd = max(level - _SINGLE_OBJECT_LEVEL, 0) / (1 - _SINGLE_OBJECT_LEVEL)
        return Difficulty(
            roll_rad=np.pi * min(level / _FULL_ROTATION_LEVEL, 1),
            max_objects=1 + round(5 * crowd),
            clutter=round(4 * crowd),
            table_share=0.45 * min(crowd * 2, 1),
            plain_share=1 - 0.9 * min(level / 0.3, 1),
            light=0.2 + 0.8 * min(2 * level, 1),
            sensor=0.15 + 0.85 * level,
            rough_share=0.6 * min(2 * level, 1),
        )


@dataclass(frozen=True)
class PlacedObject:
    """An object in a scene: `T_cam_from_obj` (4,4) metres; `paint_rgb` (3,) for one without colour of its own."""

    item: SyntheticObject
    T_cam_from_obj: Array
    paint_rgb: Array


@dataclass(frozen=True)
class Scene:
    """What a camera K (3,3) sees: `placed` objects, of which the first `wanted` are of interest, the rest clutter.

    `T_cam_from_table` (4,4) is the table they rest on, its z axis up, None where they float. The background is the
    picture number `picture`, laid out from `picture_seed`; `plain` means that a single colour does.
    """

    placed: tuple[PlacedObject, ...]
    wanted: int
    K: Array
    size_hw: tuple[int, int]
    light: Light
    T_cam_from_table: Array | None
    picture: int
    picture_seed: int
    plain: bool


def random_scene(
    rng: np.random.Generator,
    pool: Sequence[SyntheticObject],
    difficulty: Difficulty,
    *,
    pictures: int,
    size_hw: tuple[int, int] | None = None,
    box_px: tuple[float, float] = BOX_PX,
    everything: bool = False,
) -> Scene:
    """Return a scene of objects drawn from `pool`, with one of `pictures` background pictures.

    `box_px` is the range of sides of the first object's box in an image of 640 columns; `everything` takes all objects
    of the pool, every one of them wanted.
    """
    scale = 1.0 if size_hw else float(rng.choice([0.75, 1.0, 1.0, 1.0, 1.125, 1.5]))
    height, width = size_hw or (round(IMAGE_HW[0] * scale), round(IMAGE_HW[1] * scale))
    K = random_camera(rng, width, height)
    wanted = len(pool) if everything else int(rng.integers(1, difficulty.max_objects + 1))
    clutter = int(rng.integers(0, difficulty.clutter + 1))
    on_table = rng.random() < difficulty.table_share
    chosen = _choose_objects(rng, pool, wanted + clutter, alike=on_table and not everything)
    side_px = float(np.exp(rng.uniform(*np.log(box_px)))) * width / IMAGE_HW[1]
    if on_table:
        T_cam_from_table, poses = lay_table(rng, chosen, K, (height, width), side_px, difficulty.roll_rad)
    else:
        T_cam_from_table, poses = None, _float(rng, chosen, K, (height, width), side_px, difficulty.roll_rad)
    placed = tuple(PlacedObject(item, T, _paint(rng)) for item, T in zip(chosen, poses, strict=True))
    return Scene(
        placed,
        min(wanted, len(chosen)),
        K,
        (height, width),
        random_light(rng, difficulty.light),
        T_cam_from_table,
        int(rng.integers(pictures)),
        int(rng.integers(2**31)),
        bool(rng.random() < difficulty.plain_share),
    )


def random_camera(rng: np.random.Generator, width: int, height: int) -> Array:
    """Return a camera matrix (3,3) of BOP's range of focal lengths, its centre a little off the image's."""
    focal_px = np.exp(rng.uniform(*np.log(FOCAL_PX))) * width / IMAGE_HW[1]
    cx, cy = width / 2 + rng.normal(0, 0.015) * width, height / 2 + rng.normal(0, 0.015) * height
    return np.array([[focal_px, 0, cx], [0, focal_px * rng.uniform(0.995, 1.005), cy], [0, 0, 1]])


def look_at(direction: Array, roll_rad: float) -> Array:
    """Return R_cam_from_obj (3,3) of a camera that stands in `direction` (3,) from the object, z up, then rolled."""
    forward = -direction / np.linalg.norm(direction)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    if np.linalg.norm(right) < 1e-6:
        right = np.array([1.0, 0.0, 0.0])
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    cos, sin = np.cos(roll_rad), np.sin(roll_rad)
    return np.asarray(np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ R)


def _choose_objects(
    rng: np.random.Generator, pool: Sequence[SyntheticObject], count: int, *, alike: bool
) -> list[SyntheticObject]:
    order = [pool[index] for index in rng.permutation(len(pool))]
    if alike:  # on one table, a thimble would vanish beside a bucket
        first = order[0].diameter_m
        order = [item for item in order if 1 / 2.5 < item.diameter_m / first < 2.5]
    return order[:count]


def _float(
    rng: np.random.Generator,
    chosen: Sequence[SyntheticObject],
    K: Array,
    size_hw: tuple[int, int],
    box_px: float,
    roll_rad: float,
) -> list[Array]:
    """Place objects in the image: each beside an earlier one, as far as it takes to touch or to cover some of it."""
    height, width = size_hw
    poses: list[Array] = []
    centres, sides = np.empty((0, 2)), np.empty(0)
    for item in chosen:
        side = box_px if not poses else box_px * float(np.exp(rng.uniform(-0.7, 0.5)))
        side = min(side, 0.9 * height)
        if not poses:
            margin = min(0.5 * side, 0.45 * height)
            centre = np.array([rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)])
        else:
            other = int(rng.integers(len(sides)))
            angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.75) * (side + sides[other])
            centre = centres[other] + reach * np.array([np.cos(angle), np.sin(angle)])
            centre = np.clip(centre, 0.05 * side, np.array([width, height]) - 0.05 * side)
        z = max(K[0, 0] * item.diameter_m * _PROJECTED_SHARE / side, _NEAREST_DIAMETERS * item.diameter_m)
        ray = np.linalg.inv(K) @ (*centre, 1.0)
        R = look_at(rng.normal(size=3), rng.uniform(-roll_rad, roll_rad))
        poses.append(make_T(_facing(ray) @ R, ray * z))
        centres, sides = np.concatenate([centres, centre[None]]), np.append(sides, side)
    return poses


def _facing(ray: Array) -> Array:
    """Return the smallest rotation (3,3) that takes the optical axis to a ray: what is upright there stays upright."""
    ray = ray / np.linalg.norm(ray)
    axis = np.cross((0.0, 0.0, 1.0), ray)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + cross + cross @ cross / (1 + ray[2]))


def lay_table(
    rng: np.random.Generator,
    chosen: Sequence[SyntheticObject],
    K: Array,
    size_hw: tuple[int, int],
    box_px: float,
    roll_rad: float,
) -> tuple[Array, list[Array]]:
    """Place objects on a table side by side; return T_cam_from_table (4,4) and each T_cam_from_obj (4,4)."""
    on_table: list[Array] = []
    spots, radii = np.empty((0, 2)), np.empty(0)
    for item in chosen:
        R = _resting_rotation(rng)
        vertices = item.mesh.vertices_m @ R.T
        radius = 0.5 * float(np.mean(np.ptp(vertices[:, :2], axis=0)))
        spot = _free_spot(rng, spots, radii, radius)
        on_table.append(make_T(R, np.array([*spot, -vertices[:, 2].min()])))
        spots, radii = np.concatenate([spots, spot[None]]), np.append(radii, radius)
    elevation, azimuth = np.arcsin(rng.uniform(0.4, 0.98)), rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    steep = min(roll_rad, 0.25) if rng.random() < 0.7 else roll_rad
    R_cam_from_table = look_at(direction, rng.uniform(-steep, steep))
    first = chosen[0]
    z = max(K[0, 0] * first.diameter_m * _PROJECTED_SHARE / box_px, 2.5 * first.diameter_m)
    aim = np.array([rng.uniform(0.35, 0.65) * size_hw[1], rng.uniform(0.35, 0.65) * size_hw[0], 1.0])
    middle = np.array([*spots.mean(axis=0), 0.3 * first.diameter_m])
    # Far enough for the whole of them to stand before the camera.
    z = max(z, 1.2 * float((np.linalg.norm(spots - middle[:2], axis=1) + radii).max()))
    T_cam_from_table = make_T(R_cam_from_table, np.linalg.inv(K) @ aim * z - R_cam_from_table @ middle)
    return T_cam_from_table, [T_cam_from_table @ T for T in on_table]


def _resting_rotation(rng: np.random.Generator) -> Array:
    """Return R_table_from_obj (3,3): upright, or on one of its six sides, turned about the vertical."""
    R = np.eye(3)
    if rng.random() < 0.5:
        R = R[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)[:, None]
        R[0] *= np.linalg.det(R)
    yaw = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    return np.asarray(turn @ R)


def _free_spot(rng: np.random.Generator, spots: Array, radii: Array, radius: float) -> Array:
    """Return where a round thing fits that touches one of those there and is nearest to their middle."""
    if not len(spots):
        return np.zeros(2)
    angle = rng.uniform(0, 2 * np.pi, 24)
    beside = rng.integers(0, len(spots), 24)
    reach = (radii[beside] + radius) * rng.uniform(0.9, 1.15, 24)
    tried = spots[beside] + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    gap = np.linalg.norm(tried[:, None] - spots, axis=-1) - 0.85 * (radii + radius)
    cost = np.linalg.norm(tried - spots.mean(axis=0), axis=1) + 100 * np.maximum(-gap, 0).sum(axis=1)
    return np.asarray(tried[cost.argmin()])


def _paint(rng: np.random.Generator) -> Array:
    """Return a colour (3,) f64: greys and metals mostly, as parts without a texture are, some of them coloured."""
    grey = rng.uniform(60, 250)
    return np.clip(grey + rng.normal(0, 5 if rng.random() < 0.7 else 60, 3), 15, 255)


def image_box(placed: PlacedObject, K: Array) -> Array:
    """Return the box (x0, y0, x1, y1) px of the object's vertices in the image, (4,) f64; it may reach outside."""
    corners = placed.item.lit.raster_mesh.corners + placed.item.lit.raster_mesh.centre
    xyz_cam = transform_points(placed.T_cam_from_obj, corners)
    uv = project_points(K, np.maximum(xyz_cam, (-np.inf, -np.inf, 1e-3)))
    return np.concatenate([uv.min(axis=0), uv.max(axis=0)])


def shadow_outline(placed: PlacedObject, scene: Scene) -> Array | None:
    """Return the points (N,2) px in the image on which the object's vertices throw their shadow on the table."""
    if scene.T_cam_from_table is None:
        return None
    T_table_from_cam = invert_T(scene.T_cam_from_table)
    lamp = T_table_from_cam[:3, :3] @ scene.light.direction_cam
    if lamp[2] < 0.15:  # the light comes from below the table
        return None
    vertices = transform_points(T_table_from_cam @ placed.T_cam_from_obj, placed.item.mesh.vertices_m[::7])
    on_table = vertices - vertices[:, 2:] * (lamp / lamp[2])
    xyz_cam = transform_points(scene.T_cam_from_table, on_table)
    return project_points(scene.K, xyz_cam) if xyz_cam[:, 2].min() > 1e-2 else None
