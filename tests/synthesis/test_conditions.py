"""Conditions that spoil photographs: they change the picture alone."""

from __future__ import annotations

import numpy as np

from picopose_cli.synthesis.conditions import Conditions, blur, dim, take_photo
from picopose_cli.synthesis.textures import paint_background

IMAGE = paint_background(np.random.default_rng(3), 200)
SQUARE = np.zeros((101, 101, 3), np.uint8)
SQUARE[30:71, 30:71] = 200


def test_blur_smears_edges_and_keeps_the_light_and_its_place():
    for seed in range(6):
        seen = blur(np.random.default_rng(seed), SQUARE).astype(float)[..., 0]
        y, x = np.mgrid[0:101, 0:101]
        assert abs(seen.mean() - SQUARE.mean()) < 1
        assert np.hypot((seen * x).sum() / seen.sum() - 50, (seen * y).sum() / seen.sum() - 50) < 1.2
        assert 2 * ((seen > 20) & (seen < 180)).sum() > 41 * 5


def test_the_dark_is_dark_and_noisy():
    flat = np.full((80, 80, 3), 180, np.uint8)
    for seed in range(6):
        seen = dim(np.random.default_rng(seed), flat).astype(float)
        assert seen.mean() < 140
        assert seen[..., 1].std() > 0.03 * seen.mean()


def test_damage_changes_nothing_that_follows_from_the_other_generator():
    usual, spoiled = np.random.default_rng(1), np.random.default_rng(1)
    one = take_photo(usual, np.random.default_rng(2), IMAGE, Conditions())
    two = take_photo(spoiled, np.random.default_rng(2), IMAGE, Conditions(blurred_share=1, dark_share=1))
    assert usual.random() == spoiled.random()
    assert two.mean() < one.mean()
