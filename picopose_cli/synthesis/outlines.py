"""Closed outlines in the plane for extruded shapes, and their triangles."""

from __future__ import annotations

import numpy as np

from picopose_cli.base.types import Array

_LETTERS = (
    ((0, 0), (1, 0), (1, 0.3), (0.3, 0.3), (0.3, 1), (0, 1)),  # L
    ((0, 0), (1, 0), (1, 1), (0.7, 1), (0.7, 0.3), (0.3, 0.3), (0.3, 1), (0, 1)),  # U
    ((0.35, 0), (0.65, 0), (0.65, 0.7), (1, 0.7), (1, 1), (0, 1), (0, 0.7), (0.35, 0.7)),  # T
    ((0, 0), (0.6, 0), (0.6, 0.35), (1, 0.35), (1, 0.65), (0.6, 0.65), (0.6, 1), (0, 1)),  # a tab
    ((0, 0), (1, 0), (1, 0.3), (0.3, 0.3), (0.3, 0.7), (1, 0.7), (1, 1), (0, 1)),  # C
    ((0, 0), (0.5, 0), (0.5, 0.6), (1, 0.6), (1, 1), (0.2, 1), (0.2, 0.4), (0, 0.4)),  # Z
)


def random_outline(rng: np.random.Generator) -> Array:
    """Return a simple polygon (N,2), counter-clockwise, about the origin, of at most 64 corners and size about 1."""
    kind = rng.random()
    if kind < 0.35:
        outline = np.array(_LETTERS[int(rng.integers(len(_LETTERS)))]) ** rng.uniform(0.7, 1.4, 2)
    elif kind < 0.6:
        outline = _star(rng)
    else:
        outline = _spline(rng)
    outline = outline * np.exp(rng.uniform(np.log(0.4), 0, 2))
    outline = outline - (outline.min(axis=0) + outline.max(axis=0)) / 2
    return np.asarray(outline if signed_area(outline) > 0 else outline[::-1])


def _star(rng: np.random.Generator) -> Array:
    """Return corners at random distances around the origin: polygons, gears, stars."""
    count = int(rng.integers(3, 13))
    radii = rng.uniform(0.55, 1.0, count)
    if rng.random() < 0.4:  # a gear or a star: far and near corners alternate
        radii = np.tile([1.0, rng.uniform(0.45, 0.85)], count)
        radii[int(rng.integers(len(radii)))] *= 0.8  # one tooth differs, or the shape would have a symmetry
    angle = np.arange(len(radii)) / len(radii) * 2 * np.pi
    return np.asarray(0.5 * radii[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1))


def _spline(rng: np.random.Generator) -> Array:
    """Return a smooth closed curve that never crosses itself: its radius is a few waves of its angle."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones_like(angle)
    for waves in range(1, 6):
        radius += rng.uniform(-0.4, 0.4) / waves * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    radius = radius.clip(0.2)
    return np.asarray(0.5 * radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1))


def signed_area(outline: Array) -> float:
    """Return the area of a polygon (N,2), positive when it runs counter-clockwise."""
    x, y = outline.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def triangulate(outline: Array) -> Array:
    """Return triangles (N-2,3) i32 of a simple polygon (N,2), counter-clockwise, by ear clipping.

    A polygon that crosses itself, where no ear is left, gets fewer triangles instead of wrong ones.
    """
    # Not mapbox-earcut, which is faster (60 us, here 1 ms for an outline) but chooses other triangles: generated data
    # sets, and with them the demo's images and results, would change.
    left = list(range(len(outline)))
    triangles = []
    while len(left) > 3:
        for position in range(len(left)):
            corner = (left[position - 1], left[position], left[(position + 1) % len(left)])
            if _is_ear(outline, corner, left):
                triangles.append(corner)
                del left[position]
                break
        else:
            return np.array(triangles, np.int32).reshape(-1, 3)
    return np.array([*triangles, tuple(left)], np.int32)


def _is_ear(outline: Array, corner: tuple[int, int, int], left: list[int]) -> bool:
    a, b, c = outline[list(corner)]
    if _cross(b - a, c - b) <= 1e-14:
        return False
    others = outline[[index for index in left if index not in corner]]
    sides = [_cross(end - start, others - start) for start, end in ((a, b), (b, c), (c, a))]
    return not ((sides[0] >= 0) & (sides[1] >= 0) & (sides[2] >= 0)).any()


def _cross(a: Array, b: Array) -> Array:
    return np.asarray(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0])
