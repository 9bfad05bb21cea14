"""Initial weights of a training run: random, or from a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.network.checkpoint import load_start
from picopose_cli.network.config import MINI, VIT_L, ModelConfig
from picopose_cli.network.picopose import PicoPose

CONFIGS = {"mini": MINI, "vit-l": VIT_L}
_INIT_STD = 0.02
# In the released file, and so in the module, but without influence on the output: they have no gradient.
_UNUSED = (
    "feature_extractor.dinov2.mask_token",
    "feature_extractor.dinov2.norm.",
    "offset_regressor.dpt_head.projects.0.",
    "offset_regressor.dpt_head.resize_layers.0.",
    "offset_regressor.dpt_head.scratch.layer1_rn.",
    "offset_regressor.dpt_head.scratch.refinenet1.",
    "offset_regressor.dpt_head.scratch.refinenet4.resConfUnit1.",
    "offset_regressor.dpt_head.scratch.output_conv",
)


def start_network(config: ModelConfig, init: Path | None, seed: int) -> PicoPose:
    """Return a network to train, on the CPU, with random weights, some or all of them replaced by those of `init`.

    Raises PicoPoseError when the file's tensors do not fit the sizes of `config`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PicoPose(config)
        _initialise(network)
    if init is not None:
        try:
            load_start(init, network)
        except PicoPoseError as error:
            fix = "pass --preset vit-l for DINOv2's ViT-L/14" if "DINOv2" in error.what else error.fix
            raise PicoPoseError(error.what, where=init, fix=fix) from error
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(_UNUSED))
    return network


def _initialise(network: PicoPose) -> None:
    """Set the initial values of the layers for which PyTorch's default is unsuitable, in place."""
    vit = network.feature_extractor.dinov2
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_INIT_STD)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(vit.cls_token, std=_INIT_STD)
    with torch.no_grad():
        vit.pos_embed[:, 1:] = _sinusoidal_positions(vit.config.position_grid, vit.config.width)
        # At first stage 3 returns the result of stage 2, and stage 2 almost the identity: the losses start low.
        decoder = network.offset_regressor.flow_decoder
        for predictor in (*decoder.flow_pred, *decoder.mask_pred):
            _zero(predictor.predict_layer)
        regressor = network.affine_regressor
        _zero(regressor.translation_predictor[-1])
        _zero(regressor.scale_predictor[-1])
        _bias(regressor.scale_predictor).fill_(1.0)
        _bias(regressor.inplane_predictor).copy_(torch.tensor([0.5, 0.0]))


def _bias(head: nn.Sequential) -> Tensor:
    last = head[-1]
    assert isinstance(last, nn.Linear)
    return last.bias


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _sinusoidal_positions(grid: int, width: int) -> Tensor:
    """Return sines and cosines (grid*grid,width) of each cell's column and row, with geometric wavelengths."""
    waves = width // 4
    frequency = 0.5 * torch.pi / (0.5 * grid) ** (torch.arange(waves) / max(1, waves - 1))
    phase = torch.arange(grid)[:, None] * frequency  # (grid,waves)
    line = torch.cat([phase.sin(), phase.cos()], 1)  # (grid,2*waves)
    plane = torch.cat([line.repeat(grid, 1), line.repeat_interleave(grid, 0)], 1)
    return _INIT_STD * nn.functional.pad(plane, (0, width - plane.shape[1]))
