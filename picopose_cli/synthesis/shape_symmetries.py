"""The rotations that leave a shape unchanged, found by trying: those of a cube, and those of prisms about z.

A rotated copy of the shape is compared with the shape itself: the deviation is the largest distance of a point of its
surface from the other surface, as a share of the diameter.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product

import numpy as np
from scipy.spatial import KDTree

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Array, Mesh
from picopose_cli.rendering.mesh_size import mesh_diameter_m
from picopose_cli.synthesis.symmetric_objects import NO_SYMMETRIES, Symmetries

SAME, DIFFERENT = 0.008, 0.03
"""Deviation up to which a shape counts as unchanged, and from which on as changed: a circle of 32 corners deviates by
0.003 at most, and 0.03 is 3 px of an object that is 100 px large. What is between is ambiguous,
unless the rotation is near a symmetry."""
_NEAR_RAD = 0.55
_FOLDS = (3, 5, 6, 8, 12)
"""Of the rotations about z that are no rotations of a cube."""
_IRRATIONAL_RAD = (1.0, 2.4)
"""Rotations about z that only a body of revolution allows."""
_UPSIDE_DOWN = np.diag([1.0, -1, -1])
_SAMPLES, _PROBES, _NEIGHBOURS = 24_000, 2_500, 16


def find_symmetries(mesh: Mesh) -> Symmetries | None:
    """Return the symmetries of a shape about its origin, colours ignored, or None where they are ambiguous."""
    deviation = _deviation_of(mesh)
    turned = [deviation(_about_z(angle)) for angle in _IRRATIONAL_RAD]
    if max(turned) < SAME:
        return _of_revolution(deviation(_UPSIDE_DOWN))
    candidates = [R for R in _cube_rotations() if not np.array_equal(R, np.eye(3))]
    fractions = [_about_z(2 * np.pi * k / fold) for fold in _FOLDS for k in range(1, fold) if _is_new(k, fold)]
    candidates += [R @ end for R in fractions for end in (np.eye(3), _UPSIDE_DOWN)]
    amounts = [deviation(R) for R in candidates]
    rotations = np.stack([np.eye(3), *(R for R, amount in zip(candidates, amounts, strict=True) if amount < SAME)])
    doubtful = [R for R, amount in zip(candidates, amounts, strict=True) if SAME <= amount < DIFFERENT]
    if not _is_group(rotations) or any(_nearest_rad(R, rotations) > _NEAR_RAD for R in doubtful):
        return None
    if len(rotations) == 1:
        return NO_SYMMETRIES
    return Symmetries(make_T(rotations[1:], np.zeros((len(rotations) - 1, 3))), ())


def _of_revolution(flipped: float) -> Symmetries | None:
    """Return the symmetries of a body of revolution about z from its deviation when it is upside down."""
    if SAME <= flipped < DIFFERENT:
        return None
    flips = _UPSIDE_DOWN[None] if flipped < SAME else np.zeros((0, 3, 3))
    return Symmetries(make_T(flips, np.zeros((len(flips), 3))), ((np.array([0.0, 0, 1]), np.zeros(3)),))


def _deviation_of(mesh: Mesh) -> Callable[[Array], float]:
    """Return the function that gives the deviation of a mesh rotated by R (3,3)."""
    rng = np.random.default_rng(0)
    size = mesh_diameter_m(mesh)
    corners = mesh.vertices_m[mesh.faces] / size  # (F,3,3)
    double_area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    face = np.sort(rng.choice(len(corners), _SAMPLES, p=double_area / double_area.sum()))
    weights = rng.dirichlet((1, 1, 1), _SAMPLES)
    samples = np.einsum("nc,nci->ni", weights, corners[face])
    tree, probes = KDTree(samples), samples[rng.choice(_SAMPLES, _PROBES, replace=False)]

    def deviation(R: Array) -> float:
        largest = 0.0
        for some in np.split(probes @ R.T, (_PROBES // 16, _PROBES // 4)):  # a few points show most differences
            near = tree.query(some, _NEIGHBOURS)[1]
            largest = max(largest, float(_distance_to_triangles(some[:, None], corners[face[near]]).min(axis=1).max()))
            if largest > DIFFERENT:
                break
        return largest

    return deviation


def _distance_to_triangles(points: Array, corners: Array) -> Array:
    """Return the distances (...) of points (...,3) from triangles (...,3,3)."""
    a, b, c = (corners[..., i, :] for i in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-30)
    above = ((points - a) * normal).sum(axis=-1)
    inside = np.ones(above.shape, bool)
    to_edge = np.full(above.shape, np.inf)
    for start, end in ((a, b), (b, c), (c, a)):
        edge, offset = end - start, points - start
        inside &= (np.cross(edge, offset) * normal).sum(axis=-1) >= 0
        share = (offset * edge).sum(axis=-1) / np.maximum((edge**2).sum(axis=-1), 1e-30)
        to_edge = np.minimum(to_edge, np.linalg.norm(offset - share.clip(0, 1)[..., None] * edge, axis=-1))
    return np.where(inside, np.abs(above), to_edge)


def _cube_rotations() -> list[Array]:
    """Return the 24 rotations (3,3) of a cube."""
    signed = [np.eye(3)[list(order)] * np.array(signs) for order in permutations(range(3)) for signs in _SIGNS]
    return [R for R in signed if np.linalg.det(R) > 0]


_SIGNS = tuple(product((1.0, -1.0), repeat=3))


def _about_z(angle_rad: float) -> Array:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _is_new(k: int, fold: int) -> bool:
    """Return whether k / fold of a turn is no quarter turn and no smaller one of `_FOLDS`."""
    return (4 * k) % fold != 0 and not any((smaller * k) % fold == 0 for smaller in _FOLDS if smaller < fold)


def _nearest_rad(R: Array, rotations: Array) -> float:
    """Return the angle between a rotation (3,3) and the nearest of others (G,3,3)."""
    return float(np.arccos(((np.einsum("gij,ij->g", rotations, R) - 1) / 2).clip(-1, 1)).min())


def _is_group(rotations: Array) -> bool:
    """Return whether the product of every two rotations (G,3,3) is one of them."""
    products = np.einsum("aij,bjk->abik", rotations, rotations).reshape(-1, 1, 3, 3)
    return bool((np.abs(products - rotations).max(axis=(-1, -2)).min(axis=1) < 1e-6).all())
