"""From reference views to a coloured mesh: carve, leave out views that disagree, refine poses and surface, paint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import mask_iou
from picopose_cli.base.types import Array, Mesh, RenderedView
from picopose_cli.reconstruction.carving import coarse_hull, fine_hull, hull_surface, outliers
from picopose_cli.reconstruction.checks import (
    LARGEST_MISS,
    LEAST_VIEWS,
    check_agreement,
    check_count,
    check_geometry,
    disagreement,
)
from picopose_cli.reconstruction.colours import Texture, paint
from picopose_cli.reconstruction.depth_fusion import fuse_depth
from picopose_cli.reconstruction.hull import Grid, enclosing_sphere
from picopose_cli.reconstruction.photo_fit import fit_photographs
from picopose_cli.reconstruction.pose_refinement import refine_poses
from picopose_cli.reconstruction.silhouette_fit import fit_silhouettes
from picopose_cli.reconstruction.surface import Surface
from picopose_cli.reconstruction.views import ReferenceView
from picopose_cli.rendering.software import SoftwareRenderer

_SILHOUETTE_ROUNDS = 4
_POSE_ROUNDS = 3
_PHOTO_RANGES = ((0.06, 0.02), (0.02, 0.015))
"""Offsets inward and outward in diameters, at which photographs are compared, of each round."""
_PHOTO_STEPS, _STIFFNESS = 13, 0.5
STAGES = 3 + len(_PHOTO_RANGES)
_LEAST_IOU = 0.68
"""Median IoU of hull and masks below which poses and masks do not belong together."""

OnStage = Callable[[int], None]
"""Called with the number of stages done since the last call."""


@dataclass(frozen=True)
class Reconstruction:
    """A closed surface with its texture, the views with refined poses, and those left out, each with the reason."""

    surface: Surface
    texture: Texture
    views: tuple[ReferenceView, ...]
    left_out: dict[str, str]
    overruled_share: float
    """The share of the views that may contradict a point of the hull: 0 for exact masks."""


@dataclass(frozen=True)
class ViewQuality:
    """How a render agrees with its photograph: IoU of the silhouettes, and mean error of the colours, 0 to 255."""

    name: str
    iou: float
    colour_error: float


def reconstruct(
    views: Sequence[ReferenceView], cells: int, where: str, problems: dict[str, str], on_stage: OnStage
) -> Reconstruction:
    """Return the object that views show, on a grid of `cells` along its longest side.

    `problems` are the photographs that could not be used, by name. Raises PicoPoseError when there are too few views,
    all are from one side, or poses and masks contradict each other.
    """
    left_out: dict[str, str] = {}
    kept = _agreeing_views(views, where, problems, left_out)
    hull = coarse_hull(kept)
    if hull is None or np.median(hull.ious) < _LEAST_IOU:
        order = np.argsort([] if hull is None else hull.ious)
        raise disagreement([kept[i].name for i in order], len(kept), where)
    bad = outliers(hull.ious)
    for view, iou in zip(np.array(kept, object)[bad], hull.ious[bad], strict=True):
        left_out[view.name] = f"its mask does not agree with the others (IoU {iou:.2f})"
    kept = [view for view, is_bad in zip(kept, bad, strict=True) if not is_bad]
    check_count(kept, problems | left_out, where)
    on_stage(1)
    grid, values = fine_hull(kept, coarse_hull(kept) or hull, cells)
    if sum(view.depth_m is not None for view in kept) >= LEAST_VIEWS:
        surface, refined = _fuse(grid, values, kept, on_stage)
    else:
        surface = fit_silhouettes(hull_surface(grid, values), kept, _SILHOUETTE_ROUNDS)
        on_stage(1)
        surface, refined = _fit_photographs(surface, kept, on_stage)
    texture = paint(surface, refined)
    on_stage(1)
    return Reconstruction(surface, texture, tuple(refined), left_out, hull.share)


def _agreeing_views(
    views: Sequence[ReferenceView], where: str, problems: dict[str, str], left_out: dict[str, str]
) -> list[ReferenceView]:
    """Return the views that look at one common point; others are recorded in `left_out`."""
    check_count(views, problems, where)
    centre, radius, misses = enclosing_sphere(views)
    check_agreement(views, misses, where)
    kept = [view for view, miss in zip(views, misses, strict=True) if miss <= LARGEST_MISS]
    for view, miss in zip(views, misses, strict=True):
        if not miss <= LARGEST_MISS:
            left_out[view.name] = "its pose does not agree with its mask: the camera looks past the object"
    check_count(kept, problems | left_out, where)
    check_geometry(kept, centre, radius, where)
    return kept


def _fit_photographs(
    surface: Surface, views: Sequence[ReferenceView], on_stage: OnStage
) -> tuple[Surface, list[ReferenceView]]:
    refined = refine_poses(surface, views, _POSE_ROUNDS)
    diameter_m = float(np.linalg.norm(np.ptp(surface.vertices, axis=0)))
    for inward, outward in _PHOTO_RANGES:
        surface = fit_photographs(surface, refined, inward * diameter_m, outward * diameter_m, _PHOTO_STEPS, _STIFFNESS)
        refined = refine_poses(surface, views, 1, refined)
        on_stage(1)
    return surface, refined


def _fuse(
    grid: Grid, hull: Array, views: Sequence[ReferenceView], on_stage: OnStage
) -> tuple[Surface, list[ReferenceView]]:
    """Return the surface of the views' depth maps, fused again at poses that were refined with it."""
    surface = hull_surface(grid, fuse_depth(views, grid, hull))
    on_stage(1)
    refined = refine_poses(surface, views, _POSE_ROUNDS)
    for _ in _PHOTO_RANGES:
        surface = hull_surface(grid, fuse_depth(refined, grid, hull))
        refined = refine_poses(surface, views, 1, refined)
        on_stage(1)
    return surface, refined


def textured_mesh(surface: Surface, texture: Texture) -> Mesh:
    """Return the mesh as it is read from its file: each triangle has corners of its own."""
    own = np.arange(surface.faces.size, dtype=np.int32).reshape(-1, 3)
    return Mesh(surface.vertices[surface.faces.reshape(-1)], own, uv=texture.uv.reshape(-1, 2), texture_rgb=texture.rgb)


def render_views(made: Reconstruction) -> list[RenderedView]:
    """Return the renders of a reconstruction in the crops of its views."""
    mesh = textured_mesh(made.surface, made.texture)
    first = made.views[0]
    renderer = SoftwareRenderer(mesh, first.K, first.size_hw)
    return [renderer.with_camera(view.K, view.size_hw).render_quickly(view.T_cam_from_obj) for view in made.views]


def measure_views(made: Reconstruction, renders: Sequence[RenderedView]) -> list[ViewQuality]:
    """Return how each view agrees with its render; colours are compared at the exposure that all views share."""
    found = []
    for view, render, gain in zip(made.views, renders, made.texture.gains, strict=True):
        drawn = render.alpha > 0
        both = drawn & view.silhouette & view.visible
        found.append(
            ViewQuality(view.name, mask_iou(drawn & view.known, view.silhouette), _error(view, render, both, gain))
        )
    return found


def _error(view: ReferenceView, render: RenderedView, both: Array, gain: Array) -> float:
    if not both.any():
        raise PicoPoseError("the reconstruction is not visible in the photograph", where=view.name)
    return float(np.abs(view.rgb[both] * gain - render.rgb[both]).mean())
