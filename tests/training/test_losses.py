"""The losses against slow plain versions, and their behaviour at the ends."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.networks import TRAINABLE
from helpers.toy_pairs import make_sample

from picopose_cli.network.affine import AffineEstimate
from picopose_cli.network.offsets import OffsetEstimate
from picopose_cli.training.batches import collate
from picopose_cli.training.losses import (
    TEMPERATURE,
    PairLosses,
    RandomDraws,
    affine_losses,
    angle_between,
    matching_loss,
    offset_losses,
    perturbed_affine,
    safe_log,
    sample_draws,
    weighted_sum,
)
from picopose_cli.training.recipes import RELEASED_RECIPE, LossWeights, Recipe
from picopose_cli.training.start import start_network
from picopose_cli.training.supervision import TrueAffine, TrueFlow


def random_truth(batch: int, grid: int, seed: int = 0) -> TrueFlow:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="xy")).float()
    target = torch.rand(batch, 2, grid, grid, generator=generator) * grid
    return TrueFlow(target - cells, torch.rand(batch, grid, grid, generator=generator) < 0.4)


def plain_matching_loss(query: torch.Tensor, template: torch.Tensor, truth: TrueFlow) -> float:
    grid = truth.flow.shape[-1]
    pairs = []
    for b in range(len(query)):
        for row in range(grid):
            for col in range(grid):
                if truth.valid[b, row, col]:
                    x, y = int(truth.flow[b, 0, row, col] + col), int(truth.flow[b, 1, row, col] + row)
                    pairs.append((template[b, row * grid + col], query[b, y * grid + x], (b, x, y)))
    losses = []
    for anchor, positive, place in pairs:
        others = [math.exp(float(anchor @ p) / TEMPERATURE) for _, p, other in pairs if other != place]
        own = float(anchor @ positive) / TEMPERATURE
        losses.append(math.log(math.exp(own) + sum(others)) - own)
    return sum(losses) / len(losses)


def unit(batch: int, cells: int, seed: int) -> torch.Tensor:
    values = torch.randn(batch, cells, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=2)


def test_matching_loss_equals_the_plain_one() -> None:
    truth, query, template = random_truth(3, 4), unit(3, 16, 1), unit(3, 16, 2)
    choice = torch.rand(3, 16)
    assert matching_loss(query, template, truth, choice).item() == pytest.approx(
        plain_matching_loss(query, template, truth), rel=1e-5
    )


def test_matching_loss_takes_some_of_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, query, template = random_truth(3, 4), unit(3, 16, 1), unit(3, 16, 2)
    monkeypatch.setattr("picopose_cli.training.losses.MAX_POSITIVES_ON_CPU", 6)
    choice = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(3, 16, dtype=torch.bool)
    for b in range(3):
        order = torch.where(truth.valid[b].flatten(), choice[b], -1.0).argsort(descending=True)
        kept[b, order[:2]] = True
    fewer = TrueFlow(truth.flow, truth.valid & kept.view(3, 4, 4))
    assert fewer.valid.sum() == 6
    assert matching_loss(query, template, truth, choice).item() == pytest.approx(
        plain_matching_loss(query, template, fewer), rel=1e-5
    )


def test_nothing_valid_costs_nothing() -> None:
    truth = random_truth(2, 4)
    nothing = TrueFlow(truth.flow, torch.zeros_like(truth.valid))
    query = unit(2, 16, 1).requires_grad_()
    loss = matching_loss(query, unit(2, 16, 2), nothing, torch.rand(2, 16))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(query.grad).all()
    flow, logits = torch.ones(2, 2, 4, 4), torch.zeros(2, 1, 4, 4)
    assert offset_losses(OffsetEstimate((flow,), (logits,)), (nothing,))["flow_4"].item() == 0


def test_angle_is_acos_with_finite_gradients() -> None:
    angles = torch.tensor([0.0, 1e-4, 0.5, 2.0, math.pi - 1e-3, math.pi], requires_grad=True)
    a = torch.stack([angles.cos(), angles.sin()], 1)
    b = torch.tensor([1.0, 0.0]).expand(6, 2)
    measured = angle_between(a, b)
    np.testing.assert_allclose(measured.detach(), angles.detach(), atol=1e-6)
    measured.sum().backward()
    assert torch.isfinite(angles.grad).all()
    assert (angles.grad.abs() <= 1 + 1e-5).all()


def test_log_goes_on_below_its_limit() -> None:
    scale = torch.tensor([2.0, 1.0, 0.1, 0.0, -3.0], requires_grad=True)
    logs = safe_log(scale)
    np.testing.assert_allclose(logs[:3].detach(), np.log([2, 1, 0.1]), atol=1e-6)
    assert (logs[:-1] > logs[1:]).all()
    logs.sum().backward()
    np.testing.assert_allclose(scale.grad, [0.5, 1, 10, 10, 10], rtol=1e-5)


def truth_of(count: int) -> TrueAffine:
    generator = torch.Generator().manual_seed(3)
    return TrueAffine(
        20 * torch.randn(count, 2, generator=generator),
        0.5 + torch.rand(count, generator=generator),
        6 * torch.rand(count, generator=generator) - 3,
        112 + 10 * torch.randn(count, 2, generator=generator),
    )


def test_stage_2_losses_by_hand() -> None:
    truth = truth_of(3)
    rotated = truth.angle_rad + torch.tensor([0.1, -0.2, 0.3])
    estimate = AffineEstimate(
        truth.translation_px / 14 + torch.tensor([[1.0, -2.0]]),
        truth.scale * math.exp(0.5),
        torch.stack([rotated.cos(), rotated.sin()], 1),
        truth.A_obs_from_tmpl,
    )
    losses = affine_losses(estimate, truth, 14)
    assert losses["translation"].item() == pytest.approx(1.5, rel=1e-4)
    assert losses["scale"].item() == pytest.approx(0.25, rel=1e-4)
    assert losses["inplane"].item() == pytest.approx(0.2, rel=1e-4)


def test_stage_3_losses_by_hand() -> None:
    truth = random_truth(2, 4)
    logits = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    losses = offset_losses(
        OffsetEstimate((truth.flow + torch.tensor([1.0, -3.0])[:, None, None],), (logits,)), (truth,)
    )
    assert losses["flow_4"].item() == pytest.approx(2)
    p = 1 / (1 + np.exp(-logits[:, 0].double().numpy()))
    expected = -np.where(truth.valid, np.log(p), np.log(1 - p)).mean()
    assert losses["certainty_4"].item() == pytest.approx(expected, rel=1e-5)


def test_the_blur_is_centred_on_the_truth_and_keeps_the_sign_of_the_angle() -> None:
    """The released noise took acos of the angle, which mirrors every second rotation."""
    truth = truth_of(2000)
    draws = sample_draws(2000, 1, 0.0, torch.Generator().manual_seed(0))
    still = RandomDraws(torch.zeros_like(draws.noise), draws.strength, draws.choice, draws.roll_rad)
    torch.testing.assert_close(perturbed_affine(truth, still), truth.A_obs_from_tmpl)
    A = perturbed_affine(truth, draws)
    rotation = torch.atan2(A[:, 1, 0], A[:, 0, 0]) - truth.angle_rad
    rotation = torch.rad2deg(torch.atan2(rotation.sin(), rotation.cos()))
    assert abs(rotation.mean()) < 0.7
    assert 7 < rotation.std() < 11  # sigma uniform in 1 to 15 degrees
    assert rotation.abs().max() < 60
    log_scale = (A[:, :2, 0].norm(dim=1) / truth.scale).log()
    assert 0.09 < log_scale.std() < 0.15
    moved = (A[:, :2, :2] @ truth.origin_tmpl_crop[..., None])[..., 0] + A[:, :2, 2] - truth.origin_tmpl_crop
    assert 10 < (moved - truth.translation_px).std() < 14


def test_weights_go_by_kind() -> None:
    weights = LossWeights(matching=1, translation=10, scale=100, inplane=1000, certainty=1e4, flow=1e5)
    terms = {"matching": 1.0, "translation": 2.0, "scale": 3.0, "inplane": 4.0, "certainty_16": 5.0, "flow_64": 6.0}
    assert weighted_sum({name: torch.tensor(value) for name, value in terms.items()}, weights).item() == 654321


def test_every_trained_weight_gets_a_gradient() -> None:
    network = start_network(TRAINABLE, None, 0)
    network.train()
    batch = collate([make_sample("box", np.random.default_rng(i)) for i in range(2)])
    losses = PairLosses(network, RELEASED_RECIPE, rotate=True)
    terms = losses(batch, sample_draws(2, 64, 3.0, torch.Generator().manual_seed(0)))
    assert set(terms) == {
        "total", "matching", "translation", "scale", "inplane",
        "certainty_8", "certainty_16", "certainty_32", "flow_8", "flow_16", "flow_32",
    }  # fmt: skip
    terms["total"].backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert all(".norm." in name or "mask_token" in name or "dpt_head" in name for name in frozen)


def test_a_share_of_the_pairs_is_enough_for_stage_3() -> None:
    """Its losses are those of the first pairs alone; the other stages' do not change."""
    network = start_network(TRAINABLE, None, 0).eval()
    batch = collate([make_sample("box", np.random.default_rng(i)) for i in range(4)])
    draws = sample_draws(4, 64, 0.0, torch.Generator().manual_seed(0))

    def terms(recipe: Recipe, pairs: slice) -> dict[str, float]:
        part = batch.mapped(lambda tensor: tensor[pairs])
        drawn = RandomDraws(draws.noise[pairs], draws.strength[pairs], draws.choice[pairs], draws.roll_rad[pairs])
        with torch.inference_mode():
            found = PairLosses(network, recipe, rotate=False)(part, drawn)
        return {name: value.item() for name, value in found.items() if name != "total"}

    half = terms(replace(RELEASED_RECIPE, offset_share=0.5), slice(None))
    for name, value in terms(RELEASED_RECIPE, slice(0, 2)).items():
        if "_" in name:
            assert half[name] == pytest.approx(value, rel=1e-4), name
    for name, value in terms(RELEASED_RECIPE, slice(None)).items():
        if "_" not in name:
            assert half[name] == pytest.approx(value, rel=1e-4), name


def test_without_the_finest_grid_its_weights_rest_and_the_coarser_losses_stay() -> None:
    network = start_network(TRAINABLE, None, 0).eval()
    batch = collate([make_sample("box", np.random.default_rng(i)) for i in range(2)])
    losses, draws = (
        PairLosses(network, RELEASED_RECIPE, rotate=False),
        sample_draws(2, 64, 0.0, torch.Generator().manual_seed(0)),
    )
    with torch.inference_mode():
        whole = losses(batch, draws)
    coarse = losses(batch, draws, levels=2)
    assert set(whole) - set(coarse) == {"certainty_32", "flow_32"}
    assert all(coarse[name].item() == pytest.approx(whole[name].item(), rel=1e-5) for name in set(coarse) - {"total"})
    coarse["total"].backward()
    finest = network.offset_regressor.flow_decoder.flow_pred[2]
    assert all(parameter.grad is None for parameter in finest.parameters())
