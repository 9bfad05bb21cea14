"""Losses of a batch of pairs as in the released training (paper section 3.5), without the sign error of its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from picopose_cli.network.affine import AffineEstimate, compose_affine
from picopose_cli.network.config import LEVELS
from picopose_cli.network.matching import masks_on_grid, unit_cells
from picopose_cli.network.offsets import OffsetEstimate
from picopose_cli.network.picopose import PicoPose
from picopose_cli.network.vit import FeatureMaps
from picopose_cli.training.augment import rotate_observations
from picopose_cli.training.batches import PairBatch, network_inputs
from picopose_cli.training.recipes import LossWeights, Recipe
from picopose_cli.training.supervision import TrueAffine, TrueFlow, true_affine, true_flow

TEMPERATURE = 0.1
MAX_POSITIVES, MAX_POSITIVES_ON_CPU = 8192, 2048
"""Largest number of positive cell pairs of a batch in the matching loss, whose similarity matrix is square in it."""
# Ranges of the standard deviations of the errors that stage 3 is trained with.
SCALE_SIGMA = (0.01, 0.2)
ROTATION_SIGMA_RAD = (math.radians(1), math.radians(15))
TRANSLATION_SIGMA_PX = (2.0, 20.0)
_MIN_SCALE = 0.1
"""Below it the logarithm is continued as its tangent: an untrained network may predict a negative scale."""

LossTerms = dict[str, Tensor]
"""Scalars by name: `total`, and each term without its weight."""


@dataclass(frozen=True)
class RandomDraws:
    """The random numbers of one batch of B pairs, drawn in advance so that the losses are a deterministic function.

    `noise` (B,4) normal and `strength` (B,3) in [0, 1) perturb the similarity that stage 3 starts from; `choice` (B,P)
    in [0, 1) selects the cells of the matching loss; `roll_rad` (B,) rotates the observation in the image plane.
    """

    noise: Tensor
    strength: Tensor
    choice: Tensor
    roll_rad: Tensor

    def to(self, device: torch.device) -> RandomDraws:
        """Return the draws on a device."""
        return RandomDraws(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def sample_draws(count: int, cells: int, max_roll_rad: float, generator: torch.Generator) -> RandomDraws:
    """Return random numbers for `count` pairs with `cells` cells each, rotations within +/- `max_roll_rad`."""
    return RandomDraws(
        torch.randn(count, 4, generator=generator),
        torch.rand(count, 3, generator=generator),
        torch.rand(count, cells, generator=generator),
        (2 * torch.rand(count, generator=generator) - 1) * max_roll_rad,
    )


class PairLosses(nn.Module):
    """The network with its losses, as one module that can be replicated on several devices."""

    def __init__(self, network: PicoPose, recipe: Recipe, *, rotate: bool) -> None:
        super().__init__()
        self.network = network
        self._recipe = recipe
        self._rotate = rotate

    def forward(self, batch: PairBatch, draws: RandomDraws, levels: int = LEVELS) -> LossTerms:
        """Return the losses of a batch on the network's device, with stage 3 on its first `levels` grids."""
        if self._rotate:
            rotated = rotate_observations(batch.observation, draws.roll_rad)
            batch = PairBatch(rotated, batch.template, batch.diameter_m)
        network, count = self.network, len(batch)
        affine_truth = true_affine(batch.observation, batch.template)
        flow_truth = true_flow(batch, network.config.flow_grids[:levels])
        maps = network.extract(
            torch.cat([network_inputs(batch.observation.crops_rgb), network_inputs(batch.template.crops_rgb)])
        )
        query_cells, template_cells = torch.split(unit_cells(maps[-1]), count)
        masks = masks_on_grid(batch.template.masks, network.config.grid)
        affine = network.regress_affine(query_cells, template_cells, masks, affine_truth.origin_tmpl_crop)
        first = max(1, round(self._recipe.offset_share * count))  # the order is random, so any pairs will do
        start = perturbed_affine(affine_truth, draws)[:first]
        offsets = self._regress_offsets(maps, count, start, masks[:first], levels)
        terms = {"matching": matching_loss(query_cells, template_cells, flow_truth[0], draws.choice)}
        terms |= affine_losses(affine, affine_truth, network.config.vit.patch_px)
        terms |= offset_losses(offsets, tuple(TrueFlow(t.flow[:first], t.valid[:first]) for t in flow_truth))
        return {"total": weighted_sum(terms, self._recipe.losses)} | terms

    def _regress_offsets(
        self, maps: FeatureMaps, count: int, start: Tensor, masks: Tensor, levels: int
    ) -> OffsetEstimate:
        """Return the offsets of the first N pairs, from feature maps of `count` observations, then the templates.

        `start` (N,3,3) is the similarity that stage 3 starts from, `masks` (N,g,g) are the templates' masks.
        """
        first = len(start)
        features = self.network.offset_features(tuple(torch.cat([m[:first], m[count : count + first]]) for m in maps))
        query, template = (tuple(level[half] for level in features) for half in (slice(first), slice(first, None)))
        pairs = torch.arange(first, device=masks.device)[:, None].expand(-1, 2)
        return self.network.regress_offsets(query, template, pairs, start, masks, pairs_at_a_time=first, levels=levels)


def weighted_sum(terms: LossTerms, weights: LossWeights) -> Tensor:
    """Return the sum of all terms with the weights of their kinds; the kind of `flow_16` is `flow`."""
    return torch.stack([getattr(weights, name.split("_")[0]) * value for name, value in terms.items()]).sum()


def matching_loss(query_cells: Tensor, template_cells: Tensor, truth: TrueFlow, choice: Tensor) -> Tensor:
    """Return InfoNCE from template cells to observation cells (B,P,C) of length 1.

    The positive of a valid template cell is the observation cell that contains its true position; its negatives are
    the positives of all others in the batch. Of more than `MAX_POSITIVES` cells, those with the greatest `choice` (B,P)
    are used.
    """
    batch, cells, width = query_cells.shape
    grid = truth.flow.shape[-1]
    rows, cols = torch.arange(grid, device=choice.device)[:, None], torch.arange(grid, device=choice.device)
    target_col = (truth.flow[:, 0] + cols).floor().clamp(0, grid - 1).long()
    target_row = (truth.flow[:, 1] + rows).floor().clamp(0, grid - 1).long()
    target = (target_row * grid + target_col).flatten(1)  # (B,P)
    # A fixed number per pair keeps the shapes constant, so that host and device need not synchronise.
    limit = MAX_POSITIVES_ON_CPU if choice.device.type == "cpu" else MAX_POSITIVES
    taken = min(cells, max(1, limit // batch))
    rank, chosen = torch.where(truth.valid.flatten(1), choice, -1.0).topk(taken, dim=1)
    used = (rank >= 0).flatten()  # (N,)
    target = target.gather(1, chosen)
    anchors = template_cells.gather(1, chosen[..., None].expand(-1, -1, width)).reshape(-1, width)
    positives = query_cells.gather(1, target[..., None].expand(-1, -1, width)).reshape(-1, width)
    place = (target + cells * torch.arange(batch, device=target.device)[:, None]).flatten()
    with torch.autocast(anchors.device.type, enabled=False):
        logits = anchors.float() @ positives.float().T / TEMPERATURE
    # The same observation cell of another anchor is not a negative, nor is the positive of an unused anchor.
    excluded = (place[:, None] == place) | ~used
    excluded.fill_diagonal_(False)
    loss = torch.logsumexp(logits.masked_fill(excluded, -torch.inf), 1) - logits.diagonal()
    return (loss * used).sum() / used.sum().clamp(min=1)


def affine_losses(estimate: AffineEstimate, truth: TrueAffine, patch_px: int) -> LossTerms:
    """Return the losses of stage 2: L1 of the translation in cells, squared log-scale error, in-plane angle (rad)."""
    return {
        "translation": (estimate.translation_cells - truth.translation_px / patch_px).abs().mean(),
        "scale": (safe_log(estimate.scale) - truth.scale.log()).square().mean(),
        "inplane": angle_between(estimate.cos_sin, truth.cos_sin).mean(),
    }


def safe_log(scale: Tensor) -> Tensor:
    """Return the logarithm, below `_MIN_SCALE` its tangent."""
    return torch.where(
        scale > _MIN_SCALE,
        scale.clamp(min=_MIN_SCALE).log(),
        math.log(_MIN_SCALE) + scale / _MIN_SCALE - 1,
    )


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Return the angle (N,) rad between unit vectors (N,2): acos of their product, with finite gradients."""
    cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return torch.atan2(cross.abs(), (a * b).sum(1))


def offset_losses(estimate: OffsetEstimate, truth: tuple[TrueFlow, ...]) -> LossTerms:
    """Return the losses of stage 3 per level: cross entropy of the certainty, L1 of the flow in valid cells."""
    terms: LossTerms = {}
    for flow, logits, level in zip(estimate.flows, estimate.certainty_logits, truth, strict=True):
        grid = flow.shape[-1]
        valid = level.valid[:, None].float()
        terms[f"certainty_{grid}"] = F.binary_cross_entropy_with_logits(logits.float(), valid)
        error = (flow - level.flow).abs() * valid
        terms[f"flow_{grid}"] = error.sum() / (2 * valid.sum()).clamp(min=1)
    return terms


def perturbed_affine(truth: TrueAffine, draws: RandomDraws) -> Tensor:
    """Return the true similarity (N,3,3) in crop px with random errors like those of stage 2, as input of stage 3."""
    scale_sigma, rotation_sigma, translation_sigma = (
        low + (high - low) * draws.strength[:, i]
        for i, (low, high) in enumerate((SCALE_SIGMA, ROTATION_SIGMA_RAD, TRANSLATION_SIGMA_PX))
    )
    angle = truth.angle_rad + rotation_sigma * draws.noise[:, 1]
    return compose_affine(
        truth.translation_px + translation_sigma[:, None] * draws.noise[:, 2:],
        truth.scale * (scale_sigma * draws.noise[:, 0]).exp(),
        torch.stack([angle.cos(), angle.sin()], 1),
        truth.origin_tmpl_crop,
    )
