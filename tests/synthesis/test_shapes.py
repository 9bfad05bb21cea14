"""Shapes and outlines: closed, outward, sized, with texture coordinates inside their tiles."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.meshes import count_open_edges, signed_volume

from picopose_cli.base.types import Mesh
from picopose_cli.rendering.simplify import simplify_mesh
from picopose_cli.synthesis import shapes
from picopose_cli.synthesis.outlines import random_outline, signed_area, triangulate

KINDS = (shapes.box, shapes.superquadric, shapes.lump, shapes.lathe, shapes.torus, shapes.extrusion, shapes.union)
SEEDS = range(6)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", SEEDS)
def test_shape_is_closed_and_turned_outward(kind, seed):
    shape = shapes.centred(kind(np.random.default_rng(seed)), 0.1)
    assert np.isfinite(shape.vertices).all()
    assert shape.faces.min() >= 0
    assert shape.faces.max() < len(shape.vertices)
    assert shape.uv.shape == (len(shape.vertices), 2)
    assert shape.uv.min() >= 0
    assert shape.uv.max() <= 1
    assert signed_volume(shape) > 0
    assert count_open_edges(shape) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_random_shape_has_the_size_of_real_objects(seed):
    shape = shapes.random_shape(np.random.default_rng(seed))
    low, high = shape.vertices.min(axis=0), shape.vertices.max(axis=0)
    assert shapes.SIZE_M[0] <= (high - low).max() <= shapes.SIZE_M[1]
    assert np.allclose(low + high, 0, atol=1e-9)
    assert len(shape.faces) < 12_000


def test_the_same_seed_gives_the_same_shape():
    one, two = (shapes.random_shape(np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one.vertices, two.vertices)
    assert np.array_equal(one.uv, two.uv)


def test_box_has_its_sides_volume_and_six_tiles():
    shape = shapes.bent_box(np.array([1.0, 2.0, 3.0]))
    assert signed_volume(shape) == pytest.approx(6)
    assert len(shape.tiles) == 6


def test_box_pictures_are_not_mirrored():
    shape = shapes.bent_box(np.array([1.0, 1.0, 1.0]))
    corners, uv = shape.vertices[shape.faces], shape.uv[shape.faces]
    along, across = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    turning = along[:, 0] * across[:, 1] - along[:, 1] * across[:, 0]
    outward = np.einsum(
        "fi,fi->f", np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), corners.mean(1)
    )
    assert (turning * outward > 0).all()  # seen from outside, u, v and the face turn the same way


def test_turned_body_has_its_volume():
    rng = np.random.default_rng(0)
    while True:  # a plain cylinder among the random cross-sections
        lateral = shapes.lateral_surface(np.full(2, 0.5), np.array([0.0, 2.0]), rng)
        radii = np.hypot(*lateral.vertices[:, :2].T)
        if np.ptp(radii) < 1e-9:
            break
    lids = [shapes._lid(0.5, height, lateral, end) for height, end in ((0.0, 0), (2.0, -1))]
    body = shapes.join([lateral, *lids], columns=2)
    assert signed_volume(body) == pytest.approx(np.pi * 0.25 * 2, rel=0.01)
    assert count_open_edges(body) == 0


def test_tiles_do_not_overlap():
    tiles = np.array(shapes.union(np.random.default_rng(3)).tiles)
    for i, (u0, v0, u1, v1) in enumerate(tiles):
        for a0, b0, a1, b1 in tiles[i + 1 :]:
            assert min(u1, a1) <= max(u0, a0) or min(v1, b1) <= max(v0, b0)


@pytest.mark.parametrize("seed", range(20))
def test_triangles_cover_the_outline(seed):
    outline = random_outline(np.random.default_rng(seed))
    assert signed_area(outline) > 0
    triangles = outline[triangulate(outline)]
    areas = [signed_area(triangle) for triangle in triangles]
    assert min(areas) >= 0
    assert sum(areas) == pytest.approx(signed_area(outline))


def test_outline_that_crosses_itself_ends():
    triangulate(np.array([[0.0, 0], [1, 1], [1, 0], [0, 1]]))


def grid_mesh(cells: int) -> Mesh:
    u, v = np.meshgrid(np.linspace(0, 1, cells + 1), np.linspace(0, 1, cells + 1))
    shape = shapes.surface_grid(np.stack([u, v, 0.1 * np.sin(6 * u)], -1))
    return Mesh(shape.vertices, shape.faces, uv=shape.uv, texture_rgb=np.zeros((4, 4, 3), np.uint8))


def test_simplified_mesh_keeps_shape_and_texture():
    mesh = grid_mesh(100)
    small = simplify_mesh(mesh, 2000)
    assert 1000 < len(small.faces) <= 2000
    assert np.abs(small.uv - small.vertices_m[:, :2]).max() < 1e-5  # uv is still x, y
    assert np.abs(small.vertices_m[:, 2] - 0.1 * np.sin(6 * small.vertices_m[:, 0])).max() < 0.005
    assert simplify_mesh(small, 2000) is small


def test_simplifying_never_joins_pieces_of_the_texture():
    mesh = grid_mesh(60)
    two = Mesh(
        np.concatenate([mesh.vertices_m, mesh.vertices_m + np.array([0, 0, 1e-4])]),
        np.concatenate([mesh.faces, mesh.faces + len(mesh.vertices_m)]),
        uv=np.concatenate([mesh.uv * 0.4, 0.6 + mesh.uv * 0.4]),
        texture_rgb=mesh.texture_rgb,
    )
    small = simplify_mesh(two, 3000)
    of_first = small.uv[small.faces].max(axis=-1) < 0.5
    assert (of_first.all(axis=1) | ~of_first.any(axis=1)).all()
