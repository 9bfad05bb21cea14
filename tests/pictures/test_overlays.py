"""Poses drawn on an image: outline, axes and label."""

from __future__ import annotations

import cv2
import numpy as np
from helpers.meshes import make_box

from picopose_cli.base.cameras import Fisheye624, Pinhole
from picopose_cli.base.geometry import make_T
from picopose_cli.pictures.outlines import object_outlines, object_window
from picopose_cli.pictures.overlays import CORRECT_RGB, DrawnPose, add_legend, draw_poses, outline

K = np.array([[100.0, 0, 40], [0, 100, 30], [0, 0, 1]])
CAMERA = Pinhole(K)
SCALE = 4


def at(x_m: float, y_m: float = 0.0, z_m: float = 1.0) -> np.ndarray:
    return make_T(np.eye(3), np.array([x_m, y_m, z_m]))


def test_an_outline_follows_the_edge_of_its_silhouette():
    silhouette = np.zeros((60 * SCALE, 80 * SCALE), bool)
    silhouette[: 40 * SCALE, 20 * SCALE : 50 * SCALE] = True
    cover = outline(silhouette, SCALE)
    expected = np.zeros((60, 80), bool)
    expected[:41, 19:51] = True
    expected[:39, 21:49] = False  # and no line where the silhouette leaves the image
    assert np.array_equal(cover > 0, expected)
    assert (cover[39:41, 25:45] == 1).all()
    assert not outline(silhouette & False, SCALE).any()


def test_a_smooth_edge_has_a_smooth_line():
    circle = np.zeros((60 * SCALE, 60 * SCALE), np.uint8)
    cv2.circle(circle, (120, 120), 80, 1, -1)
    assert len(np.unique(outline(circle > 0, SCALE))) > 8  # pixels that the line covers in part


def test_a_box_is_drawn_where_it_is_projected_to():
    image = np.full((60, 80, 3), 90, np.uint8)
    box = DrawnPose(make_box((0.2, 0.1, 0.02)), at(0.1), CORRECT_RGB)
    picture = draw_poses(image, CAMERA, [box], axes=False)
    drawn = np.argwhere((picture != 90).any(axis=2))
    # its near side, 0.99 m away, spans x 40..60.2 and y 25..35
    np.testing.assert_allclose(drawn.min(axis=0), [24, 39], atol=1)
    np.testing.assert_allclose(drawn.max(axis=0), [35, 61], atol=1)
    assert (image == 90).all()
    with_axes = draw_poses(image, CAMERA, [box])
    red, green = with_axes[30, 54].astype(int), with_axes[34, 50].astype(int)  # from the origin, at (50, 30)
    assert red[0] > 180 > 100 > red[1]  # x to the right
    assert green[1] > 150 > 100 > green[0]  # y down


def test_what_is_not_in_view_is_not_drawn_and_a_label_stays_inside():
    image, mesh = np.full((60, 80, 3), 90, np.uint8), make_box((0.2, 0.1, 0.02))
    for T in (at(3.0), at(0, 0, -1), at(0, -5)):
        assert (draw_poses(image, CAMERA, [DrawnPose(mesh, T, CORRECT_RGB, "1: 0.5")]) == 90).all()
    assert object_window(mesh, K, at(0, 0, 0.005), (60, 80)) == (0, 0, 80, 60)  # around the camera
    plain = draw_poses(image, CAMERA, [DrawnPose(mesh, at(-0.4), CORRECT_RGB)], axes=False)
    labelled = draw_poses(image, CAMERA, [DrawnPose(mesh, at(-0.4), CORRECT_RGB, "1: 0.5")], axes=False)
    assert (plain != labelled).any()


def test_before_a_fisheye_camera_the_outline_is_that_of_the_projected_corners():
    fisheye = Fisheye624((200.0, 200.0, 300.0, 300.0, 0.1, -0.05, *[0.0] * 10))
    size_m = np.array([0.3, 0.2, 0.1])
    mesh, T = make_box(tuple(size_m)), at(1.5, -0.4, 0.8)  # 63 degrees from the axis
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * size_m / 2
    expected = fisheye.project(corners + T[:3, 3]) + 0.5  # of our pixels' corners
    (line,) = object_outlines(mesh, fisheye, T, (600, 600), 2.0)
    np.testing.assert_allclose(line.min(axis=0) / 2, expected.min(axis=0), atol=1.5)
    np.testing.assert_allclose(line.max(axis=0) / 2, expected.max(axis=0), atol=1.5)
    image = np.full((600, 600, 3), 90, np.uint8)
    drawn = np.argwhere((draw_poses(image, fisheye, [DrawnPose(mesh, T, CORRECT_RGB)], axes=False) != 90).any(axis=2))
    np.testing.assert_allclose(drawn.min(axis=0)[::-1], expected.min(axis=0), atol=3)
    np.testing.assert_allclose(drawn.max(axis=0)[::-1], expected.max(axis=0), atol=3)


def test_the_legend_explains_the_colours():
    image = np.full((60, 320, 3), 90, np.uint8)
    strip = add_legend(image, [("right", CORRECT_RGB)])[60:]
    assert strip.shape == (24, 320, 3)
    assert (strip == CORRECT_RGB).all(axis=2).any()
