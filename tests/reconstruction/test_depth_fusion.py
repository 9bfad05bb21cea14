"""Depth carves what silhouettes cannot, and photographs move a surface to where they agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.meshes import make_ball, make_box
from helpers.reference_photos import sphere_directions, take_photos

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.types import Array, Mesh
from picopose_cli.reconstruction.carving import coarse_hull, fine_hull
from picopose_cli.reconstruction.depth_fusion import fuse_depth
from picopose_cli.reconstruction.hull import Grid
from picopose_cli.reconstruction.photo_fit import fit_photographs
from picopose_cli.reconstruction.surface import Surface
from picopose_cli.reconstruction.views import Photograph, ReferenceView, crop_view

OUTER_M, WALL_M = 0.06, 0.006


def views_of(mesh: Mesh, count: int) -> list[ReferenceView]:
    return [
        crop_view(Photograph(str(i), one.rgb, one.mask, one.mask, Pinhole(one.K), one.T, one.depth_m))
        for i, one in enumerate(take_photos(mesh, sphere_directions(count)))
    ]


def make_cup() -> Mesh:
    """Return a square cup, open at the top (z), made of five slabs."""
    half, at = OUTER_M / 2, (OUTER_M - WALL_M) / 2
    slabs = [((OUTER_M, OUTER_M, WALL_M), (0, 0, -half + WALL_M / 2))]
    slabs += [((WALL_M, OUTER_M, OUTER_M), (sign * at, 0, 0)) for sign in (-1, 1)]
    slabs += [((OUTER_M, WALL_M, OUTER_M), (0, sign * at, 0)) for sign in (-1, 1)]
    parts = [make_box(size) for size, _ in slabs]
    vertices = np.concatenate([part.vertices_m + middle for part, (_, middle) in zip(parts, slabs, strict=True)])
    faces = np.concatenate([part.faces + 24 * i for i, part in enumerate(parts)])
    return Mesh(vertices, faces.astype(np.int32), np.concatenate([part.vertex_rgb for part in parts]))


@pytest.fixture(scope="module")
def cup() -> tuple[list[ReferenceView], Grid, Array]:
    views = views_of(make_cup(), 24)
    hull = coarse_hull(views)
    return views, *fine_hull(views, hull, 32)


def value_at(values: Array, grid: Grid, point: tuple[float, float, float]) -> float:
    x, y, z = np.rint((np.array(point) - grid.origin_m) / grid.step_m).astype(int)
    return float(values[x, y, z])


def test_depth_empties_a_cup_that_silhouettes_leave_full(cup):
    views, grid, hull = cup
    fused = fuse_depth(views, grid, hull)
    inside, wall = (0.0, 0.0, 0.0), (OUTER_M / 2 - WALL_M / 2, 0.0, 0.0)
    assert value_at(hull, grid, inside) > 0
    assert value_at(fused, grid, inside) < 0
    assert value_at(fused, grid, wall) > 0
    x = grid.origin_m[0] + grid.step_m * np.arange(grid.shape[0])
    middle = np.rint(-grid.origin_m / grid.step_m).astype(int)
    row = fused[:, middle[1], middle[2]]
    edges = [np.interp(0, row[i : i + 2][:: 1 if row[i] < 0 else -1], x[i : i + 2][:: 1 if row[i] < 0 else -1])
             for i in np.flatnonzero(np.diff(np.sign(row)))]  # fmt: skip
    expected = [-OUTER_M / 2, -OUTER_M / 2 + WALL_M, OUTER_M / 2 - WALL_M, OUTER_M / 2]
    np.testing.assert_allclose(edges, expected, atol=0.4 * grid.step_m)


def test_a_table_behind_the_object_is_not_fused(cup):
    """Depth of another thing only tells that the space in front of it is empty."""
    views, grid, hull = cup
    behind = [
        replace(view, depth_m=np.where(view.depth_m > 0, view.depth_m, view.depth_m.max() * 1.02)) for view in views
    ]
    fused, alone = fuse_depth(behind, grid, hull), fuse_depth(views, grid, hull)
    assert ((fused > 0) & (alone < -grid.step_m)).sum() == 0


def test_photographs_pull_a_surface_to_the_true_one():
    ball = make_ball((0.03, 0.03, 0.03), rings=32, segments=64)
    waves = np.sin(np.array([460, 500, 540]) * ball.vertices_m) + np.sin(480 * ball.vertices_m[:, [1, 2, 0]])
    ball = replace(ball, vertex_rgb=(128 + 60 * waves).astype(np.uint8))
    views = views_of(ball, 40)
    views = [
        replace(view, silhouette=np.ones_like(view.silhouette), visible=np.ones_like(view.visible)) for view in views
    ]
    inflated = Surface(1.08 * ball.vertices_m, ball.faces)
    moved = fit_photographs(inflated, views, 0.006, 0.003, 10, 0.5)
    radii = np.linalg.norm(moved.vertices, axis=1)
    assert abs(np.median(radii) - 0.03) < 0.25 * (1.08 - 1) * 0.03
