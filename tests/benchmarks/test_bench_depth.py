"""The changes that `bench_depth.py` makes to depth."""

from __future__ import annotations

import numpy as np
from bench_depth import CHANGES, LINES, OFFSET_M, too_far, without_half


def test_depth_that_is_too_far_keeps_its_holes():
    depth_m = np.array([[0.0, 0.5], [0.7, 0.0]], np.float32)
    np.testing.assert_allclose(too_far(depth_m, ()), depth_m + OFFSET_M * (depth_m > 0))


def test_half_of_each_mask_loses_its_depth_in_patches():
    depth_m, masks = np.full((80, 120), 0.6, np.float32), [np.zeros((80, 120), bool) for _ in range(2)]
    masks[0][10:60, 10:50] = True
    masks[1][20:70, 70:110] = True
    left = without_half(depth_m, masks)
    for mask in masks:
        assert abs((left[mask] > 0).mean() - 0.5) < 0.01
        kept = left > 0
        assert (kept[:, 1:] == kept[:, :-1])[mask[:, 1:]].mean() > 0.9
    assert (left[~masks[0] & ~masks[1]] > 0).all()
    assert (depth_m > 0).all()


def test_each_line_has_its_depth():
    assert {line.slug for lines in LINES.values() for line in lines} == set(CHANGES)
