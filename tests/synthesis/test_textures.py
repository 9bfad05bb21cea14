"""Textures, backgrounds and position colours: shape, variety, repeatability."""

from __future__ import annotations

import numpy as np
import pytest

from picopose_cli.synthesis import textures

PAINTERS = sorted(
    {painter for painter, _ in (*textures._OBJECT_PAINTERS, *textures._BACKGROUND_PAINTERS)}, key=lambda p: p.__name__
)
SIX = tuple((a / 3, b / 2, (a + 1) / 3, (b + 1) / 2) for b in range(2) for a in range(3))


@pytest.mark.parametrize("painter", PAINTERS, ids=lambda painter: painter.__name__)
@pytest.mark.parametrize("size", [(64, 96), (9, 40), (128, 8)])
def test_painter_fills_any_size(painter, size):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        picture = painter(rng, *size, textures.random_palette(rng))
        assert picture.shape == (*size, 3)
        assert picture.dtype == np.uint8


def test_objects_look_different_and_repeat():
    pictures = [textures.paint_object(np.random.default_rng(seed), SIX, 96) for seed in range(8)]
    again = textures.paint_object(np.random.default_rng(3), SIX, 96)
    assert np.array_equal(pictures[3], again)
    for i, picture in enumerate(pictures):
        assert picture.shape == (96, 96, 3)
        for other in pictures[:i]:
            assert np.abs(picture.astype(int) - other).mean() > 8


def test_tiles_are_painted_from_the_bottom_up():
    """v = 0 is the bottom row: a tile at the bottom changes only the lower half of the picture."""
    bottom = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5))
    for seed in range(30):
        rng, same = np.random.default_rng(seed), np.random.default_rng(seed)
        painted = textures.paint_object(rng, bottom, 64)
        palette = textures.random_palette(same)
        whole = textures._choose_painter(same, textures._OBJECT_PAINTERS)(same, 64, 64, palette)
        assert np.array_equal(painted[:30], whole[:30])


def test_bands_change_from_row_to_row_only():
    for seed in range(6):
        picture = textures.paint_bands(np.random.default_rng(seed), SIX[:3], 90)
        for tile in SIX[:3]:
            painted = picture[textures.pixels_of_tile(tile, 90)][:, 2:-2]  # neighbours lie over the outer columns
            assert (painted == painted[:, :1]).all()
            assert len(np.unique(painted[:, 0], axis=0)) > 1
        assert not picture[:40].any()  # v = 0 is the bottom row


def test_palette_always_has_contrast():
    for seed in range(50):
        palette = textures.random_palette(np.random.default_rng(seed))
        assert palette.shape == (5, 3)
        assert np.ptp(palette.max(axis=1)) >= 29


def test_smooth_noise_fills_its_range_and_is_smooth():
    noise = textures.smooth_noise(np.random.default_rng(0), 100, 100, 4, octaves=1)
    assert (noise.min(), noise.max()) == (0, 1)
    assert np.abs(np.diff(noise, axis=0)).max() < 0.15


def test_solid_colours_depend_on_place_alone():
    points = np.random.default_rng(1).normal(size=(50, 3))
    colours = textures.solid_colours(np.random.default_rng(0), np.concatenate([points, points]))
    assert colours.dtype == np.uint8
    assert np.array_equal(colours[:50], colours[50:])
    assert len(np.unique(colours, axis=0)) > 2


@pytest.mark.parametrize("calm", [False, True])
def test_background(calm):
    picture = textures.paint_background(np.random.default_rng(2), 64, calm=calm)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
