from __future__ import annotations

import numpy as np

from picopose_cli.base.geometry import grown_slices, mask_slices, rotation_deviation


def test_slices_of_a_mask_enclose_it_with_a_margin():
    mask = np.zeros((9, 12), np.uint8)
    assert mask_slices(mask) is None
    mask[3, 4] = mask[6, 10] = 7
    assert mask_slices(mask) == (slice(3, 7), slice(4, 11))
    assert mask_slices(mask, 2) == (slice(1, 9), slice(2, 12))
    assert grown_slices((slice(0, 1), slice(5, 6)), 3, np.zeros((9, 12, 3))) == (slice(0, 4), slice(2, 9))


def test_what_is_no_rotation_deviates():
    about_z = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    mirrored = np.diag([1.0, 1, -1])
    found = rotation_deviation(np.stack([about_z, mirrored, 2 * about_z, np.zeros((3, 3))]))
    np.testing.assert_allclose(found, [0, 0, 3, 1], atol=1e-15)
    assert rotation_deviation(about_z).shape == ()
    assert np.isnan(rotation_deviation(np.full((3, 3), np.nan)))
