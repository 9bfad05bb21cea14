"""Stage 3: the position of each template cell in the observation, refined from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from picopose_cli.network.config import LEVELS, DecoderConfig, ModelConfig
from picopose_cli.network.correlation import lookup_correlation
from picopose_cli.network.dpt import DptHead

OffsetFeatures = tuple[Tensor, ...]
"""Features of B images for stage 3, observations or templates: (B,D,g,g), (B,D,2g,2g), (B,D,4g,4g)."""


@dataclass(frozen=True)
class OffsetEstimate:
    """The result of stage 3 for N pairs, f32, one entry per level on template grids of side g, 2g, 4g.

    `flows` (N,2,g,g): channel 0 is the target's x minus the cell's column, channel 1 its y minus the row, in
    observation cells of that level; `certainty_logits` (N,1,g,g).
    """

    flows: tuple[Tensor, ...]
    certainty_logits: tuple[Tensor, ...]


class ConvRelu(nn.Module):
    """A convolution that keeps the size, and a ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N,C,h,w) to (N,outputs,h,w)."""
        return F.relu(self.conv(features), inplace=not torch.is_grad_enabled())


class MotionEncoder(nn.Module):
    """Computes motion features from correlations and the current flow."""

    def __init__(self, config: DecoderConfig, pyramid_levels: int) -> None:
        super().__init__()
        correlation, flow = config.correlation_widths, config.flow_widths
        inputs = pyramid_levels * config.window_cells
        self.corr_net = nn.Sequential(ConvRelu(inputs, correlation[0], 1), ConvRelu(*correlation, 3))
        self.flow_net = nn.Sequential(ConvRelu(2, flow[0], 7), ConvRelu(*flow, 3))
        self.out_net = nn.Sequential(ConvRelu(correlation[1] + flow[1], config.motion_width - 2, 3))

    def forward(self, correlation: Tensor, flow: Tensor) -> Tensor:
        """Return (N,motion_width,h,w) of correlations (N,*,h,w) and flow (N,2,h,w)."""
        both = torch.cat([self.corr_net(correlation), self.flow_net(flow)], dim=1)
        return torch.cat([self.out_net(both), flow], dim=1)


class Predictor(nn.Module):
    """One head of a level: two convolutions and a linear output layer."""

    def __init__(self, config: DecoderConfig, outputs: int, kernel: int) -> None:
        super().__init__()
        widths = (2 * config.width + config.motion_width, *config.head_widths)
        self.layers = nn.ModuleList([ConvRelu(widths[0], widths[1], 3), ConvRelu(widths[1], widths[2], 3)])
        self.predict_layer = nn.Conv2d(widths[2], outputs, kernel, padding=kernel // 2)

    def forward(self, features: Tensor) -> Tensor:
        """Return the change (N,outputs,h,w), f32, for features (N,C,h,w)."""
        for layer in self.layers:
            features = layer(features)
        change: Tensor = self.predict_layer(features)
        return change.float()


class FlowDecoder(nn.Module):
    """One refinement per level, each with its own weights (paper section 3.4)."""

    def __init__(self, config: DecoderConfig, feature_width: int) -> None:
        super().__init__()
        self.radius = config.radius
        self.proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(feature_width, config.width, 1), nn.BatchNorm2d(config.width))
            for _ in range(LEVELS)
        )
        self.encoder = nn.ModuleList(MotionEncoder(config, level + 1) for level in range(LEVELS))
        self.flow_pred = nn.ModuleList(Predictor(config, 2, 3) for _ in range(LEVELS))
        self.mask_pred = nn.ModuleList(Predictor(config, 1, 1) for _ in range(LEVELS))

    def project(self, decoded: Sequence[Tensor]) -> OffsetFeatures:
        """Return the features to correlate, one map per level, of the DPT head's outputs."""
        return tuple(proj(features) for proj, features in zip(self.proj, decoded, strict=True))

    def forward(
        self, query: Sequence[Tensor], template: Sequence[Tensor], flow: Tensor, logits: Tensor, levels: int = LEVELS
    ) -> OffsetEstimate:
        """Refine flow (N,2,g,g) and certainty (N,1,g,g) of N pairs of projected features, on the first `levels`."""
        flows, certainty_logits = [], []
        for level in range(levels):
            if level:
                flow, logits = 2 * upsample(flow), upsample(logits)
            features = self._pair_features(level, query[level], template[level], flow)
            flow = flow + self.flow_pred[level](features)
            logits = logits + self.mask_pred[level](features)
            flows.append(flow)
            certainty_logits.append(logits)
        return OffsetEstimate(tuple(flows), tuple(certainty_logits))

    def _pair_features(self, level: int, query: Tensor, template: Tensor, flow: Tensor) -> Tensor:
        """Return the heads' input (N,2*width+motion_width,h,w): template, observation at the target, motion."""
        target_xy = flow + cell_indices(flow)
        correlation = lookup_correlation(template, query, target_xy, radius=self.radius, pyramid_levels=level + 1)
        motion = self.encoder[level](correlation, flow)
        return torch.cat([template, sample_at(query, target_xy), motion], dim=1)


class OffsetRegressor(nn.Module):
    """The DPT head and the flow decoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dpt_head = DptHead(config.dpt, config.vit.width)
        self.flow_decoder = FlowDecoder(config.decoder, config.dpt.width)


def start_offsets(A_obs_from_tmpl: Tensor, template_masks: Tensor, patch_px: int) -> tuple[Tensor, Tensor]:
    """Return the initial flow (N,2,g,g) and certainty logits (N,1,g,g) of stage 3.

    `A_obs_from_tmpl` (N,3,3) crop px; `template_masks` (N,g,g), nonzero inside. A cell outside starts with target
    (0, 0), as in the released network.
    """
    inside = (template_masks != 0).to(A_obs_from_tmpl.dtype)[:, None]  # (N,1,g,g)
    cells = cell_indices(inside)
    centres_px = (cells + 0.5) * patch_px
    linear, shift = A_obs_from_tmpl[:, :2, :2, None, None], A_obs_from_tmpl[:, :2, 2, None, None]
    mapped_px = (linear * centres_px).sum(2) + shift  # no matmul: autocast would round the coordinates
    return mapped_px / patch_px * inside - cells, inside


def pack_features(features: OffsetFeatures) -> Tensor:
    """Return the features of B images as one row each (B,L): level by level, within a level cell by cell."""
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in features], dim=1)


def unpack_features(packed: Tensor, config: ModelConfig) -> OffsetFeatures:
    """Return the features of rows (B,L) of `pack_features`; views of the same memory."""
    width = config.decoder.width
    levels = torch.split(packed, [grid * grid * width for grid in config.flow_grids], dim=1)
    return tuple(
        level.view(-1, grid, grid, width).permute(0, 3, 1, 2)
        for level, grid in zip(levels, config.flow_grids, strict=True)
    )


def cell_indices(like: Tensor) -> Tensor:
    """Return the (x, y) = (column, row) of each cell of a map (N,C,h,w), as (2,h,w) f32."""
    height, width = like.shape[-2:]
    rows = torch.arange(height, device=like.device, dtype=torch.float32)
    cols = torch.arange(width, device=like.device, dtype=torch.float32)
    return torch.stack([cols.expand(height, width), rows[:, None].expand(height, width)])


def sample_at(features: Tensor, target_xy: Tensor) -> Tensor:
    """Return features (N,C,h,w) at targets (N,2,h,w) in cells (x, y): bilinear, 0 outside."""
    height, width = features.shape[-2:]
    last = torch.tensor([width - 1, height - 1], device=features.device, dtype=torch.float32)
    grid = target_xy.permute(0, 2, 3, 1) * 2 / last - 1  # (N,h,w,2), f32: half floats would round targets to cells
    sampled = F.grid_sample(features.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return sampled.to(features.dtype)


def upsample(values: Tensor) -> Tensor:
    """Return (N,C,2h,2w), bilinear with aligned corners."""
    return F.interpolate(values, scale_factor=2, mode="bilinear", align_corners=True)
