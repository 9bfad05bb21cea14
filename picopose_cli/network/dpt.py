"""The DPT head: four feature maps of one image fused into three finer ones (arXiv 2103.13413)."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from picopose_cli.network.config import DptConfig
from picopose_cli.network.vit import FeatureMaps


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU and followed by a batch norm, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        """Refine features (B,C,h,w)."""
        hidden = self.bn1(self.conv1(F.relu(features)))
        out: Tensor = features + self.bn2(self.conv2(F.relu(hidden)))
        return out


class FusionBlock(nn.Module):
    """Joins a level with the coarser fused one and resizes to the next finer grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1 = ResidualUnit(width)
        self.resConfUnit2 = ResidualUnit(width)

    def forward(self, level: Tensor, coarser: Tensor | None, grid: int) -> Tensor:
        """Return (B,C,grid,grid) from a level (B,C,h,w) and the coarser fused one (B,C,h,w), if any."""
        fused = level if coarser is None else coarser + self.resConfUnit1(level)
        fused = self.resConfUnit2(fused)
        fused = F.interpolate(fused, size=(grid, grid), mode="bilinear", align_corners=True)
        out: Tensor = self.out_conv(fused)
        return out


class Scratch(nn.Module):
    """The part of the head after the projections, with the names of the released file."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        widths, width = config.projections, config.width
        self.layer1_rn = nn.Conv2d(widths[0], width, 3, padding=1, bias=False)
        self.layer2_rn = nn.Conv2d(widths[1], width, 3, padding=1, bias=False)
        self.layer3_rn = nn.Conv2d(widths[2], width, 3, padding=1, bias=False)
        self.layer4_rn = nn.Conv2d(widths[3], width, 3, padding=1, bias=False)
        self.refinenet1 = FusionBlock(width)
        self.refinenet2 = FusionBlock(width)
        self.refinenet3 = FusionBlock(width)
        self.refinenet4 = FusionBlock(width)
        self.output_conv1 = nn.Conv2d(width, config.depth_widths[0], 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(*config.depth_widths, 3, padding=1), nn.ReLU(), nn.Conv2d(config.depth_widths[1], 1, 1)
        )


class DptHead(nn.Module):
    """The part of the head that PicoPose uses.

    In the file, and so in the module, but without influence on the three outputs: `projects.0`, `resize_layers.0`,
    `scratch.layer1_rn` and `scratch.refinenet1` (the finest level), `scratch.refinenet4.resConfUnit1` (the coarsest
    level has nothing to add to) and `scratch.output_conv1`, `output_conv2` (the depth). The shallowest feature map is
    therefore not needed and may be left out.
    """

    def __init__(self, config: DptConfig, feature_width: int) -> None:
        super().__init__()
        widths = config.projections
        self.projects = nn.ModuleList(nn.Conv2d(feature_width, width, 1) for width in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(config)

    def forward(self, maps: FeatureMaps) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (B,D,g,g), (B,D,2g,2g) and (B,D,4g,4g) of the backbone's last three maps (B,C,g,g)."""
        scratch, grid = self.scratch, maps[-1].shape[-1]
        level2, level3, level4 = (
            self.resize_layers[level](self.projects[level](maps[level])) for level in (-3, -2, -1)
        )  # (B,*,2g,2g), (B,*,g,g), (B,*,g/2,g/2)
        coarse: Tensor = scratch.refinenet4(scratch.layer4_rn(level4), None, grid)
        middle: Tensor = scratch.refinenet3(scratch.layer3_rn(level3), coarse, 2 * grid)
        fine: Tensor = scratch.refinenet2(scratch.layer2_rn(level2), middle, 4 * grid)
        return coarse, middle, fine
