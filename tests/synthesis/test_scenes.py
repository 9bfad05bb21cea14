"""Scenes: cameras, placement, difficulty; light; and their drawing against the project's own renderer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from picopose_cli.base.geometry import invert_T, make_T, project_points, rotation_angle_rad, transform_points
from picopose_cli.base.types import Mesh
from picopose_cli.rendering.rasteriser import Window
from picopose_cli.rendering.software import SoftwareRenderer, render_depth
from picopose_cli.synthesis.compose import BACKGROUND_OWNER, draw_scene
from picopose_cli.synthesis.lighting import Light, light_mesh, make_lit_mesh
from picopose_cli.synthesis.objects import SyntheticObject, make_procedural_object
from picopose_cli.synthesis.placement import look_at
from picopose_cli.synthesis.samples import nearest_views
from picopose_cli.synthesis.scenes import Difficulty, PlacedObject, Scene, image_box, random_scene
from picopose_cli.synthesis.shapes import bent_box, superquadric
from picopose_cli.templates.views import view_poses

FLAT = Light(np.array([0.0, 0, -1]), 1.0, 0.0, 0.0, 1.0)
GREY = np.full((8, 8, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def pool() -> list[SyntheticObject]:
    return [make_procedural_object(seed, str(seed), texture_px=96) for seed in range(12)]


def scenes(pool, level: float, count: int = 20):
    return [
        random_scene(np.random.default_rng(seed), pool, Difficulty.at(level), backgrounds=4) for seed in range(count)
    ]


def test_difficulty_rises_one_thing_after_the_other():
    easy, rotated, hard = (Difficulty.at(level) for level in (0, 0.3, 1))
    assert (easy.roll_rad, easy.max_objects, easy.max_clutter, easy.table_share, easy.rough_mask_share) == (
        0,
        1,
        0,
        0,
        0,
    )
    assert rotated.roll_rad == pytest.approx(np.pi)
    assert rotated.max_objects <= 2
    assert (hard.max_objects, hard.max_clutter) == (6, 4)
    assert Difficulty.at(7) == hard


def test_look_at_stands_upright_and_rolls():
    direction = np.array([1.0, 2.0, 0.5])
    R = look_at(direction, 0)
    assert np.allclose(R @ R.T, np.eye(3))
    assert np.allclose(R @ direction / np.linalg.norm(direction), [0, 0, -1])
    assert (R @ [0, 0, 1])[1] < 0  # the object's z axis is up in the image
    assert (R @ [0, 0, 1])[0] == pytest.approx(0)
    assert rotation_angle_rad(R, look_at(direction, 0.7)) == pytest.approx(0.7)


def test_easy_scenes_show_one_upright_object(pool):
    views = view_poses()
    for scene in scenes(pool, 0.0):
        assert len(scene.placed) == 1
        T = scene.placed[0].T_cam_from_obj
        nearest = views[nearest_views(views, T, 1)[0]]
        direction = -T[:3, :3].T @ T[:3, 3] / np.linalg.norm(T[:3, 3])
        if abs(direction[2]) < 0.8:  # at the poles up is undefined
            assert rotation_angle_rad(T[:3, :3], nearest[:3, :3]) < 0.6


def test_hard_scenes_hold_many_objects_turned_anyhow(pool):
    drawn = scenes(pool, 1.0, 40)
    assert max(len(scene.placed) for scene in drawn) >= 8
    assert {scene.T_cam_from_table is None for scene in drawn} == {True, False}
    for scene in drawn:
        assert 1 <= scene.target_count <= len(scene.placed)
        for placed in scene.placed:
            T = placed.T_cam_from_obj
            assert np.allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3))
            assert np.linalg.det(T[:3, :3]) == pytest.approx(1)
            assert T[2, 3] > 0.5 * placed.item.diameter_m


def test_viewpoints_are_spread_over_the_sphere(pool):
    directions = []
    for scene in scenes(pool, 1.0, 150):
        T = scene.placed[0].T_cam_from_obj
        directions.append(-T[:3, :3].T @ T[:3, 3] / np.linalg.norm(T[:3, 3]))
    assert np.linalg.norm(np.mean(directions, axis=0)) < 0.3
    assert np.allclose(np.cov(np.array(directions).T), np.eye(3) / 3, atol=0.15)


def test_objects_rest_on_the_table(pool):
    rested = [scene for scene in scenes(pool, 1.0, 40) if scene.T_cam_from_table is not None]
    assert rested
    for scene in rested:
        T_table_from_cam = invert_T(scene.T_cam_from_table)
        for placed in scene.placed:
            vertices = transform_points(T_table_from_cam @ placed.T_cam_from_obj, placed.item.mesh.vertices_m)
            assert vertices[:, 2].min() == pytest.approx(0, abs=1e-9)


def test_first_objects_box_has_a_usual_size(pool):
    sides = []
    for scene in scenes(pool, 0.5, 60):
        box = image_box(scene.placed[0], scene.K)
        sides.append(max(box[2] - box[0], box[3] - box[1]) / scene.size_hw[1] * 640)
    assert 40 < np.percentile(sides, 5) < 90
    assert 200 < np.percentile(sides, 95) < 520


def one_object(mesh: Mesh, T: np.ndarray, light: Light = FLAT) -> Scene:
    K = np.array([[600.0, 0, 160], [0, 590, 120], [0, 0, 1]])
    placed = PlacedObject(SyntheticObject("one", mesh), T, np.array([200.0, 100, 50]))
    return Scene((placed,), 1, K, (240, 320), light, None, 0, 0, True)


def coloured_mesh(seed: int = 0) -> Mesh:
    shape = superquadric(np.random.default_rng(seed))
    rgb = (127 + 120 * np.sin(shape.vertices * 5)).astype(np.uint8)
    return Mesh(shape.vertices * 0.1, shape.faces, vertex_rgb=rgb)


POSE = make_T(look_at(np.array([1.0, -0.5, 0.8]), 0.4), np.array([0.02, -0.01, 0.5]))


def test_under_flat_light_a_scene_shows_what_the_renderer_shows():
    scene = one_object(coloured_mesh(), POSE)
    picture = draw_scene(scene, Window(0, 0, 320, 240), 2, GREY)
    view = SoftwareRenderer(scene.placed[0].item.mesh, scene.K, scene.size_hw).render(POSE)
    inside = view.alpha == 255
    assert np.abs(picture.rgb.astype(int) - view.rgb)[inside].max() <= 2
    assert (picture.rgb[view.alpha == 0] == 90).all()
    exact = draw_scene(scene, Window(0, 0, 320, 240), 1, GREY)
    assert np.array_equal(exact.visible_mask(0), view.depth_m > 0)
    assert np.allclose(exact.depth_m, view.depth_m, atol=1e-6)
    assert abs(int(picture.visible_mask(0).sum()) - int((view.depth_m > 0).sum())) < 100


def test_a_window_shows_the_same_as_the_whole_image():
    scene = one_object(coloured_mesh(), POSE)
    whole = draw_scene(scene, Window(0, 0, 320, 240), 2, GREY)
    part = draw_scene(scene, Window(120, 80, 200, 170), 2, GREY)
    assert np.abs(part.rgb.astype(int) - whole.rgb[80:170, 120:200]).max() <= 1
    assert (part.owner != whole.owner[160:340, 240:400]).mean() < 0.002


def test_the_nearer_object_hides_the_other():
    scene = one_object(coloured_mesh(), POSE)
    front = PlacedObject(SyntheticObject("two", coloured_mesh(1)), POSE @ make_T(np.eye(3), np.zeros(3)), np.zeros(3))
    front = replace(front, T_cam_from_obj=make_T(POSE[:3, :3], np.array([0.09, -0.01, 0.35])))
    both = replace(scene, placed=(*scene.placed, front), target_count=2)
    picture = draw_scene(both, Window(0, 0, 320, 240), 1, GREY)
    depths = [render_depth(placed.item.mesh, both.K, placed.T_cam_from_obj, (0, 0, 320, 240)) for placed in both.placed]
    near = np.where((depths[1] > 0) & ((depths[0] == 0) | (depths[1] < depths[0])), 1, 0)
    expected = np.where((depths[0] > 0) | (depths[1] > 0), near, BACKGROUND_OWNER)
    assert (picture.owner != expected).mean() < 1e-3
    assert picture.visible_share(1) == 1
    assert 0.2 < picture.visible_share(0) < 0.95
    assert picture.counts.tolist() == [int((depth > 0).sum()) for depth in depths]


def test_light_falls_from_its_side():
    box = bent_box(np.array([0.1, 0.1, 0.1]))
    mesh = Mesh(box.vertices, box.faces)
    light = Light(np.array([-1.0, 0, 0]), 0.3, 0.7, 0.0, 1.0)
    lit = make_lit_mesh(mesh)
    T = make_T(np.eye(3), np.array([0.0, 0, 1]))
    rgb = light_mesh(lit, light, T, np.array([200.0, 100, 50])).attributes
    assert np.allclose(rgb[lit.normals[:, 0] < -0.9], [200, 100, 50], atol=0.1)
    assert np.allclose(rgb[lit.normals[:, 0] > -0.1], [60, 30, 15], atol=0.1)


def test_highlight_adds_white():
    mesh = coloured_mesh()
    light = Light(np.array([0.0, 0, -1]), 0.5, 0.5, 0.5, 20.0)
    plain = draw_scene(one_object(mesh, POSE, replace(light, specular=0.0)), Window(0, 0, 320, 240), 1, GREY).rgb
    shiny = draw_scene(one_object(mesh, POSE, light), Window(0, 0, 320, 240), 1, GREY).rgb
    assert (shiny.astype(int) >= plain.astype(int) - 1).all()
    assert (shiny.astype(int) - plain).max() > 40


def test_edges_are_sharp_and_round_bodies_smooth():
    box = bent_box(np.array([1.0, 1.0, 1.0]), steps=2)
    normals = make_lit_mesh(Mesh(box.vertices, box.faces)).normals
    assert np.allclose(np.abs(normals).max(axis=1), 1)
    t, p = np.meshgrid(np.linspace(0.3, 2.8, 30), np.linspace(0, 2 * np.pi, 60))
    ball = np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], -1).reshape(-1, 3)
    index = np.arange(1800).reshape(60, 30)
    a, b, c = (part.ravel() for part in (index[:-1, :-1], index[1:, :-1], index[:-1, 1:]))
    faces = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, index[1:, 1:].ravel()], 1)]).astype(np.int32)
    lit = make_lit_mesh(Mesh(ball, faces))
    assert len(lit.normals) <= len(ball)
    places = lit.raster_mesh.vertices + lit.raster_mesh.centre
    agreement = np.einsum("ni,ni->n", lit.normals, places)
    assert np.abs(agreement).min() > 0.98  # across the seam, too


def test_shadow_darkens_the_table_beside_the_object(pool):
    scene = next(scene for scene in scenes(pool, 1.0, 60) if scene.T_cam_from_table is not None)
    lamp = scene.T_cam_from_table[:3, :3] @ (0.6, 0.0, 0.8)
    lit = replace(scene, light=Light(lamp, 0.3, 0.7, 0.0, 1.0), plain_background=False)
    dim = replace(lit, light=replace(lit.light, direction_cam=-lamp))  # from below: no shadow
    window = Window(0, 0, scene.size_hw[1], scene.size_hw[0])
    background = np.full((32, 32, 3), 200, np.uint8)
    with_shadow, without = (draw_scene(each, window, 1, background) for each in (lit, dim))
    bare = with_shadow.owner == BACKGROUND_OWNER
    assert (without.rgb[bare] == 200).all()
    assert with_shadow.rgb[bare].min() < 150


def test_image_box_encloses_the_object(pool):
    for scene in scenes(pool, 0.2, 10):
        placed = scene.placed[0]
        uv = project_points(scene.K, transform_points(placed.T_cam_from_obj, placed.item.mesh.vertices_m))
        box = image_box(placed, scene.K)
        assert (uv.min(axis=0) >= box[:2] - 1e-3).all()
        assert (uv.max(axis=0) <= box[2:] + 1e-3).all()
