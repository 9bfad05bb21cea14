"""Which other detections may hide a part of an object."""

from __future__ import annotations

import numpy as np
import pytest

from picopose_cli.pose.occluders import OtherMasks


def box(rows: tuple[int, int], cols: tuple[int, int]) -> np.ndarray:
    """A mask (100,160) of a rectangle."""
    mask = np.zeros((100, 160), bool)
    mask[slice(*rows), slice(*cols)] = True
    return mask


OWN = box((40, 60), (50, 80))
BESIDE = box((30, 70), (80, 110))


def hidden(*others: np.ndarray | None) -> np.ndarray | None:
    return OtherMasks([OWN, *others]).hidden_from(0, OWN)


def test_an_object_beside_hides_what_it_covers():
    np.testing.assert_array_equal(hidden(BESIDE), BESIDE)
    overlapping = box((30, 70), (75, 110))  # masks are rough
    np.testing.assert_array_equal(hidden(overlapping, None), overlapping & ~OWN)
    np.testing.assert_array_equal(OtherMasks([OWN, BESIDE]).hidden_from(1, BESIDE), OWN)


@pytest.mark.parametrize(
    "other",
    [
        OWN,  # with another label
        box((42, 62), (53, 82)),  # a second hypothesis
        box((40, 60), (50, 62)),  # a part
        box((30, 70), (45, 120)),  # a group
        box((20, 80), (20, 120)) & ~box((38, 62), (48, 82)),  # what it lies on, with a gap
        box((0, 5), (150, 160)),  # far away
        np.zeros_like(OWN),
    ],
)
def test_what_is_not_another_object_beside_hides_nothing(other):
    assert hidden(other) is None
    np.testing.assert_array_equal(hidden(other, BESIDE), BESIDE)


def test_large_masks_are_compared_at_a_lower_resolution():
    around = box((20, 80), (20, 120)) & ~box((39, 61), (49, 81))
    own, beside, around = (np.kron(mask, np.ones((7, 7), bool)) for mask in (OWN, BESIDE, around))
    np.testing.assert_array_equal(OtherMasks([own, around, beside, own]).hidden_from(0, own), beside)


def test_nothing_is_hidden_from_a_single_or_empty_mask():
    assert hidden() is None
    empty = np.zeros_like(OWN)
    assert OtherMasks([empty, OWN]).hidden_from(0, empty) is None
