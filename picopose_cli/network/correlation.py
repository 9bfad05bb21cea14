"""Local windows of the all-pairs correlation of two feature maps, looked up around a target (arXiv 2003.12039)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_VALUES_ON_CPU = 1 << 22
"""Correlations held at once: 16 MB, since fresh pages and cache misses cost more than the extra calls."""
_VALUES_ON_DEVICE = 1 << 27
"""The same on an accelerator, where every piece costs its launches: 0.5 GB."""
_FEATURES = 1 << 20
"""Features read at once where the volume is not built: they stay in cache."""
_CELLS_WORTH_A_READ = 50
"""Cells of the observation a cell of the window from which on reading is cheaper (measured on an EPYC)."""

_Correlate = Callable[[Tensor, Tensor, Tensor], Tensor]


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
    if _is_rather_read(observation, radius):
        values_a_row, budget, correlate = (
            width * (2 * radius + 2) ** 2 * observation.shape[1],
            _FEATURES,
            _read_products,
        )
    else:
        values_a_row, budget, correlate = width * observation[0, 0].numel(), _budget(observation), _read_volume
    rows_at_a_time = max(1, budget // (pairs * values_a_row))
    parts = []
    for row in range(0, height, rows_at_a_time):
        centres = centre_xy[:, :, row : row + rows_at_a_time]
        cells = template_cells[:, row * width : (row + rows_at_a_time) * width]
        parts.append(_window(cells, observation, centres, radius, correlate))
    return torch.cat(parts, dim=2)


def _is_rather_read(observation: Tensor, radius: int) -> bool:
    """Whether reading the window's features is cheaper than a matrix product with all cells, of which few are used."""
    large = observation[0, 0].numel() > _CELLS_WORTH_A_READ * (2 * radius + 2) ** 2
    return large and observation.device.type == "cpu" and not torch.is_grad_enabled()


def _budget(observation: Tensor) -> int:
    return _VALUES_ON_CPU if observation.device.type == "cpu" else _VALUES_ON_DEVICE


def _window(cells: Tensor, observation: Tensor, centre_xy: Tensor, radius: int, correlate: _Correlate) -> Tensor:
    """Correlate template cells (N,Q,C) with a window around centres (N,2,h,w), Q = h*w; (N,window,h,w).

    Bilinear, 0 outside. The window's steps are whole cells, so all its samples share one fractional part: read one
    value more a side, once, and blend neighbours.
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
    """Return which cells (N,Q,side,side) [y, x] lie right of and below corners (N,Q,2), and which of them exist."""
    rows, cols = size_hw
    steps = torch.arange(side, device=corner_xy.device)
    x = corner_xy[..., 0, None] + steps  # (N,Q,side)
    y = corner_xy[..., 1, None] + steps
    inside = ((y >= 0) & (y < rows))[..., :, None] & ((x >= 0) & (x < cols))[..., None, :]
    return y.clamp(0, rows - 1)[..., :, None] * cols + x.clamp(0, cols - 1)[..., None, :], inside


def _read_volume(cells: Tensor, observation: Tensor, index: Tensor) -> Tensor:
    """Return the products (N,Q,S) of cells (N,Q,C) with the cells `index` (N,Q,S) of an observation, out of all."""
    return (cells @ observation.flatten(2)).gather(2, index)


def _read_products(cells: Tensor, observation: Tensor, index: Tensor) -> Tensor:
    """Return what `_read_volume` does from the products that are asked for."""
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
