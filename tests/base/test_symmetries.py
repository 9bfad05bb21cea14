"""Which views of an object look alike, on the symmetries of the viewpoints themselves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from picopose_cli.base.geometry import make_T
from picopose_cli.base.symmetries import first_of_alike, symmetry_transforms, views_alike
from picopose_cli.base.types import ObjectInfo
from picopose_cli.templates.views import place_views

VIEWS = place_views(0.2)


def directions() -> np.ndarray:
    """From the object onto the cameras, in its frame."""
    R, t = VIEWS[:, :3, :3], VIEWS[:, :3, 3]
    return -np.einsum("vji,vj->vi", R, t) / np.linalg.norm(t, axis=1, keepdims=True)


def turns(*angles_deg: float) -> np.ndarray:
    R = Rotation.from_rotvec(np.outer(np.deg2rad(angles_deg), [0, 0, 1])).as_matrix()
    return make_T(R, np.zeros((len(R), 3)))


def test_without_a_symmetry_each_view_looks_like_itself_alone():
    np.testing.assert_array_equal(views_alike(VIEWS, np.eye(4)[None]), np.eye(162, dtype=bool))


def test_five_fifths_of_a_turn_take_the_viewpoints_onto_each_other():
    """An icosahedron that stands on a corner: each view has four others that look like it, but for the poles."""
    alike = views_alike(VIEWS, symmetry_transforms(ObjectInfo(1, 0.2, turns(72, 144, 216, 288), ())))
    pole = np.abs(directions()[:, 2]) > 0.999
    assert pole.sum() == 2
    np.testing.assert_array_equal(alike.sum(axis=1), np.where(pole, 1, 5))
    for view, (x, y, z) in enumerate(directions()):
        for other in np.flatnonzero(alike[view]):
            turned = (directions()[other, 0] + 1j * directions()[other, 1]) / (x + 1j * y) if not pole[view] else 1.0
            assert np.angle(turned**5) == pytest.approx(0, abs=1e-2)
            assert directions()[other, 2] == pytest.approx(z, abs=1e-3)


def test_on_a_turned_body_the_height_of_the_camera_is_what_counts():
    info = ObjectInfo(1, 0.2, np.empty((0, 4, 4)), ((np.array([0, 0, 1.0]), np.zeros(3)),))
    alike = views_alike(VIEWS, symmetry_transforms(info))
    latitude = np.arcsin(directions()[:, 2].clip(-1, 1))
    between = np.arccos((directions() @ directions().T - 2 * np.eye(162)).clip(-1, 1)).min()
    difference = np.abs(latitude[:, None] - latitude)
    np.testing.assert_array_equal(alike[difference < 0.45 * between], True)
    np.testing.assert_array_equal(alike[difference > 0.51 * between], False)
    kept = first_of_alike(list(range(162)), alike)
    assert 8 < len(kept) < 25
    assert not (alike[np.ix_(kept, kept)] ^ np.eye(len(kept), dtype=bool)).any()


def test_of_alike_the_first_stays():
    alike = np.eye(5, dtype=bool)
    alike[0, 3] = alike[3, 0] = True
    assert first_of_alike([2, 3, 1, 0, 4], alike) == [0, 1, 2, 4]
    assert first_of_alike([0, 3], alike) == [0]
