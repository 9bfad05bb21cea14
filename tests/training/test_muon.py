"""Muon against its plain form, and which weights it is given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.networks import TRAINABLE
from torch import nn

from picopose_cli.training.muon import Muon, orthogonal
from picopose_cli.training.recipes import MINI_RECIPE, RELEASED_RECIPE
from picopose_cli.training.start import start_network
from picopose_cli.training.state import set_learning_rate, start_state


@pytest.mark.parametrize("shape", [(6, 6), (4, 20), (20, 4)])
def test_singular_values_become_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    U, values, Vh = torch.linalg.svd(matrices, full_matrices=False)
    found = U.transpose(1, 2) @ orthogonal(matrices) @ Vh.transpose(1, 2)
    diagonal = torch.diagonal(found, dim1=1, dim2=2)
    well_above_0 = values > 0.05 * values.amax(1, keepdim=True)
    assert ((diagonal > 0.6) & (diagonal < 1.3))[well_above_0].all()
    assert (found - torch.diag_embed(diagonal)).abs().max() < 1e-4


def test_a_step_is_the_orthogonal_part_of_nesterovs_momentum() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(size, generator=generator)) for size in ((4, 6), (4, 6), (3, 2, 3, 3))]
    optimizer = Muon(weights, lr=0.1, weight_decay=0.5, momentum=0.9)
    expected = [weight.detach().clone().flatten(1) for weight in weights]
    means = [torch.zeros_like(weight) for weight in expected]
    for _ in range(3):
        for i, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=generator)
            means[i] = 0.9 * means[i] + 0.1 * weight.grad.flatten(1)
            update = orthogonal((0.9 * means[i] + 0.1 * weight.grad.flatten(1))[None])[0]
            expected[i] = (1 - 0.1 * 0.5) * expected[i] - 0.1 * 0.2 * max(expected[i].shape) ** 0.5 * update
        optimizer.step()
    for weight, value in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach().flatten(1), value, rtol=1e-4, atol=1e-5)


def test_a_weight_without_gradient_stays() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    Muon([weight], lr=1.0, weight_decay=0.5, momentum=0.9).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def test_matrices_of_stages_1_and_3_go_to_muon_and_all_else_to_adamw() -> None:
    network = start_network(TRAINABLE, None, 0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    state = start_state(network, MINI_RECIPE, ema=False)
    adamw, muon = ({names[id(p)] for p in optimizer.param_groups[0]["params"]} for optimizer in state.optimizers)
    assert adamw | muon == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    vit = "feature_extractor.dinov2."
    assert {vit + "blocks.0.attn.qkv.weight", vit + "patch_embed.stem.0.weight"} <= muon
    kept = {vit + "pos_embed", vit + "cls_token", vit + "blocks.0.norm1.weight", vit + "blocks.0.mlp.fc1.bias"}
    assert kept | {"affine_regressor.fc1.weight"} <= adamw
    decoder = "offset_regressor.flow_decoder."
    assert decoder + "flow_pred.0.layers.0.conv.weight" in muon
    assert decoder + "flow_pred.0.predict_layer.weight" in adamw
    assert len(start_state(network, RELEASED_RECIPE, ema=False).optimizers) == 1


def test_both_rates_follow_the_schedule() -> None:
    state = start_state(start_network(TRAINABLE, None, 0), MINI_RECIPE, ema=False)
    state.step = 550
    set_learning_rate(state, replace(MINI_RECIPE, lr=1.0, muon_gain=3.0, warmup_steps=100), 1000)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in state.optimizers]
    assert rates == pytest.approx([0.5, 1.5])
