"""The errors of a modelled detector: their shares, labels, scores and masks."""

from __future__ import annotations

import numpy as np
import pytest

from picopose_cli.synthesis import noisy_detections as noisy

LABELS = [1, 2, 5, 9]
CALLS = 400


def disc(centre_xy: tuple[int, int], radius: int) -> np.ndarray:
    y, x = np.mgrid[0:90, 0:120]
    return np.hypot(x - centre_xy[0], y - centre_xy[1]) < radius


ONE, OTHER = disc((28, 30), 14), disc((85, 55), 20)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.fixture(scope="module")
def images() -> list[list[noisy.NoisyDetection]]:
    visible = [(1, ONE), (9, OTHER)]
    return [
        noisy.noisy_detections(np.random.default_rng([3, call]), visible, ONE | OTHER, LABELS) for call in range(CALLS)
    ]


def sorted_out(images) -> dict[str, list[noisy.NoisyDetection]]:
    """Every detection by what it shows, judged by its mask alone, then by its label."""
    kinds: dict[str, list[noisy.NoisyDetection]] = {"right": [], "wrong": [], "background": []}
    for found in (found for image in images for found in image):
        on = {1: (found.mask & ONE).any(), 9: (found.mask & OTHER).any()}
        if not any(on.values()):
            kinds["background"].append(found)
        else:
            kinds["right" if on.get(found.obj_id, False) else "wrong"].append(found)
    return kinds


def test_shares_and_scores_are_as_designed(images):
    kinds = sorted_out(images)
    instances = 2 * CALLS
    assert len(kinds["right"]) / instances == pytest.approx(noisy.CORRECT_SHARE + noisy.PART_SHARE, abs=0.08)
    assert len(kinds["wrong"]) / instances == pytest.approx(noisy.WRONG_LABEL_SHARE, abs=0.06)
    assert len(kinds["background"]) / CALLS == pytest.approx(2, abs=0.15)
    means = {kind: np.mean([found.score for found in found_of]) for kind, found_of in kinds.items()}
    assert means["wrong"] == pytest.approx(0.48, abs=0.015)
    assert means["background"] == pytest.approx(0.42, abs=0.015)
    assert means["right"] == pytest.approx((0.9 * 0.6 + 0.4 * 0.5) / 1.3, abs=0.015)
    assert {found.obj_id for found in kinds["background"]} == set(LABELS)


def test_wrong_labels_are_other_objects_and_all_of_them(images):
    """Each mask on object 1 is labelled 1 (right, part) or any other; never do two wrong ones come from one segment."""
    for obj_id, mask in ((1, ONE), (9, OTHER)):
        labels = [[found.obj_id for found in image if overlap(found.mask, mask) > 0.4] for image in images]
        wrong = [[label for label in of_image if label != obj_id] for of_image in labels]
        assert max(map(len, wrong)) == 1
        assert {label for of_image in wrong for label in of_image} == set(LABELS) - {obj_id}


def test_masks_are_there_and_scores_in_order(images):
    for image in images:
        scores = [found.score for found in image]
        assert scores == sorted(scores, reverse=True)
        assert all(0.05 <= score <= 0.99 and score == round(score, 4) for score in scores)
        assert all(found.mask.any() and found.mask.dtype == bool and found.mask.shape == (90, 120) for found in image)


def test_whole_masks_are_rough_and_parts_are_parts(images):
    on_other = [found for image in images for found in image if found.obj_id == 9 and (found.mask & OTHER).any()]
    covered = np.array([(found.mask & OTHER).sum() / OTHER.sum() for found in on_other])
    parts = (covered < 0.8).mean()
    assert parts == pytest.approx(0.4 / 1.3, abs=0.08)
    assert 0.75 < np.mean([overlap(found.mask, OTHER) for found in on_other if found.score > 0.7]) < 0.97


def test_a_part_keeps_between_a_third_and_three_quarters():
    for seed in range(40):
        part = noisy.part_of_mask(np.random.default_rng(seed), OTHER)
        assert not (part & ~OTHER).any()
        assert 0.33 < part.sum() / OTHER.sum() < 0.77


def test_a_single_label_is_never_wrong_and_a_full_image_has_no_background():
    everywhere = np.ones_like(ONE)
    for seed in range(20):
        found = noisy.noisy_detections(np.random.default_rng(seed), [(4, ONE)], everywhere, [4])
        assert {one.obj_id for one in found} <= {4}
        assert all((one.mask & ONE).any() for one in found)
