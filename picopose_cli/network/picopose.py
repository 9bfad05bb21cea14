"""The whole network: its stages, and what detections and hypotheses can share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from picopose_cli.network.affine import AffineEstimate, AffineRegressor, compose_affine
from picopose_cli.network.config import LEVELS, ModelConfig
from picopose_cli.network.matching import similarity_volume
from picopose_cli.network.offsets import OffsetEstimate, OffsetFeatures, OffsetRegressor, start_offsets
from picopose_cli.network.vit import DinoV2, FeatureMaps

_PAIRS_ON_CPU = 4
"""Pairs in a batch of stage 3: few enough for the caches."""
_PAIRS_ON_DEVICE = 16


class FeatureExtractor(nn.Module):
    """The backbone under the name of the released file."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dinov2 = DinoV2(config.vit)


class PicoPose(nn.Module):
    """PicoPose (arXiv 2504.02617).

    Each image, observation or template, is encoded once: `extract` returns its maps; `unit_cells` of the last map are
    matched in stage 1, `offset_features` of all maps are the input of stage 3. A pair (an observation and a template of
    its object) then needs `regress_affine` and `regress_offsets` only. The methods keep no state.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor = FeatureExtractor(config)
        self.affine_regressor = AffineRegressor(config)
        self.offset_regressor = OffsetRegressor(config)

    def extract(self, inputs: Tensor) -> FeatureMaps:
        """Return the four feature maps (B,C,g,g) of normalised BGR crops (B,3,S,S)."""
        maps: FeatureMaps = self.feature_extractor.dinov2(inputs)
        return maps

    def decode(self, maps: FeatureMaps) -> tuple[Tensor, ...]:
        """Return the DPT features (B,D,g,g), (B,D,2g,2g), (B,D,4g,4g) from all maps of B images, or the last three."""
        decoded: tuple[Tensor, ...] = self.offset_regressor.dpt_head(maps)
        return decoded

    def offset_features(self, maps: FeatureMaps) -> OffsetFeatures:
        """Return the projected DPT features of B images, the input of stage 3, from all maps or the last three."""
        return self.offset_regressor.flow_decoder.project(self.decode(maps))

    def regress_affine(
        self, query_cells: Tensor, template_cells: Tensor, template_masks: Tensor, origin_tmpl_crop: Tensor
    ) -> AffineEstimate:
        """Estimate the 2D similarity of N pairs (stage 2).

        `query_cells` (N,P,C), or (1,P,C) of all pairs, and `template_cells` (N,P,C): unit cells; `template_masks`
        (N,g,g) nonzero inside, `origin_tmpl_crop` (N,2) px: the object's origin in the template's crop.
        """
        volume = similarity_volume(query_cells, template_cells, template_masks)
        translation_cells, scale, cos_sin = self.affine_regressor(volume)
        translation_px = self.config.vit.patch_px * translation_cells
        affine = compose_affine(translation_px, scale, cos_sin, origin_tmpl_crop.float())
        return AffineEstimate(translation_cells, scale, cos_sin, affine)

    def regress_offsets(
        self,
        query: OffsetFeatures,
        template: OffsetFeatures,
        pairs: Tensor,
        A_obs_from_tmpl: Tensor,
        template_masks: Tensor,
        *,
        pairs_at_a_time: int | None = None,
        levels: int = LEVELS,
    ) -> OffsetEstimate:
        """Estimate flow and certainty of N pairs (stage 3).

        `query` and `template` are `offset_features` of any number of images; `pairs` (N,2) int64 on the features'
        device are the indices (query, template) of each pair, so that shared features are stored once;
        `A_obs_from_tmpl` (N,3,3) crop px; `template_masks` (N,g,g), nonzero inside. `pairs_at_a_time` (default: 4 on
        the CPU, 16 on a GPU) bounds the memory: four pairs take about 500 MB at the released sizes. `levels`: number
        of grids, coarsest first.
        """
        step = pairs_at_a_time or (_PAIRS_ON_CPU if pairs.device.type == "cpu" else _PAIRS_ON_DEVICE)
        flow, logits = start_offsets(A_obs_from_tmpl.float(), template_masks, self.config.vit.patch_px)
        decoder = self.offset_regressor.flow_decoder
        parts: list[OffsetEstimate] = []
        for start in range(0, len(pairs), step):
            part = slice(start, start + step)
            of_query, of_template = pairs[part].unbind(1)
            gathered_query = [_gathered(features, of_query) for features in query]
            gathered_template = [_gathered(features, of_template) for features in template]
            parts.append(decoder(gathered_query, gathered_template, flow[part], logits[part], levels))
        return _joined(parts, self.config.flow_grids[:levels], flow.device)


def _gathered(features: Tensor, index: Tensor) -> Tensor:
    """Return the features of some images; for inference in channels-last layout, which the following layers need."""
    layout = torch.contiguous_format if torch.is_grad_enabled() else torch.channels_last
    return features[index].contiguous(memory_format=layout)


def store_in_bf16(network: PicoPose) -> PicoPose:
    """Store the matrices and kernels of stages 1 and 3 in bf16, in place; autocast then need not convert them.

    Norms and stage 2, on whose few outputs every pose depends, stay f32.
    """
    for part in (network.feature_extractor, network.offset_regressor):
        for module in part.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                module.to(torch.bfloat16)
    return network


def _joined(parts: list[OffsetEstimate], grids: tuple[int, ...], device: torch.device) -> OffsetEstimate:
    """Return the parts as one estimate; an empty one without pairs."""
    flows = [torch.zeros(0, 2, grid, grid, device=device) for grid in grids]
    logits = [torch.zeros(0, 1, grid, grid, device=device) for grid in grids]
    for level in range(len(grids)):
        flows[level] = torch.cat([flows[level], *(part.flows[level] for part in parts)])
        logits[level] = torch.cat([logits[level], *(part.certainty_logits[level] for part in parts)])
    return OffsetEstimate(tuple(flows), tuple(logits))
