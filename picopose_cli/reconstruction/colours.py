"""Colours of a surface: a texture blended from the photographs that see each triangle best.

Two triangles share a square cell of the texture, each with a margin, so that neither bilinear samples nor the first
reduced resolutions mix colours of cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.reconstruction.hull import sample
from picopose_cli.reconstruction.photometry import clear_sights, pixel_size_m
from picopose_cli.reconstruction.surface import Surface
from picopose_cli.reconstruction.views import ReferenceView
from picopose_cli.reconstruction.visibility import Sight

_CELLS_PX = (8, 16, 32)
_MARGIN_TEXELS = 1
_SHARPNESS = 4.0
"""Power of the weight of a view, which is the squared cosine of its angle: few views blend, so that details survive."""
_FAINT = np.float32(1e-4)
_SPREAD_STEPS = 200
_GAIN_RANGE = (0.5, 2.0)
_TEXELS = 400_000


@dataclass(frozen=True)
class Texture:
    """A texture `rgb` (s,s,3) u8 and the same in coarse: `vertex_rgb` (N,3) u8.

    `uv` (F,3,2) f32 are the coordinates of the triangles' corners, v = 0 at the texture's bottom;
    `gains` (V,3) f32 with which the views' colours are multiplied.
    """

    rgb: Array
    uv: Array
    vertex_rgb: Array
    gains: Array


def paint(surface: Surface, views: Sequence[ReferenceView]) -> Texture:
    """Return the colours of a surface."""
    sights = [(one, weight**_SHARPNESS) for one, weight in clear_sights(surface, views)]
    images = [view.rgb.astype(np.float32) for view in views]
    gains = _even_exposures(images, sights)
    images = [image * gain for image, gain in zip(images, gains, strict=True)]
    vertex_rgb = _vertex_colours(surface, images, sights)
    edges = np.linalg.norm(surface.vertices[surface.faces[:, 0]] - surface.vertices[surface.faces[:, 1]], axis=1)
    legs = float(np.median(edges)) / pixel_size_m(views, sights)
    cell_px = next((cell for cell in _CELLS_PX if cell - 4 * _MARGIN_TEXELS >= legs), _CELLS_PX[-1])
    columns = int(np.ceil(np.sqrt(-(-len(surface.faces) // 2))))
    rgb = np.zeros((columns * cell_px, columns * cell_px, 3), np.uint8)
    order = _near_faces_together(surface)
    uv = np.empty((len(order), 3, 2), np.float32)
    texels = [_half_cell(cell_px, second) for second in (False, True)]
    per_chunk = max(_TEXELS // (cell_px * cell_px), 1) * 2
    for start in range(0, len(order), per_chunk):
        numbers = np.arange(start, min(start + per_chunk, len(order)))
        for second in (False, True):
            own = numbers[numbers % 2 == second]
            faces, cell = order[own], own // 2
            corner_px = np.stack([cell % columns, cell // columns], axis=1) * cell_px  # x, y
            place, barycentric, corners = texels[second]
            colours = _texel_colours(surface, faces, barycentric, vertex_rgb, views, images, sights)
            rgb[corner_px[:, 1, None] + place[:, 1], corner_px[:, 0, None] + place[:, 0]] = colours
            at = (corner_px[:, None] + corners + 0.5) / rgb.shape[0]
            uv[faces] = np.stack([at[..., 0], 1 - at[..., 1]], axis=-1)
    return Texture(rgb, uv, np.rint(vertex_rgb).clip(0, 255).astype(np.uint8), np.asarray(gains))


def _half_cell(cell_px: int, second: bool) -> tuple[Array, Array, Array]:
    """Return the texels (P,2) x, y of one triangle of a cell, their barycentric coordinates (P,3), and its corners."""
    low, high = _MARGIN_TEXELS, cell_px - 1 - _MARGIN_TEXELS
    leg = cell_px - 4 * _MARGIN_TEXELS
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(cell_px), np.arange(cell_px)))
    own = (x + y >= cell_px) if second else (x + y < cell_px)
    place = np.stack([x[own], y[own]], axis=1)
    a, b = ((high - place) if second else (place - low)).T / leg
    sign, origin = (-1, high) if second else (1, low)
    corners = origin + sign * leg * np.array([[0, 0], [1, 0], [0, 1]])
    return place, np.stack([1 - a - b, a, b], axis=1), corners


def _texel_colours(
    surface: Surface,
    faces: Array,
    barycentric: Array,
    vertex_rgb: Array,
    views: Sequence[ReferenceView],
    images: Sequence[Array],
    sights: Sequence[tuple[Sight, Array]],
) -> Array:
    """Return the colours (F,P,3) u8 of texels of faces (F,), by their barycentric coordinates (P,3)."""
    corners = surface.faces[faces]  # (F,3)
    weights = barycentric.clip(0, 1) / barycentric.clip(0, 1).sum(axis=1, keepdims=True)
    total = _FAINT * np.einsum("pc,fck->fpk", weights, vertex_rgb[corners]).astype(np.float32)
    sums = np.full(total.shape[:2], _FAINT, np.float32)
    for view, image, (_, seen) in zip(views, images, sights, strict=True):
        of_corners = seen[corners]
        use = np.flatnonzero((of_corners > 0).all(axis=1))
        if not len(use):
            continue
        points = np.einsum("pc,fck->fpk", barycentric, surface.vertices[corners[use]])
        x, y, _ = view.project(points.reshape(-1, 3))
        weight = of_corners[use] @ weights.T.astype(np.float32)  # (U,P)
        total[use] += weight[..., None] * sample(image, x, y).reshape(len(use), -1, 3)
        sums[use] += weight
    return np.asarray(np.rint(total / sums[..., None]).clip(0, 255).astype(np.uint8))


def _vertex_colours(surface: Surface, images: Sequence[Array], sights: Sequence[tuple[Sight, Array]]) -> Array:
    """Return the colours (N,3) f32 of vertices; those that no view sees have their neighbours'."""
    total, sums = np.zeros((len(surface.vertices), 3), np.float32), np.zeros(len(surface.vertices), np.float32)
    for image, (one, weight) in zip(images, sights, strict=True):
        total += weight[:, None] * sample(image, one.x, one.y)
        sums += weight
    colours = total / np.maximum(sums, 1e-9)[:, None]
    unseen = sums < _FAINT
    colours[unseen] = colours[~unseen].mean(axis=0) if (~unseen).any() else 128
    for _ in range(_SPREAD_STEPS if unseen.any() else 0):
        colours[unseen] = surface.mean_of_neighbours(colours)[unseen]
    return colours


def _even_exposures(images: Sequence[Array], sights: Sequence[tuple[Sight, Array]]) -> Array:
    """Return factors (V,3) f32, 1 on average, that make the views' colours of the same vertices equal on the whole."""
    gains = np.ones((len(images), 3), np.float32)
    seen = [np.flatnonzero(weight) for _, weight in sights]
    colours = [sample(image, one.x[use], one.y[use]) for image, (one, _), use in zip(images, sights, seen, strict=True)]
    for _ in range(3):
        total, count = np.zeros((len(sights[0][1]), 3), np.float32), np.zeros(len(sights[0][1]), np.float32)
        for own, use, gain in zip(colours, seen, gains, strict=True):
            total[use] += own * gain
            count[use] += 1
        mean = total / np.maximum(count, 1)[:, None]
        for i, (own, use) in enumerate(zip(colours, seen, strict=True)):
            if len(use):
                gains[i] = np.clip(mean[use].sum(axis=0) / np.maximum(own.sum(axis=0), 1), *_GAIN_RANGE)
        gains /= gains.mean(axis=0)
    return gains


def _near_faces_together(surface: Surface) -> Array:
    """Return the indices (F,) of the faces so that neighbours in this order are near each other on the surface."""
    middle = surface.vertices[surface.faces].mean(axis=1)
    low, size = middle.min(axis=0), float(np.ptp(middle, axis=0).max())
    cell = ((middle - low) / max(size, 1e-12) * 255).astype(np.int64)
    code = np.zeros(len(cell), np.int64)
    for bit in range(8):  # Morton's order
        for axis in range(3):
            code |= ((cell[:, axis] >> bit) & 1) << (3 * bit + axis)
    return np.argsort(code, kind="stable")
