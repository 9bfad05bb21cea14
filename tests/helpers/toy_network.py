"""Sizes for training in tests: the released architecture with patches of 28 px, so that all grids are half as fine."""

from __future__ import annotations

from picopose_cli.network.config import AffineConfig, DecoderConfig, DptConfig, ModelConfig, VitConfig

TOY = ModelConfig(
    vit=VitConfig(
        width=64, depth=4, heads=2, patch_px=28, mlp_ratio=2, position_grid=8, output_blocks=(0, 1, 2, 3), stem_width=8
    ),
    affine=AffineConfig(width=32, groups=4, hidden=(64, 64), head_width=32),
    dpt=DptConfig(projections=(8, 16, 24, 24), width=24, depth_widths=(8, 4)),
    decoder=DecoderConfig(
        width=24, correlation_widths=(24, 24), flow_widths=(16, 8), motion_width=24, head_widths=(24, 16)
    ),
)
