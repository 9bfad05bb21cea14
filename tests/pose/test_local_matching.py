from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from picopose_cli.network.local_matcher import load_local_features
from picopose_cli.pose import local_matching
from picopose_cli.pose.local_matching import cell_pairs, glue_pairs, local_features


@pytest.fixture(scope="module")
def matcher():
    return load_local_features()


def picture(seed: int = 0) -> np.ndarray:
    """Rectangles of random colours (192,192,3)."""
    rng, image = np.random.default_rng(seed), np.full((192, 192, 3), 90, np.uint8)
    for x, y, width, height in rng.integers(8, 180, (60, 4)):
        image[y : y + height // 4, x : x + width // 4] = rng.integers(0, 255, 3)
    return image


def moved(image: np.ndarray, x: float, y: float) -> np.ndarray:
    return cv2.warpAffine(image, np.array([[1.0, 0, x], [0, 1, y]]), image.shape[1::-1], borderMode=cv2.BORDER_REFLECT)


def plain_cells(render: torch.Tensor, photo: torch.Tensor, inside: np.ndarray):
    """All pairs of cells at once, in loops."""
    side = render.shape[-1]
    mask = torch.from_numpy(inside)
    mean = render[:, mask].mean(dim=1)[:, None, None]
    a, b = (F.normalize(cells - mean, dim=0).numpy() for cells in (render, photo))
    radius = int(np.ceil(local_matching.WINDOW * side))
    cells = [(y, x) for y in range(side) for x in range(side) if inside[y, x]]
    scores = {}
    for y, x in cells:
        for v in range(max(y - radius, 0), min(y + radius + 1, side)):
            for u in range(max(x - radius, 0), min(x + radius + 1, side)):
                scores[y, x, v, u] = float(a[:, y, x] @ b[:, v, u])
    pairs = []
    for y, x in cells:
        own = {place[2:]: score for place, score in scores.items() if place[:2] == (y, x)}
        (v, u), best = max(own.items(), key=lambda item: item[1])
        back = max((place for place in scores if place[2:] == (v, u)), key=lambda place: scores[place])
        weights = {place: np.exp((score - best) / local_matching.TEMPERATURE) for place, score in own.items()}
        near = {place: w for place, w in weights.items() if max(abs(place[0] - v), abs(place[1] - u)) <= 1}
        certainty = sum(near.values()) / sum(weights.values())
        if certainty > local_matching.MIN_CERTAINTY and max(abs(back[0] - y), abs(back[1] - x)) <= 1.5:
            target = sum(np.array([u + 0.5, v + 0.5]) * w for (v, u), w in near.items()) / sum(near.values())
            pairs.append(([x + 0.5, y + 0.5], target, certainty))
    return tuple(np.array(values) for values in zip(*pairs, strict=True))


def test_cells_are_matched_as_by_all_pairs(matcher):
    image, inside = picture(), np.zeros((24, 24), bool)
    inside[5:19, 3:16] = True
    features = [local_features(matcher, one) for one in (image, moved(image, 9, -5))]
    found = cell_pairs(*features, inside)
    expected = plain_cells(*(one.cells for one in features), inside)
    np.testing.assert_allclose(found[0], expected[0] * 8)
    np.testing.assert_allclose(found[1], expected[1] * 8, atol=0.1)
    np.testing.assert_allclose(found[2], expected[2], atol=2e-2)


def test_both_ways_find_a_shift(matcher):
    image, inside = picture(1), np.zeros((192, 192), bool)
    inside[40:150, 40:150] = True
    render, photo = local_features(matcher, image, inside), local_features(matcher, moved(image, 12, -7))
    for start, target, certainty in (cell_pairs(render, photo, inside[4::8, 4::8]), glue_pairs(matcher, render, photo)):
        assert len(start) > 15
        assert ((certainty > 0) & (certainty <= 1.001)).all()
        np.testing.assert_allclose(np.median(target - start, axis=0), [12, -7], atol=1)


def test_too_few_cells_and_no_keypoints_give_no_pairs(matcher):
    grey = local_features(matcher, np.full((64, 64, 3), 90, np.uint8))
    few = np.zeros((8, 8), bool)
    few[2, 2:5] = True
    for pairs in (cell_pairs(grey, grey, few), glue_pairs(matcher, grey, grey)):
        assert [len(values) for values in pairs] == [0, 0, 0]
