"""The camera's effects and the roughened masks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from picopose_cli.synthesis.roughen import roughen_mask, signed_distance
from picopose_cli.synthesis.sensor import photograph


def picture(size_hw: tuple[int, int] = (80, 100)) -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(40, 210, (10, 12, 3), np.uint8), size_hw[::-1], interpolation=cv2.INTER_CUBIC)


def test_photograph_keeps_shape_and_place():
    image = picture()
    for seed in range(30):
        photo = photograph(np.random.default_rng(seed), image, 1.0)
        assert photo.shape == image.shape
        assert photo.dtype == np.uint8
    # The mean over many cameras shows the same picture at the same place.
    mean = np.mean([photograph(np.random.default_rng(seed), image, 1.0) for seed in range(60)], axis=0)
    assert np.corrcoef(mean.ravel(), image.ravel())[0, 1] > 0.97


def test_strength_is_how_much_changes():
    image = picture()

    def change(strength: float) -> float:
        photos = [photograph(np.random.default_rng(seed), image, strength) for seed in range(20)]
        return float(np.mean([np.abs(photo.astype(int) - image).mean() for photo in photos]))

    assert change(0.0) < 3
    assert change(0.3) < change(1.0)
    assert 10 < change(1.0) < 60


def test_photograph_repeats_and_takes_any_size():
    image = picture((1100, 1300))
    one, two = (photograph(np.random.default_rng(4), image, 1.0) for _ in range(2))
    assert np.array_equal(one, two)
    assert photograph(np.random.default_rng(4), picture((3, 2)), 1.0).shape == (3, 2, 3)


def ellipse() -> np.ndarray:
    mask = np.zeros((120, 160), np.uint8)
    cv2.ellipse(mask, (80, 60), (45, 25), 20, 0, 360, 1, -1)
    return mask > 0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_rough_masks_overlap_as_a_detectors():
    mask = ellipse()
    overlaps = np.array([overlap(mask, roughen_mask(np.random.default_rng(seed), mask)) for seed in range(200)])
    assert 0.8 < overlaps.mean() < 0.95
    assert overlaps.min() > 0.35
    assert (overlaps < 0.8).mean() > 0.03
    assert (overlaps == 1).mean() < 0.02


def test_rough_masks_grow_as_well_as_shrink():
    mask = ellipse()
    sizes = np.array([roughen_mask(np.random.default_rng(seed), mask).sum() for seed in range(100)]) / mask.sum()
    assert (sizes > 1.02).mean() > 0.2
    assert (sizes < 0.98).mean() > 0.2


@pytest.mark.parametrize("pixels", [0, 1, 9])
def test_tiny_masks_survive(pixels):
    mask = np.zeros((20, 20), bool)
    mask.ravel()[:pixels] = True
    for seed in range(20):
        rough = roughen_mask(np.random.default_rng(seed), mask)
        assert rough.shape == mask.shape
        assert rough.any() == mask.any()


def test_mask_that_fills_its_image():
    rough = roughen_mask(np.random.default_rng(0), np.ones((40, 50), bool))
    assert rough.mean() > 0.5


def test_signed_distance():
    mask = np.zeros((9, 9), bool)
    mask[3:6, 3:6] = True
    distance = signed_distance(mask)
    assert distance[4, 4] == pytest.approx(2, abs=0.1)
    assert distance[4, 8] == pytest.approx(-3, abs=0.2)
    assert ((distance > 0) == mask).all()
