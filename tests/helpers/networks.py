"""Networks of the released architecture in four small sizes, for runs of milliseconds."""

from __future__ import annotations

from dataclasses import replace

import torch

from picopose_cli.network.config import AffineConfig, DecoderConfig, DptConfig, ModelConfig, VitConfig
from picopose_cli.network.picopose import PicoPose

CROP_56 = ModelConfig(
    crop_px=56,
    vit=VitConfig(width=16, depth=4, heads=2, mlp_ratio=2, position_grid=6, output_blocks=(0, 1, 2, 3)),
    affine=AffineConfig(width=8, groups=4, hidden=(24, 16), head_width=8),
    dpt=DptConfig(projections=(6, 8, 12, 12), width=10, depth_widths=(4, 3)),
    decoder=DecoderConfig(
        width=12, correlation_widths=(14, 10), flow_widths=(8, 6), motion_width=9, head_widths=(12, 8)
    ),
)
"""Grids of 4 x 4 patches, all widths different: for the stages against slow plain versions."""
CROP_224 = ModelConfig(
    vit=VitConfig(width=32, depth=4, heads=2, mlp_ratio=2, position_grid=16, output_blocks=(0, 1, 2, 3)),
    affine=AffineConfig(width=16, groups=4, hidden=(32, 16), head_width=16),
    dpt=DptConfig(projections=(8, 8, 16, 16), width=8, depth_widths=(8, 4)),
    decoder=DecoderConfig(width=8, correlation_widths=(8, 8), flow_widths=(8, 4), motion_width=8, head_widths=(16, 8)),
)
"""The released crop and grid sizes, as template banks and the pose pipeline need them."""
TRAINABLE = ModelConfig(
    vit=VitConfig(
        width=64, depth=4, heads=2, patch_px=28, mlp_ratio=2, position_grid=8, output_blocks=(0, 1, 2, 3), stem_width=8
    ),
    affine=AffineConfig(width=32, groups=4, hidden=(64, 64), head_width=32),
    dpt=DptConfig(projections=(8, 16, 24, 24), width=24, depth_widths=(8, 4)),
    decoder=DecoderConfig(
        width=24, correlation_widths=(24, 24), flow_widths=(16, 8), motion_width=24, head_widths=(24, 16)
    ),
)
"""Patches of 28 px, so that all grids are half as fine as released: learns simple objects within a test."""
TRAINABLE_TINY = replace(
    TRAINABLE,
    vit=replace(TRAINABLE.vit, width=16, depth=4, heads=2),
    dpt=replace(TRAINABLE.dpt, width=8, projections=(4, 4, 4, 4)),
    decoder=replace(TRAINABLE.decoder, width=8, correlation_widths=(8, 8), motion_width=8, head_widths=(8, 8)),
)
"""As `TRAINABLE`, but too narrow to learn anything: for the training loop itself."""


def random_network(config: ModelConfig = CROP_224, seed: int = 0) -> PicoPose:
    """Return a network in eval mode whose every tensor is random, running statistics included."""
    with torch.device("meta"):
        network = PicoPose(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, tensor, generator) for name, tensor in network.state_dict().items()}
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a network's tensors."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _random(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    noise = torch.randn(like.shape, generator=generator)
    if name.endswith("running_var"):
        return 1 + 0.1 * noise.abs()
    if name.endswith("gamma") or (like.ndim == 1 and name.endswith("weight")):
        return 1 + 0.1 * noise
    fan_in = like[0].numel() if like.ndim > 1 and name.endswith("weight") else 25
    return noise / fan_in**0.5
