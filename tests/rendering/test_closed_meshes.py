"""Closed meshes drawn without their far side, against all faces: the depth must be equal to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.meshes import make_ball, make_box
from helpers.poses import random_rotation

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Mesh
from picopose_cli.rendering.closed_meshes import make_face_table, render_table
from picopose_cli.rendering.meshes import read_shape
from picopose_cli.rendering.software import render_depth
from picopose_cli.scoring.vsd import place_on_grid

K = np.array([[300.0, 0.4, 101.3], [0, 310.0, 74.8], [0, 0, 1]])
SIZE_HW = (150, 200)
BALL = make_ball((0.05, 0.04, 0.06), rings=14, segments=28)


def joined(*meshes):
    starts = np.cumsum([0, *(len(mesh.vertices_m) for mesh in meshes)])
    faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)])
    return Mesh(np.concatenate([mesh.vertices_m for mesh in meshes]), faces.astype(np.int32))


def moved(mesh, x_m, *, inside_out=False):
    return Mesh(mesh.vertices_m + np.array([x_m, 0, 0]), mesh.faces[:, ::-1] if inside_out else mesh.faces)


def dented():
    """A ball with deep dents: it hides parts of its own near side."""
    x, y, z = (BALL.vertices_m * 60).T
    return Mesh(BALL.vertices_m * (0.7 + 0.3 * np.sin(2 * x) * np.cos(2 * y + z))[:, None], BALL.faces)


CLOSED = {
    "ball": BALL,
    "dented": dented(),
    "two that intersect": joined(BALL, moved(BALL, 0.05)),
    "one inside the other": joined(BALL, Mesh(BALL.vertices_m * 0.5, BALL.faces)),
    "without triangles of no area": Mesh(
        BALL.vertices_m, BALL.faces[np.ptp(BALL.vertices_m[BALL.faces], axis=1).all(axis=1)]
    ),
}
OTHERS = {
    "open": Mesh(BALL.vertices_m, BALL.faces[BALL.vertices_m[BALL.faces][:, :, 2].mean(axis=1) < 0.03]),
    "a face is missing": Mesh(BALL.vertices_m, np.delete(BALL.faces, 200, axis=0)),
    "inside out": moved(BALL, 0.0, inside_out=True),
    "a part inside out": joined(BALL, moved(BALL, 0.12, inside_out=True)),
    "hollow, seen through a hole": joined(
        Mesh(BALL.vertices_m, BALL.faces[40:]), Mesh(BALL.vertices_m * 0.9, BALL.faces[40:, ::-1])
    ),
    "few faces": make_box(),
}
NAMES = [*CLOSED, *OTHERS]


def assert_as_all_faces(mesh, table, T, K=K, size_hw=SIZE_HW):
    xyz_cam_m, box = place_on_grid(mesh.vertices_m, T, K, size_hw)
    found = render_table(table, T, xyz_cam_m, K, box)
    np.testing.assert_array_equal(found, render_depth(Mesh(xyz_cam_m, mesh.faces), K, np.eye(4), box))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_any_mesh_from_any_side_is_drawn_as_with_all_faces(name):
    mesh = (CLOSED | OTHERS)[name]
    table, rng = make_face_table(mesh.vertices_m, mesh.faces), np.random.default_rng(3)
    assert table.closed == (name in CLOSED)
    t_m = [*rng.normal([0, 0, 0.5], 0.05, (12, 3)), (0.17, 0, 0.5), (0, -0.13, 0.5), (0, 0, 0.08)]
    drawn = [assert_as_all_faces(mesh, table, make_T(random_rotation(rng), np.array(t))) for t in t_m]
    assert min(np.count_nonzero(depth_m) for depth_m in drawn) > 0


@pytest.mark.parametrize(
    "t_m", [(0, 0, -0.5), (0, 0, 0), (0.01, 0, 0.05), (3, 0, 0.5), (0, 0, 0.062), (0.2, 0, 0.0615)]
)
def test_a_mesh_behind_or_around_the_camera_or_beside_the_image(t_m):
    table = make_face_table(BALL.vertices_m, BALL.faces)
    assert_as_all_faces(BALL, table, make_T(np.eye(3), np.array(t_m, float)))


@pytest.mark.parametrize("R", [np.diag([1.0, 1, -1]), 0.3 * np.eye(3), np.array([[1, 0, 2], [0, 1, 0], [0, 0, 1.0]])])
def test_an_estimate_that_is_no_rotation(R):
    mesh = CLOSED["dented"]
    assert_as_all_faces(mesh, make_face_table(mesh.vertices_m, mesh.faces), make_T(R, np.array([0.02, 0, 0.2])))


def fine_box():
    """A box of 1452 faces, 10 cm wide."""
    grid = np.linspace(-0.05, 0.05, 12)
    u, v = (axis.ravel() for axis in np.meshgrid(grid, grid, indexing="ij"))
    a = (np.arange(11)[:, None] * 12 + np.arange(11)).ravel()
    side = np.concatenate([np.stack([a, a + 12, a + 1], 1), np.stack([a + 12, a + 13, a + 1], 1)])
    flat = np.stack([u, v, np.full_like(u, 0.05)], axis=1)
    sides = [Mesh(np.roll(flat * [1, s, s], axis, axis=1), side.astype(np.int32)) for axis in range(3) for s in (1, -1)]
    return joined(*sides)


def test_flat_sides_that_just_turn_away():
    mesh = fine_box()
    table = make_face_table(mesh.vertices_m, mesh.faces)
    assert table.closed
    for angle in np.concatenate([[0], np.logspace(-9, -1, 9)]):
        R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        for x_m in (0.05, -0.05):  # the camera looks along a side
            assert_as_all_faces(mesh, table, make_T(R, np.array([x_m, 0, 0.5])))


def test_outlines_that_pass_through_the_centres_of_pixels():
    mesh, K = fine_box(), np.array([[360, 0, 100.5], [0, 360, 74.5], [0, 0, 1]])
    table = make_face_table(mesh.vertices_m, mesh.faces)
    for shift_px in range(-30, 31, 3):
        shift_m = shift_px * 0.45 / 360  # the front is at .45 m, 80 px wide
        assert_as_all_faces(mesh, table, make_T(np.eye(3), np.array([shift_m, -shift_m, 0.5])), K)


@pytest.mark.parametrize(("name", "seed"), [("obj_000002", 58), ("obj_000006", 41), ("obj_000007", 194)])
def test_where_rounding_leaves_a_gap_between_two_faces_the_far_side_is_seen(shared_dir, name, seed):
    """Poses at which that happens, of real meshes: without a search for gaps a pixel would stay empty."""
    mesh = read_shape(shared_dir / f"scoring/ycbv/models_eval/{name}.ply", "mm")
    K = np.array([[1066.778, 0, 312.9869], [0, 1067.487, 241.3109], [0, 0, 1]])
    rng = np.random.default_rng(seed)
    Q, upper = np.linalg.qr(rng.standard_normal((3, 3)))
    Q = Q * np.sign(np.diag(upper))
    t_m = np.array([rng.uniform(-0.2, 0.2), rng.uniform(-0.13, 0.13), rng.uniform(0.8, 1.1)])
    table = make_face_table(mesh.vertices_m, mesh.faces)
    assert table.closed
    assert_as_all_faces(mesh, table, make_T(Q * np.linalg.det(Q), t_m), K, (480, 640))


def test_vertices_at_the_same_place_are_one_and_faces_must_exist():
    corners = BALL.vertices_m[BALL.faces].reshape(-1, 3)
    apart = np.arange(len(corners)).reshape(-1, 3)
    assert make_face_table(corners, apart).closed
    with pytest.raises(ValueError, match="existing vertices"):
        make_face_table(corners, apart + 1)
