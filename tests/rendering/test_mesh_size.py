"""The size and place of meshes: true diameters, likely units, stray triangles, and boxes off the origin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.meshes import make_ball, make_box, make_poster
from scipy.spatial.distance import pdist

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Mesh
from picopose_cli.rendering.mesh_size import (
    check_diameter,
    exact_diameter_m,
    largest_distance_m,
    mesh_centre_m,
    stray_text,
)

BOX = make_box((0.1, 0.06, 0.02), coloured=False)
PATH = Path("obj_000001.ply")


def scaled(mesh: Mesh, factor: float) -> Mesh:
    return Mesh(mesh.vertices_m * factor, mesh.faces)


def with_stray(mesh: Mesh, distance_m: float) -> Mesh:
    """The mesh and a triangle of 1 mm at a distance along x."""
    triangle = np.array([[0, 0, 0], [0.001, 0, 0], [0, 0.001, 0]]) + np.array([distance_m, 0, 0])
    faces = np.concatenate([mesh.faces, [[len(mesh.vertices_m) + i for i in range(3)]]])
    return Mesh(np.concatenate([mesh.vertices_m, triangle]), faces.astype(np.int32))


def test_the_diameter_is_the_largest_distance_of_two_vertices():
    rng = np.random.default_rng(3)
    clouds = [rng.normal(size=(50, 3)) * scale for scale in ((1, 1, 1), (5, 1, 1), (1, 0.01, 0.2))]
    meshes = [Mesh(cloud, np.array([[i, i + 1, i + 2] for i in range(48)], np.int32)) for cloud in clouds]
    for mesh in [*meshes, BOX, make_poster(), make_ball((0.05, 0.04, 0.06))]:
        true_m = pdist(mesh.vertices_m).max()
        assert 0.99 * true_m <= largest_distance_m(mesh) <= true_m * (1 + 1e-12)


def test_vertices_of_no_face_do_not_count():
    stray = Mesh(np.concatenate([BOX.vertices_m, [[9.0, 9, 9]]]), BOX.faces)
    assert largest_distance_m(stray) == largest_distance_m(BOX)


@pytest.mark.parametrize("ratio", [0.81, 1.0, 1.24])
def test_a_diameter_that_agrees(ratio: float):
    check_diameter(BOX, "mm", ratio * largest_distance_m(BOX), PATH)


@pytest.mark.parametrize(
    ("ratio", "unit", "text"),
    [
        (10, "mm", "pass --mesh-unit cm"),
        (1000, "mm", "pass --mesh-unit m"),
        (0.1, "cm", "pass --mesh-unit mm"),
        (0.001, "m", "pass --mesh-unit mm"),
        (25.4, "mm", "seems to be in inches: export it in mm"),
        (0.78, "mm", "wrong or of another object"),
        (1.27, "mm", "wrong or of another object"),
    ],
)
def test_a_diameter_that_does_not_agree_names_the_unit(ratio: float, unit: str, text: str):
    with pytest.raises(PicoPoseError, match=text) as caught:
        check_diameter(BOX, unit, ratio * largest_distance_m(BOX), PATH)
    assert "models_info.json" in str(caught.value)


def test_the_exact_diameter_is_the_largest_distance_of_two_vertices():
    rng = np.random.default_rng(0)
    for _ in range(20):
        vertices = rng.normal(size=(300, 3)) * rng.uniform(0.02, 1, 3)
        faces = np.arange(300).reshape(100, 3)
        distances = np.linalg.norm(vertices[:, None] - vertices[None], axis=2)
        assert exact_diameter_m(Mesh(vertices, faces)) == distances.max()


def test_stray_triangles_are_said():
    for distance_m in (2.0, 1.2):
        assert "tenth of its bounding box" in stray_text(with_stray(BOX, distance_m))
    with pytest.raises(PicoPoseError, match="stray triangles"):
        check_diameter(with_stray(BOX, 2.0), "mm", largest_distance_m(BOX), PATH)


def test_ordinary_meshes_have_no_stray_triangles():
    tetrahedron = Mesh(np.vstack([np.eye(3), np.zeros(3)]), np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]))
    rod = Mesh(make_box((1.0, 0.01, 0.01)).vertices_m, BOX.faces)
    for mesh in (BOX, tetrahedron, rod, make_poster(), make_ball((0.05, 0.04, 0.06)), with_stray(BOX, 0.07)):
        assert stray_text(mesh) == ""


def test_real_meshes_are_centred_agree_with_their_diameters_and_have_no_stray_triangles(shared_dir: Path):
    import json

    from picopose_cli.rendering.meshes import read_mesh

    for path in sorted((shared_dir / "real").glob("*/models/*.ply")):
        info = json.loads((path.parent / "models_info.json").read_text())[str(int(path.stem.removeprefix("obj_")))]
        mesh = read_mesh(path)
        assert 0.99 < largest_distance_m(mesh) * 1000 / info["diameter"] < 1.001
        assert not mesh_centre_m(mesh).any()
        assert not mesh.notes
        assert not stray_text(mesh)


def test_a_mesh_within_rounding_of_the_origin_is_centred():
    assert not mesh_centre_m(Mesh(BOX.vertices_m + 2e-5, BOX.faces)).any()
    np.testing.assert_allclose(
        mesh_centre_m(Mesh(BOX.vertices_m + np.array([0.001, 0, 0.07]), BOX.faces)), [0.001, 0, 0.07]
    )
