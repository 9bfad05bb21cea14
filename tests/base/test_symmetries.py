"""Equivalent views of an object, on the symmetries of the viewpoints themselves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from picopose_cli.base.geometry import make_T
from picopose_cli.base.symmetries import (
    drop_equivalent_views,
    equivalent_views,
    symmetry_count,
    symmetry_transforms,
)
from picopose_cli.base.types import ObjectInfo
from picopose_cli.templates.views import place_views

VIEWS = place_views(0.2)


def directions() -> np.ndarray:
    """Directions from the object to the cameras, in its frame."""
    R, t = VIEWS[:, :3, :3], VIEWS[:, :3, 3]
    return -np.einsum("vji,vj->vi", R, t) / np.linalg.norm(t, axis=1, keepdims=True)


def z_rotations(*angles_deg: float) -> np.ndarray:
    R = Rotation.from_rotvec(np.outer(np.deg2rad(angles_deg), [0, 0, 1])).as_matrix()
    return make_T(R, np.zeros((len(R), 3)))


def test_without_a_symmetry_each_view_is_equivalent_to_itself_only():
    np.testing.assert_array_equal(equivalent_views(VIEWS, np.eye(4)[None]), np.eye(162, dtype=bool))


def test_fivefold_symmetry_maps_the_viewpoints_onto_each_other():
    """Viewpoints of an icosahedron with its axis through a corner: four equivalent views each, except at the poles."""
    equivalent = equivalent_views(VIEWS, symmetry_transforms(ObjectInfo(1, 0.2, z_rotations(72, 144, 216, 288), ())))
    pole = np.abs(directions()[:, 2]) > 0.999
    assert pole.sum() == 2
    np.testing.assert_array_equal(equivalent.sum(axis=1), np.where(pole, 1, 5))
    for view, (x, y, z) in enumerate(directions()):
        for other in np.flatnonzero(equivalent[view]):
            rotated = (directions()[other, 0] + 1j * directions()[other, 1]) / (x + 1j * y) if not pole[view] else 1.0
            assert np.angle(rotated**5) == pytest.approx(0, abs=1e-2)
            assert directions()[other, 2] == pytest.approx(z, abs=1e-3)


def test_views_of_a_solid_of_revolution_are_equivalent_at_equal_latitude():
    info = ObjectInfo(1, 0.2, np.empty((0, 4, 4)), ((np.array([0, 0, 1.0]), np.zeros(3)),))
    equivalent = equivalent_views(VIEWS, symmetry_transforms(info))
    latitude = np.arcsin(directions()[:, 2].clip(-1, 1))
    between = np.arccos((directions() @ directions().T - 2 * np.eye(162)).clip(-1, 1)).min()
    difference = np.abs(latitude[:, None] - latitude)
    np.testing.assert_array_equal(equivalent[difference < 0.45 * between], True)
    np.testing.assert_array_equal(equivalent[difference > 0.51 * between], False)
    kept = drop_equivalent_views(list(range(162)), equivalent)
    assert 8 < len(kept) < 25
    assert not (equivalent[np.ix_(kept, kept)] ^ np.eye(len(kept), dtype=bool)).any()


def test_the_first_of_equivalent_views_stays():
    equivalent = np.eye(5, dtype=bool)
    equivalent[0, 3] = equivalent[3, 0] = True
    assert drop_equivalent_views([2, 3, 1, 0, 4], equivalent) == [0, 1, 2, 4]
    assert drop_equivalent_views([0, 3], equivalent) == [0]


def test_many_symmetries_are_as_few_at_a_time():
    turns = z_rotations(*np.linspace(0, 359, 700))
    transforms = symmetry_transforms(ObjectInfo(1, 0.2, turns, ()))
    assert len(transforms) == symmetry_count(700, 0) == 701
    one_by_one = np.any([equivalent_views(VIEWS, T[None]) for T in transforms], axis=0)
    np.testing.assert_array_equal(equivalent_views(VIEWS, transforms), one_by_one)
    axes = ((np.array([0, 0, 1.0]), np.zeros(3)),) * 2
    assert len(symmetry_transforms(ObjectInfo(1, 0.2, turns[:3], axes))) == symmetry_count(3, 2)


def test_an_image_given_twice_does_not_switch_equivalent_views_off():
    fourfold = symmetry_transforms(ObjectInfo(1, 0.2, z_rotations(90, 180, 270), ()))
    twice = np.concatenate([VIEWS, VIEWS[:1]])
    equivalent = equivalent_views(twice, fourfold)
    np.testing.assert_array_equal(equivalent[:162, :162], equivalent_views(VIEWS, fourfold))
    assert equivalent[0, 162]
