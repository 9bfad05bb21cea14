from __future__ import annotations

import cv2
import numpy as np

from picopose_cli.pose.flow_matching import flow_pairs


def picture(seed: int, side_px: int = 224) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (side_px, side_px, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


def test_a_shift_is_found_to_a_fraction_of_a_pixel():
    render, inside = picture(0), np.zeros((224, 224), bool)
    inside[60:160, 50:170] = True
    shift = np.array([3.3, -2.1])
    moved = cv2.warpAffine(
        render, np.array([[1, 0, shift[0]], [0, 1, shift[1]]]), (224, 224), borderMode=cv2.BORDER_REFLECT
    )
    photo = (moved * 0.7 + 20).astype(np.uint8)  # another exposure
    start, target, certainty = flow_pairs(render, inside, photo)
    assert len(start) > 200
    at = np.floor(start).astype(int)
    assert inside[at[:, 1], at[:, 0]].all()
    assert ((certainty > 0) & (certainty <= 1)).all()
    np.testing.assert_allclose(np.median(target - start, axis=0), shift, atol=0.1)


def test_a_surface_without_texture_gives_no_pairs():
    grey, inside = np.full((224, 224, 3), 120, np.uint8), np.ones((224, 224), bool)
    assert len(flow_pairs(grey, inside, grey)[0]) == 0
    assert len(flow_pairs(picture(0), np.zeros((224, 224), bool), picture(1))[0]) == 0


def test_another_object_is_less_certain_than_the_same():
    inside = np.zeros((224, 224), bool)
    inside[60:160, 50:170] = True
    same, other = (flow_pairs(picture(0), inside, photo)[2].sum() for photo in (picture(0), picture(1)))
    assert other < 0.5 * same
