"""Move a surface so that its outlines meet the edges of the masks on average over all views.

Where a view sees the surface edge-on and nothing behind it, the distance to the mask's edge is an offset along the
normal. Each mask is wrong in its own way; a vertex is on the outline of a tenth of the views, and their mean is right.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.reconstruction.hull import mask_distances, sample
from picopose_cli.reconstruction.surface import Surface, spread
from picopose_cli.reconstruction.views import ReferenceView
from picopose_cli.reconstruction.visibility import as_mesh, sight

_RIM_COSINE = 0.3
_RIM_PX = 2.0
"""A vertex is on an outline within these of an edge-on normal and of the render's border."""
_STIFFNESS, _PULL = 10.0, 0.7
_LARGEST_SHARE = 0.015
"""Distance to a mask's edge in diameters from which on it counts half and less: the mask is wrong there."""


def rim_offsets(surface: Surface, views: Sequence[ReferenceView], distances: Sequence[Array]) -> tuple[Array, Array]:
    """Return by how much (N,) f32 m vertices would have to move along their normals, and the views (N,) that say so."""
    mesh = as_mesh(surface)
    limit = _LARGEST_SHARE * float(np.linalg.norm(np.ptp(surface.vertices, axis=0)))
    total, weight = np.zeros(len(surface.vertices), np.float32), np.zeros(len(surface.vertices), np.float32)
    for view, distance in zip(views, distances, strict=True):
        seen = sight(view, surface, mesh)
        covered = (seen.depth_m > 0).astype(np.uint8)
        to_border = np.asarray(cv2.distanceTransform(covered, cv2.DIST_L2, 3), np.float32)
        rim = np.flatnonzero((np.abs(seen.cosine) < _RIM_COSINE) & (sample(to_border, seen.x, seen.y, 99.0) < _RIM_PX))
        edge_px = sample(distance, seen.x[rim], seen.y[rim], -max(view.size_hw) / 8)
        # the surface itself is a little inside of its own border
        offset = (edge_px - sample(to_border, seen.x[rim], seen.y[rim]) + 0.5) * seen.z_m[rim] / view.focal_px
        trust = np.where(np.abs(edge_px) < max(view.size_hw), 1 / (1 + np.minimum(np.abs(offset) / limit, 1e6) ** 2), 0)
        total[rim] += trust * offset
        weight[rim] += trust
    return total / np.maximum(weight, 1e-6), weight


def fit_silhouettes(surface: Surface, views: Sequence[ReferenceView], rounds: int) -> Surface:
    """Return the surface after some rounds of moving its outlines to the masks' edges, smoothed in between."""
    distances = [mask_distances(view) for view in views]
    for _ in range(rounds):
        offsets, weights = rim_offsets(surface, views, distances)
        surface = surface.moved(_PULL * spread(surface, offsets, np.minimum(weights, 8), _STIFFNESS)).smoothed(2)
    return surface
