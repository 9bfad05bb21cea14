from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from picopose_cli.pose.affine_search import COARSE, FINE, match_probabilities, search_affine

GRID, PATCH_PX = 16, 14


def similarity(angle_deg: float, scale: float, centre_px: tuple[float, float]) -> torch.Tensor:
    """Rotate and scale about the crop's centre, which goes to `centre_px`."""
    angle = math.radians(angle_deg)
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    A = np.eye(3)
    A[:2, :2] = linear
    A[:2, 2] = np.array(centre_px) - linear @ (112, 112)
    return torch.from_numpy(A).float()


def make_pairs(truths: list[torch.Tensor], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cells of a smooth random picture and of the same picture under each similarity, and a round template mask."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(0, 1 / (1.5 * PATCH_PX), (2, 256))
    phases = rng.uniform(0, 2 * np.pi, 256)

    def appearance(points_px: np.ndarray) -> torch.Tensor:
        cells = torch.from_numpy(np.cos(points_px @ waves + phases)).float()
        return torch.nn.functional.normalize(cells, dim=1)

    row, col = np.divmod(np.arange(GRID**2), GRID)
    centres_px = (np.stack([col, row], 1) + 0.5) * PATCH_PX
    query = appearance(centres_px)
    moved = [appearance(centres_px @ A[:2, :2].numpy().T + A[:2, 2].numpy()) for A in truths]
    mask = torch.from_numpy((np.hypot(col - 7.5, row - 7.5) < 6.5).reshape(GRID, GRID))
    return query.repeat(len(truths), 1, 1), torch.stack(moved), mask.repeat(len(truths), 1, 1)


TRUTHS = [
    similarity(0, 1.0, (112, 112)),
    similarity(33, 0.9, (125, 105)),
    similarity(-100, 1.1, (95, 120)),
    similarity(171, 0.85, (112, 130)),
    similarity(60, 1.15, (140, 90)),
]
START = similarity(20, 1.0, (112, 112))


def errors(found: torch.Tensor, truths: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angle in degrees, log scale, and the shift of the crop's centre in cells."""
    truth = torch.stack(truths)
    difference = torch.atan2(found[:, 1, 0], found[:, 0, 0]) - torch.atan2(truth[:, 1, 0], truth[:, 0, 0])
    degrees = torch.rad2deg(torch.atan2(difference.sin(), difference.cos()).abs())
    log_scale = (found[:, :2, 0].norm(dim=1) / truth[:, :2, 0].norm(dim=1)).log().abs()
    centre = torch.tensor([112.0, 112.0, 1.0])
    shift = ((found - truth) @ centre)[:, :2].norm(dim=1) / PATCH_PX
    return degrees.numpy(), log_scale.numpy(), shift.numpy()


def test_finds_the_true_similarity_from_any_start_angle():
    found, alignment = search_affine(*make_pairs(TRUTHS), START.repeat(len(TRUTHS), 1, 1), PATCH_PX)
    degrees, log_scale, shift = errors(found, TRUTHS)
    assert degrees.max() < 4
    assert log_scale.max() < 0.08
    assert shift.max() < 0.35
    assert alignment.min() > 0
    assert alignment.max() <= 1


def test_never_worse_than_the_start():
    query, template, masks = make_pairs([START, START], seed=1)
    A_start = torch.stack([START, similarity(20, 1.0, (118, 108))])
    _, alignment = search_affine(query, template, masks, A_start, PATCH_PX)
    for pair in range(2):
        assert alignment[pair] >= plain_alignment(query[pair], template[pair], masks[pair], A_start[pair]) - 1e-6


def plain_alignment(query: torch.Tensor, template: torch.Tensor, mask: torch.Tensor, A: torch.Tensor) -> float:
    """The mean probability at the targets, cell by cell."""
    total, cells = 0.0, 0
    for s in range(GRID**2):
        row, col = divmod(s, GRID)
        if not mask[row, col]:
            continue
        cells += 1
        chance = torch.softmax(template[s] @ query.T / 0.1, 0).view(GRID, GRID)
        x, y = ((A @ torch.tensor([(col + 0.5) * PATCH_PX, (row + 0.5) * PATCH_PX, 1.0]))[:2] / PATCH_PX - 0.5).tolist()
        x0, y0 = math.floor(x), math.floor(y)
        for dx in (0, 1):
            for dy in (0, 1):
                if 0 <= x0 + dx < GRID and 0 <= y0 + dy < GRID:
                    share = (1 - abs(x - x0 - dx)) * (1 - abs(y - y0 - dy))
                    total += share * chance[y0 + dy, x0 + dx].item()
    return total / cells


def test_alignment_is_the_mean_probability_at_the_targets():
    query, template, masks = make_pairs(TRUTHS[:2])
    found, alignment = search_affine(query, template, masks, START.repeat(2, 1, 1), PATCH_PX)
    for pair in range(2):
        plain = plain_alignment(query[pair], template[pair], masks[pair], found[pair])
        assert alignment[pair].item() == pytest.approx(plain, abs=1e-4)


def test_probabilities_are_over_the_observation_cells():
    query, template, _ = make_pairs(TRUTHS[:1])
    chances = match_probabilities(query, template[:, 1::3])
    plain = torch.softmax(template[0, 4] @ query[0].T / 0.1, 0)
    np.testing.assert_allclose(chances[0, 1], plain, atol=1e-6)


def test_a_pair_is_the_same_in_any_company():
    query, template, masks = make_pairs(TRUTHS)
    starts = START.repeat(len(TRUTHS), 1, 1)
    together = search_affine(query, template, masks, starts, PATCH_PX)
    alone = [search_affine(*(t[i : i + 1] for t in (query, template, masks, starts)), PATCH_PX) for i in range(5)]
    np.testing.assert_allclose(together[0], torch.cat([A for A, _ in alone]), atol=1e-4)
    np.testing.assert_allclose(together[1], torch.cat([alignment for _, alignment in alone]), atol=1e-5)


def test_degenerate_pairs_stay_finite():
    query, template, masks = make_pairs(TRUTHS[:2])
    A_start = torch.stack([torch.zeros(3, 3), START])
    masks[1] = 0
    found, alignment = search_affine(query, template, masks, A_start, PATCH_PX)
    assert torch.isfinite(found).all()
    assert alignment[1] == 0


def test_rounds_can_follow_one_another():
    query, template, masks = make_pairs(TRUTHS)
    starts = START.repeat(len(TRUTHS), 1, 1)
    whole = search_affine(query, template, masks, starts, PATCH_PX)
    found, coarse_alignment = search_affine(query, template, masks, starts, PATCH_PX, COARSE)
    degrees, _, _ = errors(found, TRUTHS)
    assert degrees.max() < 9  # half a step of the coarse angles, and a little
    assert coarse_alignment.min() > 0
    in_parts = search_affine(query, template, masks, found, PATCH_PX, FINE)
    np.testing.assert_allclose(in_parts[0], whole[0], atol=1e-3)
    np.testing.assert_allclose(in_parts[1], whole[1], atol=1e-5)
