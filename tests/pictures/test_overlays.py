"""Outlines of silhouettes drawn on an image."""

from __future__ import annotations

import cv2
import numpy as np

from picopose_cli.pictures.overlays import CORRECT_RGB, OUTLINE_SCALE, WRONG_RGB, pose_overlay

LEGEND = ("correct", "wrong")


def test_an_outline_follows_the_edge_of_its_silhouette():
    image = np.full((60, 80, 3), 90, np.uint8)
    silhouette = np.zeros((60 * OUTLINE_SCALE, 80 * OUTLINE_SCALE), bool)
    silhouette[: 40 * OUTLINE_SCALE, 20 * OUTLINE_SCALE : 50 * OUTLINE_SCALE] = True
    picture = pose_overlay(image, [silhouette, silhouette & False], [True, False], LEGEND)
    assert picture.shape == (84, 80, 3)
    drawn = (picture[:60] != 90).any(axis=2)
    expected = np.zeros((60, 80), bool)
    expected[:41, 19:51] = True
    expected[:39, 21:49] = False  # and no line where the silhouette leaves the image
    assert np.array_equal(drawn, expected)
    assert (picture[39:41, 25:45] == CORRECT_RGB).all()
    assert not pose_overlay(image, [], [], LEGEND)[:60].max(initial=0) > 90
    assert (pose_overlay(image, [silhouette], [False], LEGEND)[20, 19] == WRONG_RGB).all()


def test_a_smooth_edge_has_a_smooth_line():
    circle = np.zeros((60 * OUTLINE_SCALE, 60 * OUTLINE_SCALE), np.uint8)
    cv2.circle(circle, (120, 120), 80, 1, -1)
    picture = pose_overlay(np.zeros((60, 60, 3), np.uint8), [circle > 0], [True], LEGEND)[:60]
    assert len(np.unique(picture[..., 1])) > 8  # pixels that the line covers in part
