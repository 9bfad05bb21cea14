"""The whole way from views to a mesh, against shapes that are known: a ball, and a box with a colour on each side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.meshes import SIDE_RGB, make_ball, make_box
from helpers.reference_photos import Photo, sphere_directions, take_photos

from picopose_cli.base.cameras import Fisheye624, Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T, project_points, rotation_angle_rad
from picopose_cli.base.types import Array
from picopose_cli.reconstruction.carving import coarse_hull, fine_hull, hull_surface
from picopose_cli.reconstruction.pose_refinement import refine_poses
from picopose_cli.reconstruction.reconstruct import measure_views, reconstruct, render_views
from picopose_cli.reconstruction.surface import Surface, spread, volume_m3
from picopose_cli.reconstruction.views import Photograph, ReferenceView, crop_view

BOX_M = (0.06, 0.05, 0.08)


def as_views(photos: list[Photo]) -> list[ReferenceView]:
    return [
        crop_view(Photograph(f"photo {i}", one.rgb, one.mask, one.mask, Pinhole(one.K), one.T, one.depth_m))
        for i, one in enumerate(photos)
    ]


def run(views: list[ReferenceView], cells: int = 24):
    return reconstruct(views, cells, "the folder", {}, lambda _: None)


@pytest.fixture(scope="module")
def box_views() -> list[ReferenceView]:
    return as_views(take_photos(make_box(BOX_M), sphere_directions(14)))


@pytest.fixture(scope="module")
def ball_views() -> list[ReferenceView]:
    return as_views(take_photos(make_ball((0.03, 0.03, 0.03)), sphere_directions(14)))


@pytest.fixture(scope="module")
def box(box_views):
    return run(box_views)


def open_edges(surface: Surface) -> int:
    edges = np.sort(surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    return int((np.unique(edges, axis=0, return_counts=True)[1] % 2).sum())


def test_silhouettes_of_a_ball_give_a_ball(ball_views):
    """Its radius is right to a quarter of a cell although 14 views' hull is a polyhedron around it."""
    hull = coarse_hull(ball_views)
    assert hull.share == 0
    grid, values = fine_hull(ball_views, hull, 32)
    surface = hull_surface(grid, values)
    radii = np.linalg.norm(surface.vertices, axis=1)
    assert abs(np.median(radii) - 0.03) < 0.25 * grid.step_m
    assert radii.min() > 0.03 - grid.step_m
    assert radii.max() < 0.03 * 1.25  # the corners of the polyhedron
    assert open_edges(surface) == 0
    assert volume_m3(surface) == pytest.approx(4 / 3 * np.pi * 0.03**3, rel=0.1)


def test_a_box_has_its_size_and_the_colours_of_its_sides(box):
    low, high = box.surface.vertices.min(axis=0), box.surface.vertices.max(axis=0)
    np.testing.assert_allclose(high - low, BOX_M, atol=0.009)  # 14 views' hull bulges
    np.testing.assert_allclose(high + low, 0, atol=0.004)
    assert open_edges(box.surface) == 0
    assert volume_m3(box.surface) == pytest.approx(np.prod(BOX_M), rel=0.15)
    for side, rgb in enumerate(SIDE_RGB):
        towards = (box.surface.normals[:, side // 2] * (1 if side % 2 else -1)) > 0.98
        middle = np.abs(np.delete(box.surface.vertices[towards], side // 2, axis=1)).max(axis=1) < 0.015
        assert middle.sum() > 5
        assert np.abs(box.texture.vertex_rgb[towards][middle].astype(int) - rgb).max() < 30
        texels = box.texture.rgb.reshape(-1, 3)
        assert (np.abs(texels.astype(int) - rgb).max(axis=1) < 20).sum() > 0.04 * len(texels)


def test_renders_agree_with_the_photographs(box):
    for one in measure_views(box, render_views(box)):
        assert one.iou > 0.93
        assert one.colour_error < 12


def test_a_wrong_mask_and_a_wrong_pose_are_left_out(box_views):
    views = list(box_views)
    wrong = np.zeros_like(views[3].silhouette)
    wrong[: len(wrong) // 2] = True
    views[3] = replace(views[3], silhouette=wrong, visible=wrong)
    beside = views[5].T_cam_from_obj.copy()
    beside[0, 3] += 0.2
    views[5] = views[5].at(beside)
    made = run(views)
    assert set(made.left_out) == {"photo 3", "photo 5"}
    assert "mask does not agree" in made.left_out["photo 3"]
    assert "looks past the object" in made.left_out["photo 5"]
    assert volume_m3(made.surface) == pytest.approx(np.prod(BOX_M), rel=0.15)


def test_what_another_object_hides_does_not_count(box_views, box):
    """A red bar in front of the box in some views leaves no colour where masks say that it hides the object."""
    views = list(box_views)
    for i in range(4):
        rgb, visible = views[i].rgb.copy(), views[i].visible.copy()
        rgb[20:45], visible[20:45] = (255, 0, 0), False
        views[i] = replace(views[i], rgb=rgb, visible=visible)
    made = run(views)
    pure_red = (np.abs(made.texture.vertex_rgb.astype(int) - (255, 0, 0)).max(axis=1) < 25).sum()
    assert pure_red == 0
    assert volume_m3(made.surface) == pytest.approx(volume_m3(box.surface), rel=0.03)


def test_refined_poses_come_nearer_to_the_true_ones():
    ball = make_ball((0.035, 0.03, 0.028), rings=48, segments=96)
    waves = np.sin(np.array([260, 300, 340]) * ball.vertices_m) + np.sin(280 * ball.vertices_m[:, [1, 2, 0]])
    ball = replace(ball, vertex_rgb=(128 + 60 * waves).astype(np.uint8))
    views = as_views(take_photos(ball, sphere_directions(40)))
    rng = np.random.default_rng(4)
    moved = []
    for view in views:
        turn = rng.normal(0, 0.004, 3)
        skew = np.array([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
        left, _, right = np.linalg.svd(np.eye(3) + skew)
        T = view.T_cam_from_obj
        shift = np.append(rng.normal(0, 1, 2), 0) * T[2, 3] / view.focal_px
        moved.append(view.at(make_T(left @ right @ T[:3, :3], T[:3, 3] + shift)))
    surface = Surface(ball.vertices_m, ball.faces)
    refined = refine_poses(surface, moved, 3)

    def errors(given: list[ReferenceView]) -> tuple[float, float]:
        pairs = list(zip(given, views, strict=True))
        px = [
            project_points(a.K, a.T_cam_from_obj[:3, 3]) - project_points(b.K, b.T_cam_from_obj[:3, 3])
            for a, b in pairs
        ]
        angle = [float(rotation_angle_rad(a.T_cam_from_obj[:3, :3], b.T_cam_from_obj[:3, :3])) for a, b in pairs]
        return float(np.median(np.linalg.norm(px, axis=1))), float(np.median(angle))

    def distance(given: list[ReferenceView]) -> float:
        return float(np.mean(np.log([view.T_cam_from_obj[2, 3] for view in given])))

    assert distance(refined) == pytest.approx(distance(moved), abs=1e-4)  # colours do not tell the scale
    before, after = errors(moved), errors(refined)
    assert after[0] < 0.7 * before[0]
    assert after[1] < 1.1 * before[1]


def test_a_fisheye_crop_shows_points_where_its_own_camera_says():
    camera = Fisheye624((300.0, 300.0, 200.0, 200.0, 0.1, -0.02, *(0.0,) * 10))
    T = make_T(np.eye(3), np.array([0.25, -0.1, 0.5]))
    points = np.array([[0, 0, 0], [0.02, 0.01, 0.01], [-0.02, 0.02, -0.01]], np.float64)
    mask, image = np.zeros((400, 400), bool), np.zeros((400, 400, 3), np.uint8)
    at = camera.project(points + T[:3, 3])
    for i, (x, y) in enumerate(np.rint(at).astype(int)):
        mask[y - 3 : y + 4, x - 3 : x + 4] = True
        image[y - 2 : y + 3, x - 2 : x + 3, i] = 255
    view = crop_view(Photograph("fisheye", image, mask, mask, camera, T))
    x, y, _ = view.project(points.astype(np.float32))
    for i in range(3):
        rows, cols = np.nonzero(view.rgb[..., i] > 127)
        assert np.hypot(cols.mean() - x[i], rows.mean() - y[i]) < 1.0


def test_a_large_photograph_is_reduced_and_stays_registered():
    photo = take_photos(make_box(BOX_M), sphere_directions(14))[2]
    large: list[Array] = [np.repeat(np.repeat(image, 10, axis=0), 10, axis=1) for image in (photo.rgb, photo.mask)]
    K = np.diag([10.0, 10.0, 1.0]) @ photo.K
    view = crop_view(Photograph("large", large[0], large[1], large[1], Pinhole(K), photo.T))
    assert max(view.size_hw) == 480
    x, y, _ = view.project(np.zeros((1, 3), np.float32))
    full = project_points(K, photo.T[:3, 3])
    scale = view.K[0, 0] / K[0, 0]
    rows, cols = np.nonzero(view.silhouette)
    rows_full, cols_full = np.nonzero(large[1])
    assert x[0] + 0.5 - (cols.mean() + 0.5) == pytest.approx(scale * (full[0] - cols_full.mean() - 0.5), abs=0.5)
    assert y[0] + 0.5 - (rows.mean() + 0.5) == pytest.approx(scale * (full[1] - rows_full.mean() - 0.5), abs=0.5)


def test_values_spread_from_where_they_are_sure():
    ball = make_ball((1.0, 1.0, 1.0), rings=8, segments=12)
    surface = Surface(ball.vertices_m, ball.faces)
    weights = np.zeros(len(ball.vertices_m))
    weights[: len(weights) // 2] = 5.0
    field = spread(surface, np.where(weights > 0, 0.3, -9.0), weights, 0.5)
    np.testing.assert_allclose(field[: len(field) // 2], 0.3, atol=0.05)
    assert field.min() >= 0


def test_too_few_views(box_views):
    with pytest.raises(PicoPoseError, match="7 usable photographs, at least 8 are needed"):
        run(box_views[:7])


def test_views_from_one_side():
    directions = np.array([0.0, 0.0, 1.0]) + np.random.default_rng(0).normal(0, 0.2, (12, 3))
    with pytest.raises(PicoPoseError, match=r"all photographs are from one side, within .* degrees"):
        run(as_views(take_photos(make_box(BOX_M), directions)))


def test_poses_that_contradict_the_masks(box_views):
    """Poses of the object in another order of the images, which all look at it."""
    order = np.roll(np.arange(len(box_views)), 5)
    shuffled = [view.at(box_views[i].T_cam_from_obj) for view, i in zip(box_views, order, strict=True)]
    flat = [replace(view, name=f"shuffled {i}") for i, view in enumerate(shuffled)]
    stick = as_views(take_photos(make_box((0.012, 0.012, 0.15)), sphere_directions(14)))
    mixed = [view.at(stick[i].T_cam_from_obj) for view, i in zip(stick, order, strict=True)]
    with pytest.raises(PicoPoseError, match=r"the poses do not agree with the masks in .* \(photo \d+"):
        run(mixed)
    inverted = [view.at(np.linalg.inv(view.T_cam_from_obj)) for view in flat]
    with pytest.raises(PicoPoseError, match=r"the poses do not agree with the masks in .* \(shuffled \d+"):
        run(inverted)


def test_poses_in_metres_taken_as_millimetres(box_views):
    def shrunk(view: ReferenceView) -> ReferenceView:
        T = view.T_cam_from_obj.copy()
        T[:3, 3] /= 1000
        return view.at(T)

    with pytest.raises(PicoPoseError, match=r"about 0\.\d+ mm large.*translations in millimetres"):
        run([shrunk(view) for view in box_views])


def test_a_mask_of_a_few_pixels():
    photo = take_photos(make_box(BOX_M), sphere_directions(14))[0]
    mask = np.zeros_like(photo.mask)
    mask[4:8, 4:8] = True
    with pytest.raises(PicoPoseError, match="the mask is empty or a few pixels"):
        crop_view(Photograph("one", photo.rgb, mask, mask, Pinhole(photo.K), photo.T))
