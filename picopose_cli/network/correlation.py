"""Windows of the all-pairs correlation of two feature maps around a target (RAFT, arXiv 2003.12039)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_MAX_VALUES_CPU = 1 << 22
"""Largest number of correlations in memory at once: 16 MB, since larger arrays miss the caches."""
_MAX_VALUES_DEVICE = 1 << 27
"""The same on an accelerator, where each part costs kernel launches: 0.5 GB."""
_MAX_READ_FEATURES = 1 << 20
"""Largest number of features gathered at once without a correlation volume: they stay in the caches."""
_MIN_CELLS_PER_VALUE = 50
"""Observation cells per window value from which on gathering features is faster than the volume (measured)."""

_Correlate = Callable[[Tensor, Tensor, Tensor], Tensor]


def lookup_correlation(
    template: Tensor, observation: Tensor, target_xy: Tensor, *, radius: int, pyramid_levels: int
) -> Tensor:
    """Return the correlations (N, pyramid_levels * (2*radius+1)**2, h, w) around each template cell's target.

    `template` and `observation` (N,C,h,w); `target_xy` (N,2,h,w) observation cells (x, y), continuous. Each pyramid
    level halves the observation's grid. Outside the map the correlation is 0.
    """
    template_cells = template.flatten(2).transpose(1, 2) / math.sqrt(template.shape[1])  # (N,h*w,C)
    windows = []
    for level in range(pyramid_levels):
        if level:  # pooling the correlation over observation cells is the same as pooling their features
            observation = F.avg_pool2d(observation, 2)
        windows.append(_lookup_level(template_cells, observation, target_xy / 2**level, radius))
    return torch.cat(windows, dim=1)


def _lookup_level(template_cells: Tensor, observation: Tensor, centre_xy: Tensor, radius: int) -> Tensor:
    """Return the windows (N,window,h,w) of one level; a part of the rows at a time, so that memory stays bounded."""
    pairs, _, height, width = centre_xy.shape
    if _gathers_features(observation, radius):
        limit, correlate = _MAX_READ_FEATURES, _correlate_gathered
        values_per_row = width * (2 * radius + 2) ** 2 * observation.shape[1]
    else:
        limit, correlate = _max_values(observation), _correlate_all
        values_per_row = width * observation[0, 0].numel()
    rows = max(1, limit // (pairs * values_per_row))
    parts = []
    for row in range(0, height, rows):
        cells = template_cells[:, row * width : (row + rows) * width]
        parts.append(_windows(cells, observation, centre_xy[:, :, row : row + rows], radius, correlate))
    return torch.cat(parts, dim=2)


def _gathers_features(observation: Tensor, radius: int) -> bool:
    """Return whether to gather the window's features, and not to correlate all cells, few of which are used."""
    large = observation[0, 0].numel() > _MIN_CELLS_PER_VALUE * (2 * radius + 2) ** 2
    return large and observation.device.type == "cpu" and not torch.is_grad_enabled()


def _max_values(observation: Tensor) -> int:
    return _MAX_VALUES_CPU if observation.device.type == "cpu" else _MAX_VALUES_DEVICE


def _windows(cells: Tensor, observation: Tensor, centre_xy: Tensor, radius: int, correlate: _Correlate) -> Tensor:
    """Correlate template cells (N,Q,C) with a window around centres (N,2,h,w), Q = h*w; (N,window,h,w).

    Bilinear, 0 outside. The window's steps are whole cells, so all its samples have one fractional part: one value more
    per side is read, once, and neighbours are interpolated.
    """
    centres = centre_xy.flatten(2).transpose(1, 2)  # (N,Q,2)
    base = centres.floor()
    fraction_x, fraction_y = (centres - base)[..., None, None].unbind(2)  # (N,Q,1,1)
    index, inside = _square(observation.shape[-2:], base.long() - radius, 2 * radius + 2)
    values = (correlate(cells, observation, index.flatten(2)).view(index.shape) * inside).float()
    values = torch.lerp(values[..., :-1], values[..., 1:], fraction_x)
    values = torch.lerp(values[..., :-1, :], values[..., 1:, :], fraction_y)  # (N,Q,y,x)
    channels = _window_channels(values).transpose(1, 2)  # (N,window,Q)
    return channels.view(*channels.shape[:2], *centre_xy.shape[2:])


def _square(size_hw: torch.Size, corner_xy: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the cells (N,Q,side,side) [y, x] of squares with upper left corners (N,Q,2), and which of them exist."""
    rows, cols = size_hw
    steps = torch.arange(side, device=corner_xy.device)
    x = corner_xy[..., 0, None] + steps  # (N,Q,side)
    y = corner_xy[..., 1, None] + steps
    inside = ((y >= 0) & (y < rows))[..., :, None] & ((x >= 0) & (x < cols))[..., None, :]
    return y.clamp(0, rows - 1)[..., :, None] * cols + x.clamp(0, cols - 1)[..., None, :], inside


def _correlate_all(cells: Tensor, observation: Tensor, index: Tensor) -> Tensor:
    """Return the products (N,Q,S) of cells (N,Q,C) with the cells `index` (N,Q,S) of an observation, from the volume.

    Unlike F.grid_sample, gather does not keep the volume for the backward pass.
    """
    return (cells @ observation.flatten(2)).gather(2, index)


def _correlate_gathered(cells: Tensor, observation: Tensor, index: Tensor) -> Tensor:
    """Return the values of `_correlate_all`, computing no others."""
    pairs, queries, samples = index.shape
    of_cell = observation.permute(0, 2, 3, 1).flatten(1, 2)  # (N,cells,C)
    read = torch.stack([one.index_select(0, where.flatten()) for one, where in zip(of_cell, index, strict=True)])
    return (read.view(pairs * queries, samples, -1) @ cells.reshape(pairs * queries, -1, 1)).view(index.shape)


def _window_channels(values: Tensor) -> Tensor:
    """Flatten windows (N,Q,y,x) to channels (N,Q,x*y).

    PARITY: the first window axis moves x: channel n*i+j of a window of side n is the offset (x: i-radius, y:
    j-radius).
    """
    return values.transpose(2, 3).flatten(2)
