"""Random shapes: closed surfaces of a few thousand faces with texture coordinates in tiles.

Every part of a shape (a side of a box, the lateral surface of a can, its lid) has a tile of the texture of its own, so
that an image can be printed on it without distortion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.synthesis.outlines import random_outline, triangulate

Tile = tuple[float, float, float, float]
"""A rectangle (u0, v0, u1, v1) of the texture."""

SIZE_M = (0.03, 0.4)
"""Range of the longest side of a shape."""
_TILE_MARGIN = 0.004
"""Margin of a tile, in texture coordinates, so that filtered samples do not mix with the next tile."""


@dataclass(frozen=True)
class Shape:
    """A surface about its own origin: `vertices` (N,3) f64, `faces` (F,3) i32, `uv` (N,2) f32 in [0, 1].

    `tiles` are the rectangles of the texture that its parts use. Vertices are split where the texture has a seam.
    """

    vertices: Array
    faces: Array
    uv: Array
    tiles: tuple[Tile, ...]


def random_shape(rng: np.random.Generator) -> Shape:
    """Return a shape of random kind, proportions and size in metres, its box centred at the origin."""
    kinds: tuple[tuple[Callable[[np.random.Generator], Shape], float], ...] = (
        (box, 0.22),
        (lathe, 0.18),
        (extrusion, 0.18),
        (superquadric, 0.1),
        (lump, 0.1),
        (union, 0.22),
    )
    share = np.array([weight for _, weight in kinds])
    shape = kinds[int(rng.choice(len(kinds), p=share / share.sum()))][0](rng)
    if rng.random() < 0.25:  # mostly upright along z, as scanned objects
        shape = _transformed(shape, np.roll(np.eye(3), int(rng.integers(1, 3)), axis=0), np.zeros(3))
    return centred(shape, random_size_m(rng))


def distinct_shape(rng: np.random.Generator) -> Shape:
    """Return a shape of size about 1 in which bodies of revolution and balls appear only as parts."""
    return (union, union, extrusion, box, lump)[int(rng.integers(5))](rng)


def random_size_m(rng: np.random.Generator) -> float:
    """Return a longest side within BOP's range, uniform in its logarithm."""
    return float(np.exp(rng.uniform(np.log(SIZE_M[0]), np.log(SIZE_M[1]))))


def centred(shape: Shape, size_m: float) -> Shape:
    """Return the shape scaled to a longest side of `size_m`, the centre of its box at the origin."""
    low, high = shape.vertices.min(axis=0), shape.vertices.max(axis=0)
    vertices = (shape.vertices - (low + high) / 2) * (size_m / (high - low).max())
    return Shape(vertices, shape.faces, shape.uv, shape.tiles)


def box(rng: np.random.Generator) -> Shape:
    """Return a box, sometimes tapered or with bulging sides; each side has a tile of its own."""
    sides = np.exp(rng.uniform(np.log(0.2), 0.0, 3))
    return bent_box(sides, taper=rng.uniform(0.5, 1.0) if rng.random() < 0.25 else 1.0, bulge=_rarely(rng, 0.15))


def bent_box(sides: Array, *, taper: float = 1.0, bulge: float = 0.0, steps: int = 8) -> Shape:
    """Return a box with `sides` (3,), its top scaled by `taper`, its sides bulging by the share `bulge`."""
    grids = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            a, b = np.meshgrid(np.linspace(-1, 1, steps + 1), np.linspace(-1, 1, steps + 1), indexing="ij")
            xyz = np.zeros((*a.shape, 3))
            # Oriented so that an image on a vertical side is upright and not mirrored.
            across, up = ((axis + 1) % 3, (axis + 2) % 3) if axis != 1 else (0, 2)
            mirror = -sign if axis == 1 else sign
            xyz[..., axis] = sign * (1 + bulge * (1 - a**2) * (1 - b**2))
            xyz[..., across], xyz[..., up] = mirror * b, a
            grids.append(surface_grid(xyz, flip=False))
    shape = join(grids, columns=3)
    vertices = shape.vertices.copy()
    vertices[:, :2] *= (1 + (taper - 1) * (vertices[:, 2:] + 1) / 2).clip(0.05)
    return Shape(vertices * np.asarray(sides) / 2, shape.faces, shape.uv, shape.tiles)


def superquadric(rng: np.random.Generator) -> Shape:
    """Return a superellipsoid, between a cushion, a ball, a cylinder and a double cone (Barr 1981)."""
    north, east = rng.uniform(0.2, 1.8, 2)
    latitude, longitude = _angles(28, 48)
    xyz = np.stack(
        [
            _power(np.cos(latitude), north) * _power(np.cos(longitude), east),
            _power(np.cos(latitude), north) * _power(np.sin(longitude), east),
            _power(np.sin(latitude), north),
        ],
        axis=-1,
    )
    return surface_grid(xyz * np.exp(rng.uniform(np.log(0.3), 0, 3)))


def lump(rng: np.random.Generator) -> Shape:
    """Return a ball deformed by a few smooth waves, such as a potato, a fruit or a toy without edges."""
    latitude, longitude = _angles(32, 56)
    unit = np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=-1
    )
    radius = np.ones(latitude.shape)
    for _ in range(int(rng.integers(3, 9))):
        wave = rng.normal(size=3) * rng.uniform(1, 4)
        radius += rng.uniform(0.05, 0.3) / np.linalg.norm(wave) * np.sin(unit @ wave * 2 + rng.uniform(0, 2 * np.pi))
    return surface_grid(unit * radius[..., None].clip(0.2) * np.exp(rng.uniform(np.log(0.35), 0, 3)))


def lathe(rng: np.random.Generator) -> Shape:
    """Return a body such as a bottle, bowl or knob, round, oval or fluted, sometimes with a handle."""
    radii, heights = lathe_profile(rng)
    lateral = lateral_surface(radii, heights, rng)
    lids = [_lid(radii[end], heights[end], lateral, end) for end in (0, -1)]
    parts = [lateral, *lids]
    if rng.random() < 0.3:
        handle = torus(rng)
        reach, middle = radii.max(), heights.mean()
        scale = 0.3 * np.ptp(heights)
        upright = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
        parts.append(_transformed(handle, upright * scale, np.array([reach, 0, middle])))
    return join(parts, columns=2)


def lathe_profile(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return radii (R,) and heights (R,) of a random profile, smooth or with steps."""
    count = int(rng.integers(2, 7))
    knots = np.sort(rng.uniform(0, 1, count))
    knots[0], knots[-1] = 0, 1
    radii = rng.uniform(0.35, 1.0, count) if count > 2 else np.repeat(rng.uniform(0.5, 1.0), 2)
    heights = np.linspace(0, 1, 26)
    if rng.random() < 0.35:
        profile = radii[np.minimum(np.searchsorted(knots, heights, side="right"), count) - 1]
    else:
        profile = np.interp(heights, knots, radii)
        if rng.random() < 0.6:
            profile = np.convolve(np.pad(profile, 3, mode="edge"), np.full(7, 1 / 7), mode="valid")
    return profile * 0.5, heights * float(np.exp(rng.uniform(np.log(0.25), np.log(3))))


def lateral_surface(radii: Array, heights: Array, rng: np.random.Generator) -> Shape:
    """Return the open surface of radii (R,) at heights (R,), its cross-section round, oval or fluted."""
    longitude = np.linspace(0, 2 * np.pi, 49)
    section = np.ones_like(longitude)
    if rng.random() < 0.4:
        section += rng.uniform(0.03, 0.2) * np.cos(int(rng.integers(2, 9)) * longitude)
    oval = rng.uniform(0.4, 1.0) if rng.random() < 0.4 else 1.0
    ring = np.stack([section * np.cos(longitude), oval * section * np.sin(longitude)], axis=-1)
    ring[-1] = ring[0]
    xyz = np.empty((len(radii), len(longitude), 3))
    xyz[..., :2] = radii[:, None, None] * ring
    xyz[..., 2] = heights[:, None]
    return surface_grid(xyz)


def _lid(radius: float, height: float, lateral: Shape, end: int) -> Shape:
    """Return the flat end of a lateral surface: a fan about its centre, textured as seen from outside."""
    rim = lateral.vertices.reshape(-1, 49, 3)[end, :-1]
    vertices = np.concatenate([[[0, 0, height]], rim])
    ring = np.arange(1, len(rim) + 1)
    following = np.roll(ring, -1)
    second, third = (ring, following) if end == -1 else (following, ring)
    faces = np.stack([np.zeros_like(ring), second, third], axis=1).astype(np.int32)
    side = 1.0 if end == -1 else -1.0
    uv = 0.5 + vertices[:, :2] * (side, 1.0) / (2.6 * max(radius, 1e-6))
    return Shape(vertices, faces, uv.clip(0, 1).astype(np.float32), ((0, 0, 1, 1),))


def torus(rng: np.random.Generator) -> Shape:
    """Return a ring about z with a round or oval cross-section and a radius of about 1."""
    thickness = rng.uniform(0.1, 0.4)
    around, across = np.meshgrid(np.linspace(0, 2 * np.pi, 41), np.linspace(0, 2 * np.pi, 17))
    distance = 1 + thickness * np.cos(across)
    flat = rng.uniform(0.5, 1.6)
    xyz = np.stack([distance * np.cos(around), distance * np.sin(around), flat * thickness * np.sin(across)], axis=-1)
    return surface_grid(xyz)


def extrusion(rng: np.random.Generator) -> Shape:
    """Return a random outline extruded along z, sometimes tapered or twisted: brackets, tools, letters, cams."""
    outline = random_outline(rng)
    height = float(np.exp(rng.uniform(np.log(0.08), np.log(1.5))))
    return extruded(outline, height, taper=1 - _rarely(rng, 0.5), twist_rad=_rarely(rng, 0.8))


def extruded(outline: Array, height: float, *, taper: float = 1.0, twist_rad: float = 0.0) -> Shape:
    """Return an outline (N,2), counter-clockwise, extruded from z = 0 to `height`."""
    steps = 2 if taper == 1 and twist_rad == 0 else 9
    share = np.linspace(0, 1, steps)
    closed = np.concatenate([outline, outline[:1]])
    cos, sin = np.cos(twist_rad * share), np.sin(twist_rad * share)
    scale = 1 + (taper - 1) * share
    linear = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2) * scale[:, None, None]
    xyz = np.concatenate([closed @ linear, np.broadcast_to(share[:, None, None] * height, (steps, len(closed), 1))], -1)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    lateral = surface_grid(xyz, u=length / length[-1])
    triangles = triangulate(outline)
    span = np.abs(outline).max() * 2.1
    caps = []
    for ring, side in ((xyz[0, :-1], -1.0), (xyz[-1, :-1], 1.0)):
        uv = (0.5 + outline * (side, 1.0) / span).astype(np.float32)
        caps.append(Shape(ring, triangles if side > 0 else triangles[:, ::-1], uv, ((0, 0, 1, 1),)))
    return join([lateral, *caps], columns=2)


def union(rng: np.random.Generator) -> Shape:
    """Return two to four overlapping simple parts, without removing their hidden inner surfaces."""
    kinds = (box, superquadric, extrusion, lathe, torus, lump)
    parts: list[Shape] = []
    for index in range(int(rng.integers(2, 5))):
        part = centred(kinds[int(rng.choice(len(kinds), p=[0.3, 0.15, 0.2, 0.2, 0.08, 0.07]))](rng), 1.0)
        scale = 1.0 if index == 0 else rng.uniform(0.25, 0.85)
        R = np.eye(3)[rng.permutation(3)]
        R[0] *= np.linalg.det(R)
        if rng.random() < 0.3:
            R = R @ _rotation_about_z(rng.uniform(0, 2 * np.pi))
        # Its centre is close to the surface of an earlier part, from which it protrudes.
        anchor = parts[int(rng.integers(len(parts)))] if parts else None
        offset = np.zeros(3) if anchor is None else anchor.vertices[int(rng.integers(len(anchor.vertices)))] * 0.9
        parts.append(_transformed(part, R * scale, offset))
    return join(parts, columns=2)


def join(parts: Sequence[Shape], columns: int) -> Shape:
    """Return parts as one shape, each with its own cell of a texture with `columns` columns of cells."""
    rows = -(-len(parts) // columns)
    vertices, faces, uvs, tiles = [], [], [], []
    start = 0
    for index, part in enumerate(parts):
        u0, v0 = index % columns / columns + _TILE_MARGIN, index // columns / rows + _TILE_MARGIN
        size = np.array([1 / columns, 1 / rows]) - 2 * _TILE_MARGIN
        vertices.append(part.vertices)
        faces.append(part.faces + start)
        uvs.append((u0, v0) + part.uv * size)
        tiles += [_inner_tile(tile, (u0, v0), size) for tile in part.tiles]
        start += len(part.vertices)
    return Shape(
        np.concatenate(vertices),
        np.concatenate(faces).astype(np.int32),
        np.concatenate(uvs).astype(np.float32),
        tuple(tiles),
    )


def _inner_tile(tile: Tile, corner: tuple[float, float], size: Array) -> Tile:
    (u0, v0), (u1, v1) = corner + np.array(tile[:2]) * size, corner + np.array(tile[2:]) * size
    return float(u0), float(v0), float(u1), float(v1)


def surface_grid(xyz: Array, u: Array | None = None, *, flip: bool = False) -> Shape:
    """Return a grid (R,C,3) of points as a surface; u increases along its columns, v from its first row on."""
    rows, columns = xyz.shape[:2]
    u = np.linspace(0, 1, columns) if u is None else u
    uv = np.stack(np.meshgrid(u, np.linspace(0, 1, rows)), axis=-1)
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    points = xyz.reshape(-1, 3)
    faces = faces[_area(points, faces) > 1e-12]
    return Shape(
        points,
        np.ascontiguousarray(faces[:, ::-1] if flip else faces).astype(np.int32),
        uv.reshape(-1, 2).astype(np.float32),
        ((0, 0, 1, 1),),
    )


def _area(vertices: Array, faces: Array) -> Array:
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    area: Array = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return area


def _angles(rows: int, columns: int) -> tuple[Array, Array]:
    """Return latitudes and longitudes (R+1,C+1) rad of a grid on a ball."""
    grid = np.meshgrid(np.linspace(-np.pi / 2, np.pi / 2, rows + 1), np.linspace(-np.pi, np.pi, columns + 1))
    return grid[0].T, grid[1].T


def _power(values: Array, exponent: float) -> Array:
    return np.asarray(np.sign(values) * np.abs(values) ** exponent)


def _transformed(shape: Shape, linear: Array, offset: Array) -> Shape:
    return Shape(shape.vertices @ linear.T + offset, shape.faces, shape.uv, shape.tiles)


def _rotation_about_z(angle_rad: float) -> Array:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _rarely(rng: np.random.Generator, largest: float) -> float:
    """Return 0 with a probability of 3/4, else a uniform value up to `largest`."""
    return float(rng.uniform(0, largest)) if rng.random() < 0.25 else 0.0
