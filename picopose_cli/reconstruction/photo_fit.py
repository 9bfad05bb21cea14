"""Move a surface along its normals to where the photographs agree about the colours of its patches.

For each vertex a small square in the tangent plane is read from all views that see it clearly, at several offsets along
the normal. The mean correlation of the pairs of views has a peak at the surface, also in concavities, which no
silhouette shows. Vertices without texture follow their neighbours and the silhouettes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.reconstruction.hull import mask_distances, sample
from picopose_cli.reconstruction.photometry import clear_sights, pixel_size_m
from picopose_cli.reconstruction.silhouette_fit import rim_offsets
from picopose_cli.reconstruction.surface import Surface, spread
from picopose_cli.reconstruction.views import ReferenceView

_SIDE = 5
_SPACING_PX = 1.5
"""Samples along a patch's side, and their distance in the median view."""
_CHUNK = 4000
_LEAST_CORRELATION, _SURE_CORRELATION = 0.3, 0.8
_NOISE_LEVELS = 4.0
"""Standard deviation of a patch's colours that noise alone may cause, of 255 levels."""


def fit_photographs(
    surface: Surface, views: Sequence[ReferenceView], inward_m: float, outward_m: float, steps: int, stiffness: float
) -> Surface:
    """Return the surface moved by at most `inward_m` and `outward_m` to where its patches look alike, of `steps`."""
    offsets = np.linspace(-inward_m, outward_m, steps).astype(np.float32)
    curve = correlations(surface, views, offsets)
    for _ in range(2):
        curve = (curve + surface.mean_of_neighbours(curve)) / 2
    best, trust = _peaks(curve, offsets)
    rim, rim_count = rim_offsets(surface, views, [mask_distances(view) for view in views])
    rim_weight = 0.1 * np.minimum(rim_count, 8)
    weight = trust + rim_weight
    values = (trust * best + rim_weight * rim) / np.maximum(weight, 1e-6)
    return surface.moved(spread(surface, values, weight, stiffness)).smoothed(1)


def correlations(surface: Surface, views: Sequence[ReferenceView], offsets: Array) -> Array:
    """Return the mean correlation (N,J) f32 of the views' patches at offsets (J,) m, 0 where fewer than two see one."""
    sights = clear_sights(surface, views)
    images = [view.rgb.astype(np.float32) for view in views]
    found = np.zeros((len(surface.vertices), len(offsets)), np.float32)
    squares = _patches(surface, _SPACING_PX * pixel_size_m(views, sights))
    for start in range(0, len(surface.vertices), _CHUNK):
        part = slice(start, start + _CHUNK)
        found[part] = _correlate(
            surface.vertices[part],
            surface.normals[part],
            squares[part],
            offsets,
            [(view, image, weight[part]) for view, image, (_, weight) in zip(views, images, sights, strict=True)],
        )
    return found


def _correlate(
    points: Array,
    normals: Array,
    squares: Array,
    offsets: Array,
    seen: Sequence[tuple[ReferenceView, Array, Array]],
) -> Array:
    count, samples = len(points), _SIDE * _SIDE
    total = np.zeros((count, len(offsets), samples * 3), np.float32)
    sums, squared = np.zeros(count, np.float32), np.zeros(count, np.float32)
    for view, image, weight in seen:
        use = np.flatnonzero(weight)
        if not len(use):
            continue
        at = points[use, None] + offsets[:, None] * normals[use, None]  # (U,J,3)
        xyz = (at[:, :, None] + squares[use, None]).reshape(-1, 3)
        x, y, _ = view.project(xyz)
        patch: Array = sample(image, x, y).reshape(len(use), len(offsets), samples, 3)
        patch -= patch.mean(axis=2, keepdims=True)
        patch = patch.reshape(len(use), len(offsets), -1)
        norm = np.sqrt((patch**2).sum(axis=2, keepdims=True)) + np.float32(_NOISE_LEVELS * np.sqrt(samples * 3))
        total[use] += weight[use, None, None] * (patch / norm)
        sums[use] += weight[use]
        squared[use] += weight[use] ** 2
    pairs = sums**2 - squared
    agreement = (total**2).sum(axis=2) - squared[:, None]
    return np.where(pairs[:, None] > 0.1, agreement / np.maximum(pairs[:, None], 0.1), 0)


def _patches(surface: Surface, spacing_m: float) -> Array:
    """Return the samples (N,P,3) f32 of a square in the tangent plane of each vertex, relative to the vertex."""
    n = surface.normals
    helper = np.where(np.abs(n[:, :1]) < 0.7, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    u = np.cross(n, helper)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(n, u)
    along = (np.arange(_SIDE) - (_SIDE - 1) / 2) * spacing_m
    a, b = (axis.ravel() for axis in np.meshgrid(along, along))
    return np.asarray(a[:, None] * u[:, None] + b[:, None] * v[:, None], np.float32)


def _peaks(curve: Array, offsets: Array) -> tuple[Array, Array]:
    """Return the offset (N,) f32 m of each curve's (N,J) peak, by a parabola, and how far it can be trusted (N,)."""
    best = curve.argmax(axis=1)
    inner = np.clip(best, 1, len(offsets) - 2)
    rows = np.arange(len(curve))
    low, peak, high = (curve[rows, inner + i] for i in (-1, 0, 1))
    bend = np.minimum(low - 2 * peak + high, -1e-6)
    shift = np.clip(0.5 * (low - high) / bend, -1, 1)
    value = curve[rows, best]
    sure = np.clip((value - _LEAST_CORRELATION) / (_SURE_CORRELATION - _LEAST_CORRELATION), 0, 1)
    sharp = np.clip((value - np.median(curve, axis=1)) / 0.1, 0, 1)
    at_end = (best == 0) | (best == len(offsets) - 1)
    trust = np.where(at_end, 0, sure * sharp)
    return (offsets[inner] + shift * (offsets[1] - offsets[0])).astype(np.float32), trust.astype(np.float32)
