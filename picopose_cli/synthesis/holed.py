"""Plates: outlines with holes, extruded.

Unlike `outlines.triangulate`, which knows no holes, the ends are Delaunay triangles whose borders are refined until
every border is an edge of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import Delaunay

from picopose_cli.base.types import Array
from picopose_cli.synthesis.outlines import signed_area
from picopose_cli.synthesis.shapes import Shape, join, surface_grid

_MIN_AREA = 1e-12
_MAX_REFINEMENTS = 12


def plate(outline: Array, holes: Sequence[Array], height: float) -> Shape:
    """Return an outline (N,2) with holes (each (M,2)), extruded from z = 0 to `height`: a closed surface.

    The holes must be inside the outline and apart from each other; the direction of the corners does not matter.
    """
    outer = outline if signed_area(outline) > 0 else outline[::-1]
    inner = [hole if signed_area(hole) < 0 else hole[::-1] for hole in holes]
    rings, triangles = _triangulate([outer, *inner])
    points, span = np.concatenate(rings), np.abs(outer).max() * 2.1
    ends = []
    for z, faces, side in ((0.0, triangles[:, ::-1], -1.0), (height, triangles, 1.0)):
        uv = (0.5 + points * (side, 1.0) / span).astype(np.float32)
        ends.append(Shape(_at_height(points, z), faces, uv, ((0, 0, 1, 1),)))
    return join([*(_wall(ring, height) for ring in rings), *ends], columns=2)


def _triangulate(rings: Sequence[Array]) -> tuple[Sequence[Array], Array]:
    """Return the rings (each (N,2)) with further corners on their edges, and triangles (T,3) i32 between all corners.

    The rings are the border of an area, which is to their left.
    """
    for _ in range(_MAX_REFINEMENTS):
        points = np.concatenate(rings)
        simplices = Delaunay(points).simplices
        sides = np.concatenate([simplices[:, [0, 1]], simplices[:, [1, 2]], simplices[:, [2, 0]]])
        known = set(map(tuple, np.sort(sides, axis=1).tolist()))
        starts = np.cumsum([0, *(len(ring) for ring in rings)])
        absent = [
            [tuple(sorted((start + i, start + (i + 1) % len(ring)))) not in known for i in range(len(ring))]
            for start, ring in zip(starts, rings, strict=False)
        ]
        if not any(map(any, absent)):
            break
        rings = [_refined(ring, np.array(edges)) for ring, edges in zip(rings, absent, strict=True)]
    else:
        raise ValueError("the rings cross each other")
    corners = points[simplices]
    doubled = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    kept = _inside(corners.mean(axis=1), rings) & (np.abs(doubled) > _MIN_AREA)
    triangles = np.where((doubled > 0)[:, None], simplices, simplices[:, ::-1])[kept]
    return rings, triangles.astype(np.int32)


def _refined(ring: Array, edges: Array) -> Array:
    """Return a ring (N,2) with a corner in the middle of each of some edges (N,) bool."""
    middles = (ring + np.roll(ring, -1, axis=0)) / 2
    return np.insert(ring, np.flatnonzero(edges) + 1, middles[edges], axis=0)


def _inside(points: Array, rings: Sequence[Array]) -> Array:
    """Return whether each point (P,2) is inside an odd number of rings."""
    inside = np.zeros(len(points), bool)
    x, y = points[:, :1], points[:, 1:]
    for ring in rings:
        (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
        spans = (y0 > y) != (y1 > y)
        at = x0 + (y - y0) * (x1 - x0) / np.where(y1 == y0, 1, y1 - y0)
        inside ^= (spans & (x < at)).sum(axis=1) % 2 == 1
    return inside


def _wall(ring: Array, height: float) -> Shape:
    """Return the wall over a closed ring (N,2); it faces outwards where the ring runs counter-clockwise."""
    closed = np.concatenate([ring, ring[:1]])
    return surface_grid(np.stack([_at_height(closed, z) for z in (0.0, height)]))


def _at_height(points: Array, z: float) -> Array:
    return np.concatenate([points, np.full((len(points), 1), z)], axis=1)


def _cross(a: Array, b: Array) -> Array:
    return np.asarray(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0])
