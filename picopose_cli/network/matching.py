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
    used, is_inside = inside_first(query_masks.reshape(batch, cells) != 0)
    kept_cells = query_cells.gather(1, used[..., None].expand(-1, -1, query_cells.shape[2]))
    masked_cells = kept_cells * is_inside[..., None]  # an outside cell is similar to nothing: 0 everywhere
    views_at_a_time = max(1, _MAX_SIMILARITIES[query_cells.device.type] // (used.numel() * cells))
    with torch.autocast(query_cells.device.type, enabled=False):
        chunks = torch.split(template_cells, views_at_a_time)
        return torch.cat([_scores(masked_cells, used, is_inside, chunk) for chunk in chunks], dim=1)


def inside_first(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices (B,K) of cells, those `inside` (B,P) first, each part ascending, and which of them are inside.

    On a CPU they are as many as the largest mask has; a GPU would wait for that number, so there they are all P.
    """
    largest = max(int(inside.sum(1).max()), 1) if inside.device.type == "cpu" else inside.shape[1]
    order = inside.argsort(dim=1, descending=True, stable=True)[:, :largest]
    return order, inside.gather(1, order)


def _scores(masked_cells: Tensor, used: Tensor, is_inside: Tensor, template_cells: Tensor) -> Tensor:
    """Return the scores (B,V) of the observation cells (B,K,C) with the indices `used` (B,K), 0 if they are outside.

    PARITY: the released code uses 0 for "no match", so a best match with the first cell is dropped; and one index i is
    both observation cell i (over template cells s) and template cell i (over observation cells t). An argmax is 0
    exactly where no value is above the first.
    """
    (batch, kept, width), (views, cells) = masked_cells.shape, template_cells.shape[:2]
    similarity = (masked_cells.view(-1, width) @ template_cells.reshape(-1, width).T).float()
    similarity = similarity.view(batch, kept, views, cells)  # [b, t, v, s]
    best = similarity.amax(3)  # (B,K,V)
    of_observation = best > similarity[..., 0]
    starts_with_first = (is_inside[:, 0] & (used[:, 0] == 0))[:, None, None]
    first, highest = similarity[:, 0] * starts_with_first, similarity.amax(1)  # (B,V,P)
    of_template = (highest.clamp(min=0) if kept < cells else highest) > first  # cells that were left out count as 0
    both = of_observation & of_template.gather(2, used[:, None].expand(-1, views, -1)).transpose(1, 2)
    return (best * (both & is_inside[..., None])).sum(1) / cells


def best_views(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best scores (B,H), best first, and their views (B,H); of equal scores the first view wins.

    H is smaller than `count` where there are fewer views.
    """
    values, views = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :count], views[:, :count]


def similarity_volume(query_cells: Tensor, template_cells: Tensor, template_masks: Tensor) -> Tensor:
    """Return the input (N,P,w,h) of the affine regressor for N pairs on a grid of h rows and w columns.

    `query_cells` (N,P,C), or (1,P,C) of all pairs, and `template_cells` (N,P,C) are unit cells, `template_masks`
    (N,h,w) on their grid. Channels are template cells, row-major; those outside the mask and all negative similarities
    are 0.

    PARITY: the regressor was trained with the value of observation cell (row, col) at [col, row].
    """
    pairs, height, width = template_masks.shape
    by_columns = query_cells.view(-1, height, width, query_cells.shape[2]).transpose(1, 2).flatten(1, 2)
    with torch.autocast(query_cells.device.type, enabled=False):
        similarity = template_cells @ by_columns.transpose(1, 2)  # [n, s, t]
    outside = template_masks.reshape(pairs, -1, 1) == 0
    volume = F.relu(similarity.masked_fill_(outside, 0), inplace=True)  # fresh memory costs time
    return volume.view(pairs, -1, width, height)
