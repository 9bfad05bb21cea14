"""The order of work of the released PicoPose, slow and plain: the reference for the tool's speed and results.

Four detections of one image at a time, in f32. Only the template features that choose the views are stored; for every
hypothesis the chosen templates go through the backbone and the DPT head again, and the observations through the DPT
head again. The network's functions are those of the package, so that results can be compared number by number, but
the correlation volume is always computed, as in the released code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor

from picopose_cli.network import correlation
from picopose_cli.network.affine import AffineEstimate
from picopose_cli.network.matching import best_views, masks_on_grid, template_scores, unit_cells
from picopose_cli.network.offsets import OffsetEstimate
from picopose_cli.network.picopose import PicoPose
from picopose_cli.network.vit import FeatureMaps

BATCH_SIZE = 4
HYPOTHESES = 5


@dataclass(frozen=True)
class ReleasedTemplates:
    """An object's templates.

    `inputs` (V,3,S,S) normalised BGR; `masks` (V,g,g); `cells` (V,P,C) unit cells; `origins` (V,2) crop px of the
    projected object origin.
    """

    inputs: Tensor
    masks: Tensor
    cells: Tensor
    origins: Tensor


@dataclass(frozen=True)
class ReleasedHypothesis:
    """The k-th best template of B detections: `views` (B,), their `scores` (B,), and the results of stages 2 and 3."""

    views: Tensor
    scores: Tensor
    affine: AffineEstimate
    offsets: OffsetEstimate


def _never(*_: object) -> bool:
    return False


@contextmanager
def whole_volume() -> Iterator[None]:
    """Compute the whole correlation volume."""
    with patch.object(correlation, "_gathers_features", _never):
        yield


@torch.inference_mode()
@whole_volume()
def onboard(network: PicoPose, inputs: Tensor, masks: Tensor, origins: Tensor) -> ReleasedTemplates:
    """Compute the features of stage 1 of an object: inputs (V,3,S,S), masks (V,S,S), origins (V,2) crop px."""
    cells = [unit_cells(network.extract(chunk)[-1]) for chunk in torch.split(inputs, BATCH_SIZE)]
    return ReleasedTemplates(inputs, masks_on_grid(masks, network.config.grid), torch.cat(cells), origins)


@torch.inference_mode()
@whole_volume()
def released_hypotheses(
    network: PicoPose, query_inputs: Tensor, query_masks: Tensor, templates: Sequence[ReleasedTemplates]
) -> list[ReleasedHypothesis]:
    """Return the hypotheses of a batch, best template first.

    `query_inputs` (B,3,S,S) and `query_masks` (B,S,S) of at most BATCH_SIZE detections of one image; `templates`: of
    the object of each detection.
    """
    maps = network.extract(query_inputs)
    cells = unit_cells(maps[-1])
    masks = masks_on_grid(query_masks, network.config.grid)
    choices = [
        best_views(template_scores(cells[row : row + 1], masks[row : row + 1], of_object.cells), HYPOTHESES)
        for row, of_object in enumerate(templates)
    ]
    scores, views = (torch.cat(parts) for parts in zip(*choices, strict=True))  # (B,H) each
    return [
        _released_hypothesis(network, maps, templates, views[:, rank], scores[:, rank])
        for rank in range(views.shape[1])
    ]


def _released_hypothesis(
    network: PicoPose, query_maps: FeatureMaps, templates: Sequence[ReleasedTemplates], views: Tensor, scores: Tensor
) -> ReleasedHypothesis:
    chosen = list(zip(templates, views.tolist(), strict=True))
    inputs = torch.stack([of_object.inputs[view] for of_object, view in chosen])
    masks = torch.stack([of_object.masks[view] for of_object, view in chosen])
    origins = torch.stack([of_object.origins[view] for of_object, view in chosen])
    maps = network.extract(inputs)
    affine = network.regress_affine(unit_cells(query_maps[-1]), unit_cells(maps[-1]), masks, origins)
    offsets = network.regress_offsets(
        network.offset_features(query_maps),
        network.offset_features(maps),
        torch.arange(len(views), device=views.device)[:, None].expand(-1, 2),
        affine.A_obs_from_tmpl,
        masks,
        pairs_at_a_time=BATCH_SIZE,
    )
    return ReleasedHypothesis(views, scores, affine, offsets)
