"""Objects that look the same after some turns, in shape and in colour, and the turns that do that.

Each is a piece of surface, copied by every turn of its symmetry group with the texture coordinates of the first: the
copies are equal to the last bit of a rotation, whatever is painted on the piece. What is painted is looked at, so that
no turn but the declared ones leaves the look unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Array, Mesh
from picopose_cli.synthesis.objects import has_contrast
from picopose_cli.synthesis.shapes import Shape, Tile, centred, join, surface_grid, turned_profile
from picopose_cli.synthesis.textures import paint_bands, paint_object, pixels_of_tile

Painter = Callable[[np.random.Generator, Sequence[Tile], int], Array]

_AROUND = 48
"""Steps of a circle."""
_BOX_STEPS = 8
_LEAST_DIFFERENCE = 14.0
"""Mean difference of two pictures, in levels of 255, below which they might be taken for each other."""
_LOOK_PX = 24
"""Pictures are compared at this size: what is finer is not seen from afar."""


@dataclass(frozen=True)
class Symmetries:
    """The turns that leave an object's look unchanged, as `ObjectInfo` has them, metres.

    `discrete` (S,4,4) without the identity, S may be 0; `continuous` tuples of (axis (3,), offset (3,) metres).
    """

    discrete: Array
    continuous: tuple[tuple[Array, Array], ...]

    def as_model_info(self) -> dict[str, Any]:
        """Return the entries of models_info.json, lengths in mm; a kind of symmetry that is not there has none."""
        matrices = self.discrete.copy()
        matrices[:, :3, 3] *= 1000
        lines = [{"axis": axis.tolist(), "offset": (offset * 1000).tolist()} for axis, offset in self.continuous]
        info: dict[str, Any] = {"symmetries_discrete": matrices.reshape(-1, 16).tolist()} if len(matrices) else {}
        return info | ({"symmetries_continuous": lines} if lines else {})


NO_SYMMETRIES = Symmetries(np.zeros((0, 4, 4)), ())


@dataclass(frozen=True)
class _Plan:
    """An object to be painted: its piece of surface, the turns (G,3,3) that copy it, how it may be painted."""

    piece: Shape
    turns: Array
    paint: Painter
    is_telling: Callable[[Sequence[Array]], bool]
    """Whether the tiles' pictures show every turn that is no symmetry."""
    symmetries: Symmetries


def make_symmetric_mesh(
    seed: int | Sequence[int], size_m: tuple[float, float], texture_px: int
) -> tuple[Mesh, Symmetries]:
    """Return a textured mesh with its symmetries; its longest side lies within `size_m`, its box about the origin.

    By the seed and equally often: a turned body, a box that half a turn about one or each of its axes leaves as it is,
    a prism or star with three to six equal sides. All axes run through the origin.
    """
    rng = np.random.default_rng(seed)
    plan = (_turned_body, _half_turn_box, _repeated_prism)[int(rng.integers(3))](rng)
    shape = centred(_copied(plan.piece, plan.turns), float(np.exp(rng.uniform(*np.log(size_m)))))
    while True:
        texture = plan.paint(rng, plan.piece.tiles, texture_px)
        pictures = [_seen_from_afar(texture[pixels_of_tile(tile, texture_px)]) for tile in plan.piece.tiles]
        if has_contrast(texture) and plan.is_telling(pictures):
            return Mesh(shape.vertices, shape.faces, uv=shape.uv, texture_rgb=texture), plan.symmetries


def _turned_body(rng: np.random.Generator) -> _Plan:
    """Plan a body turned about z, its colours in rings, differently above than below."""
    radii, heights = turned_profile(rng)
    angle = np.array([0, 2 * np.pi / _AROUND])
    # Narrow in the texture as it is on the surface: the renderer chooses its resolution by the mean of both axes.
    piece = _pillar(_at_angles(angle, np.ones(2)), radii, heights, width=1 / _AROUND)
    around_z = (np.array([0.0, 0, 1]), np.zeros(3))
    return _Plan(
        piece, _turns_about_z(_AROUND), paint_bands, _top_differs, Symmetries(np.zeros((0, 4, 4)), (around_z,))
    )


def _half_turn_box(rng: np.random.Generator) -> _Plan:
    """Plan a box that looks the same after half a turn about one of its axes, or about each of them."""
    about_all = rng.random() < 0.5
    half_turns = np.array([np.diag(signs) for signs in ((-1.0, -1, 1), (1, -1, -1), (-1, 1, -1))])
    turns = np.concatenate([np.eye(3)[None], half_turns if about_all else half_turns[:1]])
    piece = join([_face(*face) for face in (_QUARTER_BOX if about_all else _HALF_BOX)], columns=2)
    vertices = piece.vertices * np.exp(rng.uniform(np.log(0.25), 0, 3))
    if not about_all and rng.random() < 0.4:
        low, high = vertices[:, 2].min(), vertices[:, 2].max()
        vertices[:, :2] *= 1 - rng.uniform(0.1, 0.5) * (vertices[:, 2:] - low) / (high - low)
    lie = np.roll(np.eye(3), int(rng.integers(3)), axis=0)  # which of the axes is z
    piece = Shape(vertices @ lie.T, piece.faces, piece.uv, piece.tiles)
    turns = lie @ turns @ lie.T
    return _Plan(piece, turns, paint_object, _all_differ, _discrete(turns))


def _repeated_prism(rng: np.random.Generator) -> _Plan:
    """Plan a prism, star or fluted body whose look repeats three to six times about z."""
    repeats = int(rng.integers(3, 7))
    # Twice as many lobes where the number is odd, or the middle of the box would not lie on the axis.
    outline = _lobes(rng, repeats, 1 if repeats % 2 == 0 else 2)
    if rng.random() < 0.4:
        radii, heights = turned_profile(rng)
    else:
        radii, heights = np.array([0.5, rng.uniform(0.25, 0.5)]), np.array([0, np.exp(rng.uniform(np.log(0.3), 0.7))])
    turns = _turns_about_z(repeats)
    return _Plan(_pillar(outline, radii, heights), turns, paint_object, _repeats_once, _discrete(turns))


def _discrete(turns: Array) -> Symmetries:
    return Symmetries(make_T(turns[1:], np.zeros((len(turns) - 1, 3))), ())


def _turns_about_z(count: int) -> Array:
    """Return the rotations (count,3,3) by equal steps about z, the identity first."""
    angle = np.arange(count) * (2 * np.pi / count)
    R = np.tile(np.eye(3), (count, 1, 1))
    R[:, 0, 0], R[:, 0, 1], R[:, 1, 0], R[:, 1, 1] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return R


def _copied(piece: Shape, turns: Array) -> Shape:
    """Return the piece once for each rotation (G,3,3), all with the same texture coordinates."""
    count = len(piece.vertices)
    faces = [piece.faces + index * count for index in range(len(turns))]
    return Shape(
        np.concatenate([piece.vertices @ R.T for R in turns]),
        np.concatenate(faces).astype(np.int32),
        np.tile(piece.uv, (len(turns), 1)),
        piece.tiles,
    )


def _lobes(rng: np.random.Generator, repeats: int, lobes: int) -> Array:
    """Return the first of `repeats` equal parts of an outline about the origin (C,2): `lobes` sides, tips or flutes."""
    kind = int(rng.integers(3))
    steps = lobes * (1, 2, 12)[kind]
    angle = np.linspace(0, 2 * np.pi / repeats, steps + 1)
    radius = np.ones(steps + 1)
    if kind == 1:
        radius[1::2] = rng.uniform(0.5, 0.8)
    elif kind == 2:
        radius += rng.uniform(0.06, 0.2) * np.cos(repeats * lobes * angle)
    return _at_angles(angle, radius)


def _at_angles(angle_rad: Array, radius: Array) -> Array:
    return np.stack([radius * np.cos(angle_rad), radius * np.sin(angle_rad)], axis=-1)


def _pillar(outline: Array, radii: Array, heights: Array, width: float = 1.0) -> Shape:
    """Return a part of a body about z: its mantle, its bottom and its top, each with a tile.

    `outline` (C,2) is a part of the section, scaled by `radii` (R,) at `heights` (R,); `width` is the share of the
    tiles' width that it takes.
    """
    xyz = np.empty((len(radii), len(outline), 3))
    xyz[..., :2], xyz[..., 2] = radii[:, None, None] * outline, heights[:, None]
    u = 0.5 + (np.linspace(0, 1, len(outline)) - 0.5) * width
    return join([surface_grid(xyz, u), _wedge(xyz[0, ::-1], u), _wedge(xyz[-1], u)], columns=2)


def _wedge(rim: Array, u: Array) -> Shape:
    """Return the flat surface between a rim (C,3), counter-clockwise from outside, and the axis: a fan, v from it."""
    first = np.arange(1, len(rim), dtype=np.int32)
    uv = np.concatenate([[[0.5, 0]], np.stack([u[::-1], np.ones(len(rim))], axis=-1)])
    vertices = np.concatenate([[[0, 0, rim[0, 2]]], rim])
    faces = np.stack([np.zeros_like(first), first, first + 1], axis=1)
    return Shape(vertices, faces, uv.astype(np.float32), ((0, 0, 1, 1),))


_HALF_BOX = (
    ((1, -1, -1), (0, 2, 0), (0, 0, 2)),
    ((1, 1, -1), (-2, 0, 0), (0, 0, 2)),
    ((1, -1, -1), (-1, 0, 0), (0, 2, 0)),
    ((0, -1, 1), (1, 0, 0), (0, 2, 0)),
)
"""Corner and edges of the faces that half a turn about z completes to a box: two sides, half of bottom and top."""
_QUARTER_BOX = (
    ((1, 0, -1), (0, 1, 0), (0, 0, 2)),
    ((1, 1, -1), (-2, 0, 0), (0, 0, 1)),
    ((0, -1, 1), (1, 0, 0), (0, 2, 0)),
)
"""The faces that half turns about x, y and z complete: half of each of three sides."""


def _face(corner: Sequence[float], along: Sequence[float], up: Sequence[float]) -> Shape:
    """Return a flat grid from a corner (3,) to both sides; seen from outside, `up` is to the left of `along`."""
    a, b = np.asarray(along, float), np.asarray(up, float)
    columns, rows = (int(_BOX_STEPS * np.abs(edge).sum() / 2) for edge in (a, b))
    share_a, share_b = np.linspace(0, 1, columns + 1)[:, None], np.linspace(0, 1, rows + 1)[:, None, None]
    return surface_grid(np.asarray(corner, float) + share_b * b + share_a * a)


def _seen_from_afar(picture: Array) -> Array:
    return cv2.resize(picture, (_LOOK_PX, _LOOK_PX), interpolation=cv2.INTER_AREA).astype(np.float32)


def _differ(a: Array, b: Array) -> bool:
    return float(np.abs(a - b).mean()) > _LEAST_DIFFERENCE


def _top_differs(pictures: Sequence[Array]) -> bool:
    """Tell whether a turned body's mantle is not the same upside down, nor its ends equal."""
    mantle, bottom, top = pictures
    return _differ(mantle, mantle[::-1]) and _differ(bottom, top)


def _all_differ(pictures: Sequence[Array]) -> bool:
    """Tell whether no face looks like another one or like itself upside down."""
    pairs = [(i, j) for i in range(len(pictures)) for j in range(i + 1)]
    return all(
        (i == j or _differ(pictures[i], pictures[j])) and _differ(pictures[i], pictures[j][::-1, ::-1])
        for i, j in pairs
    )


def _repeats_once(pictures: Sequence[Array]) -> bool:
    """Tell whether mantle and ends neither repeat within a part nor look the same from below as from above."""
    mantle, *ends = pictures[0], *map(_unfolded, pictures[1:])
    far = range(_LOOK_PX // 4, _LOOK_PX - _LOOK_PX // 4 + 1)
    once = all(_differ(picture, np.roll(picture, shift, 1)) for picture in (mantle, *ends) for shift in far)
    upside_down = ((mantle, mantle[::-1, ::-1]), (ends[0], ends[1]))
    return once and all(_differ(a, np.roll(b, shift, 1)) for a, b in upside_down for shift in range(_LOOK_PX))


def _unfolded(wedge: Array) -> Array:
    """Return a wedge's picture with the angle along its columns, the axis in its bottom row (see `_wedge`)."""
    from_axis = (np.arange(_LOOK_PX)[::-1, None] + np.float32(0.5)) / _LOOK_PX
    across = (np.arange(_LOOK_PX) - (_LOOK_PX - 1) / 2) * from_axis + (_LOOK_PX - 1) / 2
    rows = np.repeat(np.arange(_LOOK_PX)[:, None], _LOOK_PX, axis=1)
    return np.asarray(wedge[rows, np.rint(across).astype(int)])
