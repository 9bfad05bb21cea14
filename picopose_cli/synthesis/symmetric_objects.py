"""Objects with symmetries of shape and colour, and the transformations of these symmetries.

Each object is a piece of surface, copied by every rotation of its symmetry group with the texture coordinates of the
first copy, so that the copies are exactly equal whatever is painted on the piece. Textures are checked: no rotation
except the declared ones may leave the appearance unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import MM_PER_M, Array, Mesh
from picopose_cli.synthesis.objects import has_contrast
from picopose_cli.synthesis.shapes import Shape, Tile, centred, join, lathe_profile, surface_grid
from picopose_cli.synthesis.textures import paint_bands, paint_object, pixels_of_tile

TilePainter = Callable[[np.random.Generator, Sequence[Tile], int], Array]
"""Makes a texture (h,w,3) u8 for tiles, of a side in pixels."""

_CIRCLE_STEPS = 48
_BOX_STEPS = 8
_MIN_DIFFERENCE = 14.0
"""Mean difference of two images, in levels of 255, below which they count as similar."""
_THUMBNAIL_PX = 24
"""Images are compared at this size: finer detail is invisible at a distance."""


@dataclass(frozen=True)
class Symmetries:
    """The transformations that leave an object's appearance unchanged, as in `ObjectInfo`.

    `discrete` (S,4,4) metres, without the identity, S may be 0; `continuous` pairs of axis (3,) and offset (3,) metres.
    """

    discrete: Array
    continuous: tuple[tuple[Array, Array], ...]

    def as_model_info(self) -> dict[str, Any]:
        """Return the entries of models_info.json, lengths in mm; a kind of symmetry that is absent has no entry."""
        matrices = self.discrete.copy()
        matrices[:, :3, 3] *= MM_PER_M
        lines = [{"axis": axis.tolist(), "offset": (offset * MM_PER_M).tolist()} for axis, offset in self.continuous]
        info: dict[str, Any] = {"symmetries_discrete": matrices.reshape(-1, 16).tolist()} if len(matrices) else {}
        return info | ({"symmetries_continuous": lines} if lines else {})


NO_SYMMETRIES = Symmetries(np.zeros((0, 4, 4)), ())


@dataclass(frozen=True)
class _Design:
    """An object to be painted: a piece of its surface, the rotations (G,3,3) that copy it, and its painter."""

    piece: Shape
    rotations: Array
    paint: TilePainter
    reveals_rotations: Callable[[Sequence[Array]], bool]
    """Whether the tiles' images differ under every rotation that is not a declared symmetry."""
    symmetries: Symmetries


def make_symmetric_mesh(
    seed: int | Sequence[int], size_m: tuple[float, float], texture_px: int
) -> tuple[Mesh, Symmetries]:
    """Return a textured mesh, centred, with its symmetries; its longest side is within `size_m`.

    Equally often: a body of revolution, a box that a half turn about one or each of its axes leaves unchanged, a prism
    or star with three to six equal sides. All axes pass through the origin.
    """
    rng = np.random.default_rng(seed)
    design = (_revolved_body, _half_turn_box, _repeated_prism)[int(rng.integers(3))](rng)
    shape = centred(_copied(design.piece, design.rotations), float(np.exp(rng.uniform(*np.log(size_m)))))
    while True:
        texture = design.paint(rng, design.piece.tiles, texture_px)
        thumbnails = [_thumbnail(texture[pixels_of_tile(tile, texture_px)]) for tile in design.piece.tiles]
        if has_contrast(texture) and design.reveals_rotations(thumbnails):
            return Mesh(shape.vertices, shape.faces, uv=shape.uv, texture_rgb=texture), design.symmetries


def _revolved_body(rng: np.random.Generator) -> _Design:
    """Return a body of revolution about z, its colours in rings, its top different from its bottom."""
    radii, heights = lathe_profile(rng)
    angle = np.array([0, 2 * np.pi / _CIRCLE_STEPS])
    # As narrow in the texture as on the surface: the renderer filters by the mean resolution of both axes.
    piece = _pillar(_at_angles(angle, np.ones(2)), radii, heights, width=1 / _CIRCLE_STEPS)
    around_z = (np.array([0.0, 0, 1]), np.zeros(3))
    return _Design(
        piece,
        _rotations_about_z(_CIRCLE_STEPS),
        paint_bands,
        _ends_differ,
        Symmetries(np.zeros((0, 4, 4)), (around_z,)),
    )


def _half_turn_box(rng: np.random.Generator) -> _Design:
    """Return a box that a half turn about one of its axes, or about each of them, leaves unchanged."""
    about_all = rng.random() < 0.5
    half_turns = np.array([np.diag(signs) for signs in ((-1.0, -1, 1), (1, -1, -1), (-1, 1, -1))])
    rotations = np.concatenate([np.eye(3)[None], half_turns if about_all else half_turns[:1]])
    piece = join([_face(*face) for face in (_QUARTER_BOX if about_all else _HALF_BOX)], columns=2)
    vertices = piece.vertices * np.exp(rng.uniform(np.log(0.25), 0, 3))
    if not about_all and rng.random() < 0.4:
        low, high = vertices[:, 2].min(), vertices[:, 2].max()
        vertices[:, :2] *= 1 - rng.uniform(0.1, 0.5) * (vertices[:, 2:] - low) / (high - low)
    permuted = np.roll(np.eye(3), int(rng.integers(3)), axis=0)  # the symmetry axis is not always z
    piece = Shape(vertices @ permuted.T, piece.faces, piece.uv, piece.tiles)
    rotations = permuted @ rotations @ permuted.T
    return _Design(piece, rotations, paint_object, _all_differ, _discrete(rotations))


def _repeated_prism(rng: np.random.Generator) -> _Design:
    """Return a prism, star or fluted body whose appearance repeats three to six times about z."""
    repeats = int(rng.integers(3, 7))
    # Twice as many lobes where the number is odd, so that the centre of the box is on the axis.
    outline = _lobes(rng, repeats, 1 if repeats % 2 == 0 else 2)
    if rng.random() < 0.4:
        radii, heights = lathe_profile(rng)
    else:
        radii, heights = np.array([0.5, rng.uniform(0.25, 0.5)]), np.array([0, np.exp(rng.uniform(np.log(0.3), 0.7))])
    rotations = _rotations_about_z(repeats)
    return _Design(_pillar(outline, radii, heights), rotations, paint_object, _repeats_once, _discrete(rotations))


def _discrete(rotations: Array) -> Symmetries:
    return Symmetries(make_T(rotations[1:], np.zeros((len(rotations) - 1, 3))), ())


def _rotations_about_z(count: int) -> Array:
    """Return the rotations (count,3,3) by equal steps about z, the identity first."""
    angle = np.arange(count) * (2 * np.pi / count)
    R = np.tile(np.eye(3), (count, 1, 1))
    R[:, 0, 0], R[:, 0, 1], R[:, 1, 0], R[:, 1, 1] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return R


def _copied(piece: Shape, rotations: Array) -> Shape:
    """Return a copy of the piece for each rotation (G,3,3), all with the same texture coordinates."""
    count = len(piece.vertices)
    faces = [piece.faces + index * count for index in range(len(rotations))]
    return Shape(
        np.concatenate([piece.vertices @ R.T for R in rotations]),
        np.concatenate(faces).astype(np.int32),
        np.tile(piece.uv, (len(rotations), 1)),
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
    """Return a sector of a body about z: its lateral surface, its bottom and its top, each with a tile.

    `outline` (C,2) is a part of the cross-section, scaled by `radii` (R,) at `heights` (R,); `width` is the share of
    the tiles' width that it occupies.
    """
    xyz = np.empty((len(radii), len(outline), 3))
    xyz[..., :2], xyz[..., 2] = radii[:, None, None] * outline, heights[:, None]
    u = 0.5 + (np.linspace(0, 1, len(outline)) - 0.5) * width
    return join([surface_grid(xyz, u), _wedge(xyz[0, ::-1], u), _wedge(xyz[-1], u)], columns=2)


def _wedge(rim: Array, u: Array) -> Shape:
    """Return the flat fan between a rim (C,3), counter-clockwise from outside, and the axis, where v is 0."""
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
"""Corner and edges of the faces that a half turn about z completes to a box: two sides, half of bottom and top."""
_QUARTER_BOX = (
    ((1, 0, -1), (0, 1, 0), (0, 0, 2)),
    ((1, 1, -1), (-2, 0, 0), (0, 0, 1)),
    ((0, -1, 1), (1, 0, 0), (0, 2, 0)),
)
"""Corner and edges of the faces that half turns about x, y and z complete to a box: half of each of three sides."""


def _face(corner: Sequence[float], along: Sequence[float], up: Sequence[float]) -> Shape:
    """Return a flat grid from a corner (3,) along two edges; seen from outside, `up` is to the left of `along`."""
    a, b = np.asarray(along, float), np.asarray(up, float)
    columns, rows = (int(_BOX_STEPS * np.abs(edge).sum() / 2) for edge in (a, b))
    share_a, share_b = np.linspace(0, 1, columns + 1)[:, None], np.linspace(0, 1, rows + 1)[:, None, None]
    return surface_grid(np.asarray(corner, float) + share_b * b + share_a * a)


def _thumbnail(image: Array) -> Array:
    return cv2.resize(image, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA).astype(np.float32)


def _differ(a: Array, b: Array) -> bool:
    return float(np.abs(a - b).mean()) > _MIN_DIFFERENCE


def _ends_differ(images: Sequence[Array]) -> bool:
    """Return whether a body of revolution differs from itself upside down, on its side and at its ends."""
    lateral, bottom, top = images
    return _differ(lateral, lateral[::-1]) and _differ(bottom, top)


def _all_differ(images: Sequence[Array]) -> bool:
    """Return whether every face differs from the others and from all faces upside down."""
    pairs = [(i, j) for i in range(len(images)) for j in range(i + 1)]
    return all(
        (i == j or _differ(images[i], images[j])) and _differ(images[i], images[j][::-1, ::-1]) for i, j in pairs
    )


def _repeats_once(images: Sequence[Array]) -> bool:
    """Return whether lateral surface and ends do not repeat within a sector, and differ upside down."""
    lateral, *ends = images[0], *map(_unfolded, images[1:])
    shifts = range(_THUMBNAIL_PX // 4, _THUMBNAIL_PX - _THUMBNAIL_PX // 4 + 1)
    once = all(_differ(image, np.roll(image, shift, 1)) for image in (lateral, *ends) for shift in shifts)
    upside_down = ((lateral, lateral[::-1, ::-1]), (ends[0], ends[1]))
    return once and all(_differ(a, np.roll(b, shift, 1)) for a, b in upside_down for shift in range(_THUMBNAIL_PX))


def _unfolded(wedge: Array) -> Array:
    """Return the image (h,w,3) of a wedge with the angle along its columns and the axis in its bottom row."""
    from_axis = (np.arange(_THUMBNAIL_PX)[::-1, None] + np.float32(0.5)) / _THUMBNAIL_PX
    across = (np.arange(_THUMBNAIL_PX) - (_THUMBNAIL_PX - 1) / 2) * from_axis + (_THUMBNAIL_PX - 1) / 2
    rows = np.repeat(np.arange(_THUMBNAIL_PX)[:, None], _THUMBNAIL_PX, axis=1)
    return np.asarray(wedge[rows, np.rint(across).astype(int)])
