"""A closed surface as vertices and triangles: made from a grid of values, moved along its normals, and smoothed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from picopose_cli.base.types import Array
from picopose_cli.reconstruction.hull import Grid

_SMALLEST_PIECE = 0.02
"""Pieces of a surface with a smaller share of its triangles are left out."""
_SPREAD_STEPS = 60


@dataclass(frozen=True)
class Surface:
    """Vertices (N,3) f64 metres, object frame, and triangles (F,3) i32, counter-clockwise seen from outside."""

    vertices: Array
    faces: Array

    @cached_property
    def normals(self) -> Array:
        """Unit normals (N,3) of the vertices, outward."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        of_faces = np.cross(b - a, c - a)
        summed = np.stack(
            [np.bincount(self.faces.ravel(), np.repeat(of_faces[:, i], 3), len(self.vertices)) for i in range(3)],
            axis=1,
        )
        return np.asarray(summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-30))

    @cached_property
    def neighbours(self) -> csr_array:
        """The adjacency of vertices (N,N) f32, 1 for neighbours."""
        rows, cols = self.faces[:, [0, 1, 2]].ravel(), self.faces[:, [1, 2, 0]].ravel()
        count = len(self.vertices)
        one_way = coo_array((np.ones(len(rows), np.float32), (rows, cols)), shape=(count, count)).tocsr()
        both = one_way + one_way.T
        both.data[:] = 1
        return both

    @cached_property
    def degrees(self) -> Array:
        """The number of neighbours (N,) of each vertex."""
        return np.asarray(self.neighbours.sum(axis=1), np.float32)

    def moved(self, offsets_m: Array) -> Surface:
        """Return the surface with its vertices moved along their normals by offsets (N,)."""
        return Surface(self.vertices + offsets_m[:, None] * self.normals, self.faces)

    def mean_of_neighbours(self, values: Array) -> Array:
        """Return the mean (N,...) of the values (N,...) at each vertex' neighbours."""
        degrees = np.maximum(self.degrees, 1)
        return np.asarray((self.neighbours @ values) / (degrees if values.ndim == 1 else degrees[:, None]))

    def smoothed(self, steps: int, share: float = 0.5) -> Surface:
        """Return the surface smoothed without shrinking: Taubin's alternation of smoothing and its opposite."""
        vertices = self.vertices
        for _ in range(steps):
            for weight in (share, -1.02 * share):
                vertices = vertices + weight * (self.mean_of_neighbours(vertices) - vertices)
        return Surface(vertices, self.faces)


def spread(surface: Surface, values: Array, weights: Array, stiffness: float) -> Array:
    """Return the field (N,) that is near `values` (N,) where `weights` (N,) are large and smooth elsewhere.

    It minimises sum w (f - v)^2 + stiffness * sum over edges (f_i - f_j)^2 / degree, by Jacobi's iteration.
    """
    field: Array = np.zeros(len(values), np.float32)
    pulled, total = (weights * values).astype(np.float32), (weights + stiffness).astype(np.float32)
    for _ in range(_SPREAD_STEPS):
        field = (pulled + np.float32(stiffness) * surface.mean_of_neighbours(field)) / total
    return field


def extract_surface(values: Array, grid: Grid) -> Surface:
    """Return the surface where values (x,y,z) f32 on a grid, positive inside, change their sign; at least one does.

    The border of the grid is outside, so that the surface is closed. Marching cubes by scikit-image.
    """
    from skimage.measure import marching_cubes  # takes a third of a second to import

    padded = np.pad(values, 1, constant_values=-grid.step_m)
    padded[padded == 0] = -1e-9  # a vertex in the middle of a cube's corner would give triangles without an area
    vertices, faces, _, _ = marching_cubes(padded, 0.0, gradient_direction="ascent")
    vertices = grid.origin_m + (vertices.astype(np.float64) - 1) * grid.step_m
    return largest_pieces(Surface(vertices, np.ascontiguousarray(faces, np.int32)))


def largest_pieces(surface: Surface) -> Surface:
    """Return the surface without its small pieces, and without vertices that no triangle uses."""
    _, piece = connected_components(surface.neighbours, directed=False)
    counts = np.bincount(piece[surface.faces[:, 0]], minlength=piece.max() + 1)
    kept = counts >= _SMALLEST_PIECE * counts.sum()
    faces = surface.faces[kept[piece[surface.faces[:, 0]]]]
    used, numbered = np.unique(faces, return_inverse=True)
    return Surface(surface.vertices[used], numbered.reshape(-1, 3).astype(np.int32))


def volume_m3(surface: Surface) -> float:
    """Return the volume that a closed surface encloses, positive where its triangles face outward."""
    a, b, c = (surface.vertices[surface.faces[:, i]] for i in range(3))
    return float((a * np.cross(b, c)).sum() / 6)
