"""Renders for refinement: large meshes are simplified, by less than their pixels show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Mesh
from picopose_cli.pose import estimate_renderer
from picopose_cli.pose.estimate_renderer import MAX_FACES, EstimateRenderer
from picopose_cli.rendering.software import SoftwareRenderer, render_depth

K = np.array([[900.0, 0, 224], [0, 900, 224], [0, 0, 1]])
T = make_T(np.eye(3), np.array([0.0, 0.0, 0.25]))


@pytest.fixture(scope="module")
def bumpy() -> Mesh:
    """A ball with bumps and a pattern, of more faces than are rendered."""
    ball = trimesh.creation.icosphere(subdivisions=6)
    x, y, z = ball.vertices.T
    radius = 1 + 0.12 * np.sin(5 * x) * np.cos(4 * y) + 0.03 * np.sin(17 * z) * np.sin(13 * x)
    vertices = 0.05 * radius[:, None] * ball.vertices
    return Mesh(vertices, ball.faces.astype(np.int32), (127 + 100 * np.sin(100 * vertices)).astype(np.uint8))


@pytest.fixture
def render(bumpy, monkeypatch) -> EstimateRenderer:
    monkeypatch.setattr(estimate_renderer, "read_mesh", lambda *_: bumpy)
    return EstimateRenderer({1: (Path("bumpy.ply"), "m")})


def outline_px(one: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of the outlines of two silhouettes."""
    edge = sum(np.abs(np.diff(one.astype(int), axis=axis)).sum() for axis in (0, 1)) * np.pi / 4
    return float((one != other).sum() / edge)


def test_large_meshes_are_simplified_by_less_than_a_tenth_of_a_pixel(bumpy, render):
    assert len(bumpy.faces) > MAX_FACES
    full, view = SoftwareRenderer(bumpy, K, (448, 448)).render_quickly(T), render(1, T, K, 448)
    inside = (full.depth_m > 0) & (view.depth_m > 0)
    assert inside.sum() > 80_000
    assert outline_px(full.depth_m > 0, view.depth_m > 0) < 0.1
    assert np.abs(full.depth_m - view.depth_m)[inside].mean() < 5e-5
    assert np.abs(full.rgb.astype(int) - view.rgb)[inside].mean() < 2
    K_small = np.diag([0.5, 0.5, 1]) @ K
    depth_m, exact_m = render.depth(1, T, K_small, 224), render_depth(bumpy, K_small, T, (0, 0, 224, 224))
    assert (depth_m != exact_m).any()
    assert outline_px(exact_m > 0, depth_m > 0) < 0.1


def test_an_object_without_a_mesh_is_named(render):
    with pytest.raises(PicoPoseError, match="object 2 has no mesh"):
        render.depth(2, T, K, 448)
