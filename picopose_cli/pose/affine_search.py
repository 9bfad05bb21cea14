"""Search for the 2D similarity that agrees best with the matches of stage 1, around stage 2's answer.

Stage 1 gives the probability that a template cell matches an observation cell (a softmax at the temperature of its
training, paper section 3.2). A 2D similarity maps every template cell to one target; its alignment is the mean of the
probabilities at the targets. Stage 2 regresses a similarity in one shot; here the similarity of the highest alignment
is searched in its neighbourhood, over the full circle of in-plane angles, in steps that grow finer. Stage 3 then starts
closer to the truth, and the alignment shows which templates stage 3 should run on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from picopose_cli.network.matching import inside_first

MATCHING_TEMPERATURE = 0.1
"""Temperature of the InfoNCE loss that stage 1 is trained with."""
MIN_SCALE = 0.3
"""Smallest scale that a search starts from: the regressor may return one near 0."""
_SAMPLES_ON_CPU, _SAMPLES_ON_DEVICE = 1 << 20, 1 << 26
"""Probabilities sampled at once."""


@dataclass(frozen=True)
class Round:
    """One round of the search: `angles`, `scales` and `shifts` candidates per parameter, evenly within +- its range.

    `range_deg` 180 is the full circle; `range_cells` is that of the translation in x and in y. Only every `stride`-th
    row and column of the template is used.
    """

    angles: int
    range_deg: float
    scales: int
    range_log_scale: float
    shifts: int
    range_cells: float
    stride: int

    def linear_offsets(self) -> Tensor:
        """Return the candidates' linear parts relative to the best so far, (L,2): angle in rad, log scale."""
        degrees = torch.linspace(-self.range_deg, self.range_deg, self.angles + (self.range_deg == 180))
        log_scales = torch.linspace(-self.range_log_scale, self.range_log_scale, self.scales)
        return torch.cartesian_prod(torch.deg2rad(degrees[: self.angles]), log_scales)

    def shift_offsets(self, patch_px: int) -> Tensor:
        """Return the translations relative to the best so far, (T,2) px; each goes with each linear part."""
        shifts_px = torch.linspace(-self.range_cells, self.range_cells, self.shifts) * patch_px
        return torch.cartesian_prod(shifts_px, shifts_px)

    @property
    def candidates(self) -> int:
        """Number of candidates."""
        return self.angles * self.scales * self.shifts**2


COARSE = (Round(24, 180.0, 1, 0.0, 7, 3.0, stride=2),)
FINE = (Round(5, 10.0, 5, 0.2, 5, 1.0, stride=2), Round(5, 4.0, 3, 0.05, 5, 0.4, stride=1))


def search_affine(
    query_cells: Tensor,
    template_cells: Tensor,
    template_masks: Tensor,
    A_start: Tensor,
    patch_px: int,
    rounds: Sequence[Round] = (*COARSE, *FINE),
) -> tuple[Tensor, Tensor]:
    """Return the A_obs_from_tmpl (N,3,3) crop px of the highest alignment, and the alignment (N,) in [0, 1]; f32.

    `query_cells` and `template_cells` (N,P,C) unit cells of N pairs, `template_masks` (N,g,g) on their grid, nonzero
    inside, `A_start` (N,3,3) crop px: where the search starts, from stage 2 or earlier rounds.
    """
    samples = max(step.candidates // step.stride**2 for step in rounds) * template_cells.shape[1]
    budget = _SAMPLES_ON_CPU if A_start.device.type == "cpu" else _SAMPLES_ON_DEVICE
    at_once = max(1, budget // samples)
    inputs = (query_cells.float(), template_cells.float(), template_masks, A_start.float())
    with torch.autocast(A_start.device.type, enabled=False):
        chunks = zip(*(torch.split(tensor, at_once) for tensor in inputs), strict=True)
        parts = [_search(query, template, masks, A, patch_px, rounds) for query, template, masks, A in chunks]
    A, alignment = zip(*parts, strict=True)
    return torch.cat(A), torch.cat(alignment)


def _search(
    query: Tensor, template: Tensor, masks: Tensor, A_start: Tensor, patch_px: int, rounds: Sequence[Round]
) -> tuple[Tensor, Tensor]:
    size_hw = masks.shape[1], masks.shape[2]
    inside = (masks != 0).flatten(1)  # (N,P)
    cells_px = _cell_centres_px(size_hw, patch_px).to(masks.device, non_blocking=True)
    count = inside.sum(1, keepdim=True).clamp(min=1)
    centre_px = (inside.float() @ cells_px) / count  # (N,2), the centre of rotation and scaling
    best = _parameters(A_start, centre_px)
    alignment = best.new_zeros(len(best))
    to_unit = 2 / (patch_px * torch.tensor([size_hw[1] - 1, size_hw[0] - 1])).to(best)  # px to coordinates of maps
    for step in rounds:
        cells = every_cell(size_hw, step.stride).to(masks.device, non_blocking=True)
        order, is_inside = inside_first(inside[:, cells])  # (N,S)
        used = cells[order]
        chances = match_probabilities(query, template.gather(1, used[..., None].expand(-1, -1, template.shape[2])))
        linear = best[:, None, :2] + step.linear_offsets().to(best)  # (N,L,2)
        shift = best[:, None, 2:] + step.shift_offsets(patch_px).to(best)  # (N,T,2)
        rotated_px = _rotate(linear, cells_px[used] - centre_px[:, None])  # (N,S,L,2)
        moved_px = shift - patch_px / 2  # a map's coordinates -1 and 1 are the centres of its outer cells
        targets = (rotated_px * to_unit)[:, :, :, None] + (moved_px * to_unit - 1)[:, None, None]  # (N,S,L,T,2)
        maps = (chances * is_inside[..., None]).view(*used.shape, *size_hw)
        sums = _sample(maps, targets.flatten(2, 3)).sum(1)  # (N,L*T)
        highest, index = sums.max(1)
        rows = torch.arange(len(best), device=best.device)
        at, to = index // shift.shape[1], index % shift.shape[1]
        best = torch.cat([linear[rows, at], shift[rows, to]], 1)
        alignment = highest / count[:, 0]
    return _affine(best, centre_px), alignment


def match_probabilities(query_cells: Tensor, template_cells: Tensor) -> Tensor:
    """Return the probabilities (N,S,P) that each of S template cells (N,S,C) matches an observation cell (N,P,C)."""
    return (template_cells @ query_cells.transpose(1, 2) / MATCHING_TEMPERATURE).softmax(2)


def every_cell(size_hw: tuple[int, int], stride: int) -> Tensor:
    """Return the indices (S,), row-major and ascending, of the cells in every `stride`-th row and column of a grid.

    They are on the host: choosing by a mask on a GPU would wait for it.
    """
    rows, cols = (torch.arange(stride // 2, size, stride) for size in size_hw)
    return (rows[:, None] * size_hw[1] + cols).flatten()


def _cell_centres_px(size_hw: tuple[int, int], patch_px: int) -> Tensor:
    """Return the centres (P,2), as (x, y) in crop px, of the cells of a grid, row-major, on the host."""
    rows, cols = torch.meshgrid(*(torch.arange(size) for size in size_hw), indexing="ij")
    return (torch.stack([cols.flatten(), rows.flatten()], 1) + 0.5) * patch_px


def _parameters(A: Tensor, centre_px: Tensor) -> Tensor:
    """Return (N,4) angle, log scale and the centre's target in px of similarities (N,3,3)."""
    angle = torch.atan2(A[:, 1, 0], A[:, 0, 0])
    log_scale = A[:, :2, 0].norm(dim=1).clamp(min=MIN_SCALE).log()
    target_px = (A[:, :2, :2] * centre_px[:, None]).sum(2) + A[:, :2, 2]
    return torch.cat([torch.stack([angle, log_scale], 1), target_px], 1)


def _linear(parameters: Tensor) -> Tensor:
    """Return the linear part (...,2,2) of parameters (...,4)."""
    scale = parameters[..., 1].exp()
    cos, sin = scale * parameters[..., 0].cos(), scale * parameters[..., 0].sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def _rotate(linear: Tensor, from_centre_px: Tensor) -> Tensor:
    """Return points (N,S,2), relative to the centre, rotated and scaled by angles and log scales (N,L,2): (N,S,L,2)."""
    of_x, of_y = _linear(linear)[:, None].unbind(-1)  # (N,1,L,2): the columns
    x, y = from_centre_px[:, :, None, :1], from_centre_px[:, :, None, 1:]
    return x * of_x + y * of_y  # elementwise: products of such small matrices are slow


def _affine(parameters: Tensor, centre_px: Tensor) -> Tensor:
    """Return the similarities (N,3,3) of parameters (N,4)."""
    affine = torch.eye(3, device=parameters.device).repeat(len(parameters), 1, 1)
    affine[:, :2, :2] = linear = _linear(parameters)
    affine[:, :2, 2] = parameters[:, 2:] - (linear * centre_px[:, None]).sum(2)
    return affine


def _sample(maps: Tensor, targets: Tensor) -> Tensor:
    """Return the values (N,S,K) of maps (N,S,g,g), one per point, at targets (N,S,K,2); bilinear, 0 outside.

    The centres of a map's outer cells have the coordinates -1 and 1.
    """
    pairs, points, height, width = maps.shape
    grid = targets.reshape(pairs * points, -1, 1, 2)
    found = F.grid_sample(maps.reshape(-1, 1, height, width), grid, padding_mode="zeros", align_corners=True)
    return found.view(pairs, points, -1)
