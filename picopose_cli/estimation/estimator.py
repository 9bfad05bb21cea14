"""The estimator: the network and the templates of the onboarded objects on one device, no files.

A QueryBatch goes in, hypotheses come out; `solve` turns the hypotheses of one detection into its pose.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picopose_cli.crops import normalise_bgr
from picopose_cli.estimation.correspondences import (
    affine_poses,
    cell_centre_points,
    refined_pairs,
    released_pairs,
)
from picopose_cli.estimation.pnp import choose_refined, choose_released, solve_refined, solve_released
from picopose_cli.geometry import Floats, apply_affine, project_points
from picopose_cli.network.matching import best_views, masks_on_grid, template_scores, unit_cells
from picopose_cli.network.offsets import OffsetFeatures
from picopose_cli.network.picopose import PicoPose
from picopose_cli.structs import Correspondences, QueryBatch, TemplateBank

TEMPLATE_CHUNK = 16
"""Template views that go through the backbone at once."""
PAIR_CHUNK = 40
"""Hypotheses whose flow is held at once; the network itself takes a few of them at a time."""
KEPT_VIEWS = 256
"""Template views whose offset features are kept, 5.5 MB each in fp32 for the released sizes."""


@dataclass(frozen=True)
class Hypothesis:
    """One template tried for one detection.

    `view` indexes the bank's views, `score` is the template's matching score, `T_stage2` (4,4) metres the pose that the
    affine alone implies, `pairs` what goes to PnP.
    """

    view: int
    score: float
    T_stage2: Floats
    pairs: Correspondences


@dataclass(frozen=True)
class _ObjectFeatures:
    """An onboarded object on the device; P = 256 cells of the matching grid (16x16).

    `cells` (V,P,C) f32 unit cells, `maps` (V,C,16,16) the last three, all that stage 3 reads, `masks` (V,16,16),
    `origins` (V,2) crop px of the projected object origin.
    """

    bank: TemplateBank
    cells: Tensor
    maps: tuple[Tensor, ...]
    masks: Tensor
    origins: Tensor


@dataclass(frozen=True)
class _Pair:
    """A hypothesis on its way: detection index in the batch, object, view, matching score."""

    query: int
    obj_id: int
    view: int
    score: float


class Estimator:
    """Network and onboarded objects on a device; see the module's text.

    `precision` fp32 or bf16 (the network under autocast; geometry stays fp32 and, on the host, fp64). `paper` selects
    the released rules for pairs, solver and choice.
    """

    def __init__(self, network: PicoPose, *, device: str, precision: str, hypotheses: int, paper: bool) -> None:
        self._network = network
        self._device = torch.device(device)
        self._bf16 = precision == "bf16"
        self._hypotheses = hypotheses
        self._paper = paper
        self._objects: dict[int, _ObjectFeatures] = {}
        self._kept: OrderedDict[tuple[int, int], OffsetFeatures] = OrderedDict()

    def add_object(self, bank: TemplateBank, on_views: Callable[[int], None] | None = None) -> None:
        """Compute the template features of a bank once; `on_views` hears how many views were done."""
        views = len(bank.crops_rgb)
        maps: tuple[Tensor, ...] = ()
        with self._arithmetic():
            for start in range(0, views, TEMPLATE_CHUNK):
                part = slice(start, start + TEMPLATE_CHUNK)
                chunk = self._network.extract(self._tensor(normalise_bgr(bank.crops_rgb[part])))[1:]
                maps = maps or tuple(level.new_empty(views, *level.shape[1:]) for level in chunk)
                for level, values in zip(maps, chunk, strict=True):
                    level[part] = values
                if on_views is not None:
                    on_views(len(chunk[0]))
            cells = unit_cells(maps[-1])
        origins = apply_affine(bank.A_crop_from_image, project_points(bank.K, bank.T_tmpl_from_obj[:, None, :3, 3]))
        self._objects[bank.obj_id] = _ObjectFeatures(
            bank, cells, maps, self._grid_masks(bank.masks), self._tensor(origins[:, 0].astype(np.float32))
        )

    def hypotheses(self, batch: QueryBatch) -> list[tuple[Hypothesis, ...]]:
        """Return the hypotheses of each detection, best matching template first.

        Every object of the batch must have been added. The device is synchronised on return.
        """
        results: list[list[Hypothesis]] = [[] for _ in batch.obj_ids]
        with self._arithmetic():
            maps = self._network.extract(self._tensor(batch.inputs))
            cells, features = unit_cells(maps[-1]), self._network.offset_features(maps)
            pairs = self._match(batch, cells)
            for start in range(0, len(pairs), PAIR_CHUNK):
                chunk = pairs[start : start + PAIR_CHUNK]
                for pair, hypothesis in zip(chunk, self._regress(batch, chunk, cells, features), strict=True):
                    results[pair.query].append(hypothesis)
        return [tuple(of_query) for of_query in results]

    def solve(self, hypotheses: Sequence[Hypothesis], K: Floats) -> Floats:
        """Return T_cam_from_obj (4,4) of a detection from its hypotheses and its image's K (3,3); thread-safe."""
        solve, choose = (solve_released, choose_released) if self._paper else (solve_refined, choose_refined)
        solutions = [solve(hypothesis.pairs, K) for hypothesis in hypotheses]
        return choose(solutions, np.stack([hypothesis.T_stage2 for hypothesis in hypotheses]))

    def _match(self, batch: QueryBatch, cells: Tensor) -> list[_Pair]:
        """Choose the templates of each detection; the detections of one object share a matrix product."""
        masks = self._grid_masks(batch.masks)
        pairs: list[_Pair] = []
        for obj_id in np.unique(batch.obj_ids).tolist():
            rows = np.flatnonzero(batch.obj_ids == obj_id).tolist()
            scores = template_scores(cells[rows], masks[rows], self._objects[obj_id].cells)
            best, views = best_views(scores, self._hypotheses)
            for row, of_row, views_of_row in zip(rows, best.tolist(), views.tolist(), strict=True):
                pairs += [_Pair(row, obj_id, *choice) for choice in zip(views_of_row, of_row, strict=True)]
        return sorted(pairs, key=lambda pair: pair.query)  # stable: the order of the scores stays

    def _regress(
        self, batch: QueryBatch, pairs: list[_Pair], query_cells: Tensor, query_features: OffsetFeatures
    ) -> list[Hypothesis]:
        """Run stages 2 and 3 on some pairs."""
        queries = [pair.query for pair in pairs]
        chosen = [(self._objects[pair.obj_id], pair.view) for pair in pairs]
        template_cells = torch.stack([features.cells[view] for features, view in chosen])
        masks = torch.stack([features.masks[view] for features, view in chosen])
        origins = torch.stack([features.origins[view] for features, view in chosen])
        affine = self._network.regress_affine(query_cells[queries], template_cells, masks, origins)
        template_features, places = self._template_features(pairs)
        index = torch.tensor([queries, places], device=self._device).T
        offsets = self._network.regress_offsets(query_features, template_features, index, affine.A_obs_from_tmpl, masks)
        return self._read_hypotheses(
            batch,
            pairs,
            affine.A_obs_from_tmpl.double().cpu().numpy(),
            offsets.flows[-1].cpu().numpy(),
            offsets.certainty_logits[-1][:, 0].cpu().numpy(),
        )

    def _template_features(self, pairs: list[_Pair]) -> tuple[OffsetFeatures, list[int]]:
        """Return the offset features of the distinct templates of some pairs, and each pair's place among them."""
        keys = [(pair.obj_id, pair.view) for pair in pairs]
        distinct = list(dict.fromkeys(keys))
        missing = [key for key in distinct if key not in self._kept]
        for start in range(0, len(missing), TEMPLATE_CHUNK):
            part = missing[start : start + TEMPLATE_CHUNK]
            maps = [
                torch.stack([self._objects[obj_id].maps[level][view] for obj_id, view in part]) for level in range(3)
            ]
            features = self._network.offset_features(tuple(maps))
            self._kept.update({key: tuple(level[i].clone() for level in features) for i, key in enumerate(part)})
        for key in distinct:
            self._kept.move_to_end(key)
        stacked = tuple(torch.stack([self._kept[key][level] for key in distinct]) for level in range(3))
        while len(self._kept) > KEPT_VIEWS:
            self._kept.popitem(last=False)
        place = {key: i for i, key in enumerate(distinct)}
        return stacked, [place[key] for key in keys]

    def _read_hypotheses(
        self, batch: QueryBatch, pairs: list[_Pair], A: Floats, flow: Floats, logit: Floats
    ) -> list[Hypothesis]:
        banks = [self._objects[pair.obj_id].bank for pair in pairs]
        queries = [pair.query for pair in pairs]
        poses = affine_poses(
            A,
            batch.A_crop_from_image[queries],
            np.stack([bank.A_crop_from_image[pair.view] for bank, pair in zip(banks, pairs, strict=True)]),
            batch.K[queries],
            np.stack([bank.K for bank in banks]),
            np.stack([bank.T_tmpl_from_obj[pair.view] for bank, pair in zip(banks, pairs, strict=True)]),
        )
        return [
            Hypothesis(
                pair.view,
                pair.score,
                poses[i],
                self._pairs(bank, pair.view, flow[i], logit[i], batch.A_crop_from_image[pair.query]),
            )
            for i, (pair, bank) in enumerate(zip(pairs, banks, strict=True))
        ]

    def _pairs(self, bank: TemplateBank, view: int, flow: Floats, logit: Floats, A_crop: Floats) -> Correspondences:
        if self._paper:
            return released_pairs(flow, logit, bank.xyz_obj_m[view], A_crop)
        depth = bank.depth_centre_m[view]
        xyz = cell_centre_points(depth, bank.K, bank.A_crop_from_image[view], bank.T_tmpl_from_obj[view])
        return refined_pairs(flow, logit, xyz, depth > 0, A_crop)

    def _grid_masks(self, masks: Floats) -> Tensor:
        return masks_on_grid(self._tensor(masks), self._network.config.grid)

    def _tensor(self, array: Floats) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """No gradients; bf16 where asked for, and otherwise true fp32: cuDNN would round to TF32 by default."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16))
            if self._device.type == "cuda":
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=self._bf16))
            yield
