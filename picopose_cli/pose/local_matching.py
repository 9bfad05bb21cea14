"""Correspondences of a render and a photograph by local features: XFeat's cells within a window, and LighterGlue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from picopose_cli.base.types import Array
from picopose_cli.network.local_features import CELL_PX, Keypoints
from picopose_cli.network.local_matcher import LocalMatcher

KEYPOINTS = 256
"""Keypoints of an image that LighterGlue matches."""
WINDOW = 0.15
"""Cells are compared with those within this share of the side, along both axes."""
TEMPERATURE = 0.1
"""Of the softmax over a window."""
MIN_CERTAINTY = 0.2
"""Share of the softmax within 3 x 3 cells around the best one."""
MUTUAL_CELLS = 1.5
"""A cell and the best match of its best match are at most so far from each other."""
_BLOCK_ROWS = 4
"""Rows of cells that are compared at once."""
_MIN_CELLS = 6


@dataclass(frozen=True)
class LocalFeatures:
    """XFeat's features of an image: `cells` (64,G,G) and keypoints, on the matcher's device."""

    cells: Tensor
    keypoints: Keypoints
    side_px: int


def local_features(matcher: LocalMatcher, image_rgb: Array, mask: Array | None = None) -> LocalFeatures:
    """Return the features of an image (S,S,3) u8, S a multiple of 32; keypoints only inside `mask` (S,S) bool."""
    device = matcher.device
    with torch.inference_mode():
        image = torch.from_numpy(np.ascontiguousarray(image_rgb)).to(device).permute(2, 0, 1)[None] / 255
        dense = matcher.features.dense(image)
        inside = None if mask is None else torch.from_numpy(mask).to(device)
        keypoints = matcher.features.keypoints(dense, 0, inside, limit=KEYPOINTS)
        return LocalFeatures(dense.descriptors[0], keypoints, len(image_rgb))


def glue_pairs(matcher: LocalMatcher, render: LocalFeatures, photo: LocalFeatures) -> tuple[Array, Array, Array]:
    """Return LighterGlue's matches: positions (N,2) in both images, px, and probabilities (N,)."""
    with torch.inference_mode():
        sizes = [(features.side_px, features.side_px) for features in (render, photo)]
        index, scores = matcher.lightglue.match(render.keypoints, sizes[0], photo.keypoints, sizes[1])
        xy_render, xy_photo = render.keypoints.xy[index[:, 0]], photo.keypoints.xy[index[:, 1]]
    return _host(xy_render), _host(xy_photo), _host(scores)


def cell_pairs(render: LocalFeatures, photo: LocalFeatures, inside: Array) -> tuple[Array, Array, Array]:
    """Return mutual matches of cells: centres in the render (N,2), positions in the photograph (N,2) px, certainty.

    `inside` (G,G) bool: cells of the render that show the object. A position is the mean, by match probability, of the
    3 x 3 cells around the best one; the certainty (N,) is their share of the probability within the window.
    """
    with torch.inference_mode():
        found = _match_cells(render.cells, photo.cells, torch.from_numpy(inside).to(render.cells.device))
    return (_host(found[0]) * CELL_PX, _host(found[1]) * CELL_PX, _host(found[2]))


def _host(values: Tensor) -> Array:
    return values.cpu().numpy().astype(np.float64)


def _match_cells(render: Tensor, photo: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return centres (N,2), targets (N,2), both in cells, and certainties (N,) of cells (64,G,G)."""
    side, device = render.shape[-1], render.device
    if int(inside.sum()) < _MIN_CELLS:
        return torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0)
    mean = render[:, inside].mean(dim=1)[:, None, None]  # common to the object: says nothing about the place on it
    render, photo = (F.normalize(cells - mean, dim=0).permute(1, 2, 0) for cells in (render, photo))
    radius = int(np.ceil(WINDOW * side))
    position = torch.arange(side, device=device) + 0.5
    centres = torch.stack(torch.meshgrid(position, position, indexing="xy"), dim=-1)  # (G,G,2)
    best_score = torch.full((side * side,), -2.0, device=device)  # of each cell of the photograph
    best_source = torch.zeros(side * side, dtype=torch.int64, device=device)
    parts, count = [], 0
    for row in range(0, side, _BLOCK_ROWS):
        rows = slice(row, row + _BLOCK_ROWS)
        block = inside[rows]
        if not bool(block.any()):
            continue
        cols = block.any(dim=0).nonzero()[:, 0]
        window = (
            slice(max(row - radius, 0), row + _BLOCK_ROWS + radius),
            slice(max(int(cols[0]) - radius, 0), int(cols[-1]) + 1 + radius),
        )
        found = _Block(render[rows][block], centres[rows][block], photo[window], centres[window])
        similarity = found.similarity(radius)
        parts.append(found.targets(similarity))
        cell = (found.targets_xy[:, 1].floor() * side + found.targets_xy[:, 0].floor()).long()
        score, source = similarity.max(dim=0)
        better = score > best_score[cell]
        best_score[cell[better]], best_source[cell[better]] = score[better], source[better] + count
        count += len(similarity)
    start, target, certainty, best_cell = (torch.cat(values) for values in zip(*parts, strict=True))
    source = best_source[(best_cell[:, 1].floor() * side + best_cell[:, 0].floor()).long()]
    kept = (certainty > MIN_CERTAINTY) & ((start[source] - start).abs().amax(dim=1) <= MUTUAL_CELLS)
    return start[kept], target[kept], certainty[kept]


class _Block:
    """Some cells of the render (M,64) at `start_xy` (M,2), and a window (h,w,64) of the photograph's."""

    def __init__(self, cells: Tensor, start_xy: Tensor, window: Tensor, window_xy: Tensor) -> None:
        self._cells, self._start_xy = cells, start_xy
        self._height, self._width = window.shape[:2]
        self._window = window.reshape(-1, window.shape[-1])
        self.targets_xy = window_xy.reshape(-1, 2)

    def similarity(self, radius: int) -> Tensor:
        """Return the similarities (M,h*w), -2 outside of each cell's own window."""
        far = (self._start_xy[:, None] - self.targets_xy[None]).abs().amax(dim=-1) > radius
        return (self._cells @ self._window.T).masked_fill_(far, -2.0)

    def targets(self, similarity: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return starts (M,2), mean targets (M,2), certainties (M,) and the centres (M,2) of the best cells."""
        best, index = similarity.max(dim=1)
        total = ((similarity - best[:, None]) / TEMPERATURE).exp().sum(dim=1)
        step = torch.arange(-1, 2, device=similarity.device)
        rows = (index // self._width)[:, None] + step.repeat_interleave(3)
        cols = (index % self._width)[:, None] + step.repeat(3)
        is_cell = (rows >= 0) & (rows < self._height) & (cols >= 0) & (cols < self._width)
        near = (rows * self._width + cols).clamp(0, similarity.shape[1] - 1)
        weight = ((similarity.gather(1, near) - best[:, None]) / TEMPERATURE).exp() * is_cell  # (M,9)
        around = weight.sum(dim=1)
        target = (weight[..., None] * self.targets_xy[near]).sum(dim=1) / around[:, None]
        return self._start_xy, target, around / total, self.targets_xy[index]
