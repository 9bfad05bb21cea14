"""Random arrangements of objects in front of a camera: floating close together, or resting on a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picopose_cli.base.geometry import invert_T, project_points, transform_points
from picopose_cli.base.types import Array
from picopose_cli.synthesis.lighting import Light, random_light
from picopose_cli.synthesis.objects import SyntheticObject
from picopose_cli.synthesis.placement import Framing, place_floating, place_on_table

IMAGE_HW = (480, 640)
FOCAL_PX = (400.0, 2500.0)
"""Range of focal lengths in an image of 640 columns."""
BOX_PX = (44.0, 400.0)
"""Range of the longest side of the first object's box in an image of 640 columns."""
_IMAGE_SCALES = (0.75, 1.0, 1.0, 1.0, 1.125, 1.5)
"""Image sizes to choose from, relative to IMAGE_HW."""
_FULL_ROTATION_LEVEL, _SINGLE_OBJECT_LEVEL = 0.3, 0.2


@dataclass(frozen=True)
class Difficulty:
    """The difficulty of scenes, derived from one level in [0, 1]: one aspect after another becomes harder."""

    roll_rad: float
    """Largest rotation in the image plane, in either direction."""
    max_objects: int
    """Largest number of target objects."""
    max_clutter: int
    """Largest number of further objects, which only occlude."""
    table_share: float
    plain_background_share: float
    """Share of backgrounds of one colour."""
    light_strength: float
    sensor_strength: float
    rough_mask_share: float
    """Share of masks with the errors of a detector's."""

    @staticmethod
    def at(level: float) -> Difficulty:
        """Return the difficulty of a level: first upright and on one colour, then rotated, then occluded, then all."""
        level = float(np.clip(level, 0, 1))
        crowd = max(level - _SINGLE_OBJECT_LEVEL, 0) / (1 - _SINGLE_OBJECT_LEVEL)
        return Difficulty(
            roll_rad=np.pi * min(level / _FULL_ROTATION_LEVEL, 1),
            max_objects=1 + round(5 * crowd),
            max_clutter=round(4 * crowd),
            table_share=0.45 * min(crowd * 2, 1),
            plain_background_share=1 - 0.9 * min(level / 0.3, 1),
            light_strength=0.2 + 0.8 * min(2 * level, 1),
            sensor_strength=0.15 + 0.85 * level,
            rough_mask_share=0.6 * min(2 * level, 1),
        )


@dataclass(frozen=True)
class PlacedObject:
    """An object in a scene: `T_cam_from_obj` (4,4) metres; `paint_rgb` (3,) is the colour of one that has none."""

    item: SyntheticObject
    T_cam_from_obj: Array
    paint_rgb: Array


@dataclass(frozen=True)
class Scene:
    """Objects in front of a camera K (3,3): of `placed`, the first `target_count` are targets, the rest is clutter.

    `T_cam_from_table` (4,4), metres, is the table they rest on, its z axis up; None where they float. The background is
    number `background_index` of those available, placed at random from `background_seed`, or with `plain_background`
    one colour of it.
    """

    placed: tuple[PlacedObject, ...]
    target_count: int
    K: Array
    size_hw: tuple[int, int]
    light: Light
    T_cam_from_table: Array | None
    background_index: int
    background_seed: int
    plain_background: bool


def random_scene(
    rng: np.random.Generator,
    pool: Sequence[SyntheticObject],
    difficulty: Difficulty,
    *,
    backgrounds: int,
    size_hw: tuple[int, int] | None = None,
    box_px: tuple[float, float] = BOX_PX,
    use_whole_pool: bool = False,
) -> Scene:
    """Return a scene of objects chosen from `pool`, with one of `backgrounds` backgrounds.

    `box_px` is the range of the longest side of the first object's box in an image of 640 columns; `use_whole_pool`
    makes every object of the pool a target.
    """
    scale = 1.0 if size_hw else float(rng.choice(_IMAGE_SCALES))
    height, width = size_hw or (round(IMAGE_HW[0] * scale), round(IMAGE_HW[1] * scale))
    K = random_camera(rng, width, height)
    targets = len(pool) if use_whole_pool else int(rng.integers(1, difficulty.max_objects + 1))
    clutter = int(rng.integers(0, difficulty.max_clutter + 1))
    on_table = rng.random() < difficulty.table_share
    chosen = _choose_objects(rng, pool, targets + clutter, similar_sizes=on_table and not use_whole_pool)
    side_px = float(np.exp(rng.uniform(*np.log(box_px)))) * width / IMAGE_HW[1]
    framing = Framing(K, (height, width), side_px, difficulty.roll_rad)
    if on_table:
        T_cam_from_table, poses = place_on_table(rng, chosen, framing)
    else:
        T_cam_from_table, poses = None, place_floating(rng, chosen, framing)
    placed = tuple(PlacedObject(item, T, _paint(rng)) for item, T in zip(chosen, poses, strict=True))
    return Scene(
        placed=placed,
        target_count=min(targets, len(chosen)),
        K=K,
        size_hw=(height, width),
        light=random_light(rng, difficulty.light_strength),
        T_cam_from_table=T_cam_from_table,
        background_index=int(rng.integers(backgrounds)),
        background_seed=int(rng.integers(2**31)),
        plain_background=bool(rng.random() < difficulty.plain_background_share),
    )


def random_camera(rng: np.random.Generator, width: int, height: int) -> Array:
    """Return a camera matrix (3,3) with a focal length as in BOP and a slightly decentred principal point."""
    focal_px = np.exp(rng.uniform(*np.log(FOCAL_PX))) * width / IMAGE_HW[1]
    cx, cy = width / 2 + rng.normal(0, 0.015) * width, height / 2 + rng.normal(0, 0.015) * height
    return np.array([[focal_px, 0, cx], [0, focal_px * rng.uniform(0.995, 1.005), cy], [0, 0, 1]])


def _choose_objects(
    rng: np.random.Generator, pool: Sequence[SyntheticObject], count: int, *, similar_sizes: bool
) -> list[SyntheticObject]:
    order = [pool[index] for index in rng.permutation(len(pool))]
    if similar_sizes:  # on one table, a small object would be hidden beside a much larger one
        first = order[0].diameter_m
        order = [item for item in order if 1 / 2.5 < item.diameter_m / first < 2.5]
    return order[:count]


def _paint(rng: np.random.Generator) -> Array:
    """Return a colour (3,) f64 in [0, 255]: mostly grey or metallic, as untextured parts are, some of them coloured."""
    grey = rng.uniform(60, 250)
    return np.clip(grey + rng.normal(0, 5 if rng.random() < 0.7 else 60, 3), 15, 255)


def image_box(placed: PlacedObject, K: Array) -> Array:
    """Return the box_xyxy (4,) f64 px of the object's vertices in the image; it may extend beyond the image."""
    corners = placed.item.lit_mesh.raster_mesh.corners + placed.item.lit_mesh.raster_mesh.centre
    xyz_cam = transform_points(placed.T_cam_from_obj, corners)
    uv = project_points(K, np.maximum(xyz_cam, (-np.inf, -np.inf, 1e-3)))
    return np.concatenate([uv.min(axis=0), uv.max(axis=0)])


def shadow_outline(placed: PlacedObject, scene: Scene) -> Array | None:
    """Return the shadows (N,2) px of the object's vertices on the table, or None where there is no shadow."""
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
