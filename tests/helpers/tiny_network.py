"""A small network with random weights: the same stages as the released one, in milliseconds."""

from __future__ import annotations

import torch

from picopose_cli.network.config import AffineConfig, DecoderConfig, DptConfig, ModelConfig, VitConfig
from picopose_cli.network.picopose import PicoPose

TINY = ModelConfig(
    crop_px=56,
    vit=VitConfig(width=16, depth=4, heads=2, mlp_ratio=2, position_grid=6, output_blocks=(0, 1, 2, 3)),
    affine=AffineConfig(width=8, groups=4, hidden=(24, 16), head_width=8),
    dpt=DptConfig(projections=(6, 8, 12, 12), width=10, depth_widths=(4, 3)),
    decoder=DecoderConfig(
        width=12, correlation_widths=(14, 10), flow_widths=(8, 6), motion_width=9, head_widths=(12, 8)
    ),
)


def random_network(config: ModelConfig = TINY, seed: int = 0) -> PicoPose:
    """Return a network in eval mode whose every tensor is random, running statistics included."""
    with torch.device("meta"):
        network = PicoPose(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, tensor, generator) for name, tensor in network.state_dict().items()}
    network.load_state_dict(tensors, assign=True)
    return network.eval()


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
