"""Local windows of the all-pairs correlation of two feature maps, looked up around a target (arXiv 2003.12039)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_VALUES_ON_CPU = 1 << 22
"""Correlations held at once: 16 MB, since fresh pages and cache misses cost more than the extra calls."""
_VALUES_ON_DEVICE = 1 << 28
"""The same on an accelerator, where every piece costs its launches: 1 GB."""


def lookup_correlation(
    template: Tensor, observation: Tensor, target_xy: Tensor, *, radius: int, pyramid_levels: int
) -> Tensor:
    """Return the correlations (N, pyramid_levels * (2*radius+1)**2, h, w) around each template cell's target.

    `template` and `observation` (N,C,h,w); `target_xy` (N,2,h,w) observation cells (x, y), continuous. A pyramid level
    pools the observation's cells two by two once more. Outside the map the correlation is 0.
    """
    template_cells = template.flatten(2).transpose(1, 2) / math.sqrt(template.shape[1])  # (N,h*w,C)
    windows = []
    for level in range(pyramid_levels):
        if level:  # pooling the correlation over observation cells is the same as pooling their features
            observation = F.avg_pool2d(observation, 2)
        windows.append(_lookup_level(template_cells, observation, target_xy / 2**level, radius))
    return torch.cat(windows, dim=1)


def _lookup_level(template_cells: Tensor, observation: Tensor, centre_xy: Tensor, radius: int) -> Tensor:
    """Correlate some rows of template cells at a time, so that memory stays bounded; (N,window,h,w)."""
    pairs, _, height, width = centre_xy.shape
    columns = observation.flatten(2)  # (N,C,cells)
    budget = _VALUES_ON_CPU if columns.device.type == "cpu" else _VALUES_ON_DEVICE
    rows_at_a_time = max(1, budget // (pairs * width * columns.shape[2]))
    parts = []
    for row in range(0, height, rows_at_a_time):
        centres = centre_xy[:, :, row : row + rows_at_a_time]
        correlation = template_cells[:, row * width : (row + rows_at_a_time) * width] @ columns
        parts.append(_window(correlation, observation.shape[-2:], centres, radius))
    return torch.cat(parts, dim=2)


def _window(correlation: Tensor, size_hw: torch.Size, centre_xy: Tensor, radius: int) -> Tensor:
    """Sample (N,Q,rows*cols) at a window around centres (N,2,h,w), Q = h*w: bilinear, 0 outside; (N,window,h,w).

    The window's steps are whole cells, so all its samples share one fractional part: read one value more a side, once,
    and blend neighbours.
    """
    pairs, _, height, width = centre_xy.shape
    centres = centre_xy.flatten(2).transpose(1, 2)  # (N,Q,2)
    base = centres.floor()
    fraction_x, fraction_y = (centres - base)[..., None, None].unbind(2)  # (N,Q,1,1)
    values = _read_square(correlation, size_hw, base.long() - radius, 2 * radius + 2).float()
    values = torch.lerp(values[..., :-1], values[..., 1:], fraction_x)
    values = torch.lerp(values[..., :-1, :], values[..., 1:, :], fraction_y)  # (N,Q,y,x)
    return _window_channels(values).transpose(1, 2).reshape(pairs, -1, height, width)


def _read_square(correlation: Tensor, size_hw: torch.Size, corner_xy: Tensor, side: int) -> Tensor:
    """Return (N,Q,side,side) [y, x]: the values of (N,Q,rows*cols) right of and below corners (N,Q,2), 0 outside."""
    rows, cols = size_hw
    steps = torch.arange(side, device=corner_xy.device)
    x = corner_xy[..., 0, None] + steps  # (N,Q,side)
    y = corner_xy[..., 1, None] + steps
    inside = ((y >= 0) & (y < rows))[..., :, None] & ((x >= 0) & (x < cols))[..., None, :]
    index = y.clamp(0, rows - 1)[..., :, None] * cols + x.clamp(0, cols - 1)[..., None, :]
    return correlation.gather(2, index.flatten(2)).view(index.shape) * inside


def _window_channels(values: Tensor) -> Tensor:
    """Flatten windows (N,Q,y,x) to channels (N,Q,x*y).

    PARITY: the first window axis moves x: channel n*i+j of a window of side n is the offset (x: i-radius, y:
    j-radius).
    """
    return values.transpose(2, 3).flatten(2)
