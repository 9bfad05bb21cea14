"""Cell-by-cell similarity of an observation and its templates (stage 1), and the input of stage 2."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_MAX_SIMILARITIES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Largest number of similarities in memory at once while views are scored (32 MB, 1 GB)."""


def unit_cells(last_map: Tensor) -> Tensor:
    """Return the cells (B,P,C) f32 of the deepest feature map (B,C,h,w): row-major, each of length 1."""
    cells = last_map.float().flatten(2).transpose(1, 2)
    return F.normalize(cells, dim=2).contiguous()


def masks_on_grid(masks: Tensor, grid: int) -> Tensor:
    """Return the nearest-neighbour values (B,grid,grid) of crop masks (B,S,S): each cell's top-left pixel."""
    step = masks.shape[-1] // grid
    return masks[..., ::step, ::step].contiguous()  # a view would keep the crops' masks in memory


def template_scores(query_cells: Tensor, query_masks: Tensor, template_cells: Tensor) -> Tensor:
    """Score every view of one object for every detection of that object.

    `query_cells` (B,P,C) and `template_cells` (V,P,C) are unit cells, `query_masks` (B,h,w) on their grid, nonzero
    inside. Returns (B,V) f32 in [-1, 1]. The template's own mask is not used. (Paper section 3.2.)
    """
    batch, cells, _ = query_cells.shape
    inside = query_masks.reshape(batch, cells) != 0
    masked_cells = query_cells * inside[..., None]  # an outside cell is similar to nothing: 0 everywhere
    views_at_a_time = max(1, _MAX_SIMILARITIES[query_cells.device.type] // (batch * cells * cells))
    with torch.autocast(query_cells.device.type, enabled=False):
        parts = [_scores(masked_cells, inside, chunk) for chunk in torch.split(template_cells, views_at_a_time)]
    return torch.cat(parts, dim=1)


def _scores(masked_cells: Tensor, inside: Tensor, template_cells: Tensor) -> Tensor:
    (batch, cells, width), views = masked_cells.shape, len(template_cells)
    similarity = (masked_cells.view(-1, width) @ template_cells.reshape(-1, width).T).float()
    similarity = similarity.view(batch, cells, views, cells)  # [b, t, v, s]
    best = similarity.amax(3)  # (B,P,V)
    valid = inside[..., None] & _argmax_is_not_first(similarity, best)
    return (best * valid).sum(1) / cells


def _argmax_is_not_first(similarity: Tensor, best: Tensor) -> Tensor:
    """Return (B,P,V) bool: cell i keeps its score only if both its argmaxes differ from 0.

    PARITY: the released code uses 0 for "no match", so a best match with the first cell is dropped; and one index i is
    both observation cell i (over template cells s) and template cell i (over observation cells t). An argmax is 0
    exactly where no value is above the first.
    """
    of_observation = best > similarity[..., 0]  # (B,P,V)
    of_template = similarity.amax(1) > similarity[:, 0]  # (B,V,P)
    return of_observation & of_template.transpose(1, 2)


def best_views(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best scores (B,H), best first, and their views (B,H); of equal scores the first view wins.

    H is smaller than `count` where there are fewer views.
    """
    values, views = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :count], views[:, :count]


def similarity_volume(query_cells: Tensor, template_cells: Tensor, template_masks: Tensor) -> Tensor:
    """Return the input (N,P,w,h) of the affine regressor for N pairs on a grid of h rows and w columns.

    `query_cells` and `template_cells` (N,P,C) are unit cells, `template_masks` (N,h,w) on their grid. Channels are
    template cells, row-major; those outside the mask and all negative similarities are 0.
    """
    pairs, height, width = template_masks.shape
    with torch.autocast(query_cells.device.type, enabled=False):
        similarity = template_cells @ query_cells.transpose(1, 2)  # [n, s, t]
    masked = (similarity * (template_masks.reshape(pairs, -1, 1) != 0)).clamp(min=0)
    return _transposed_positions(masked.view(pairs, -1, height, width))


def _transposed_positions(volume: Tensor) -> Tensor:
    """Swap rows and columns of (N,P,h,w).

    PARITY: the regressor was trained with the value of observation cell (row, col) at [col, row].
    """
    return volume.transpose(2, 3)
