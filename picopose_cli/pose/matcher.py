"""Stages 1-3: from crops of detections to correspondences with their objects' templates, no files."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from picopose_cli.base.geometry import move_origin
from picopose_cli.base.types import Array, QueryBatch
from picopose_cli.network.devices import split_on_oom, thread_count
from picopose_cli.network.matching import best_views, template_scores
from picopose_cli.network.offsets import OffsetFeatures
from picopose_cli.pose.affine_search import Round, search_affine
from picopose_cli.pose.correspondences import affine_poses
from picopose_cli.pose.inference_network import InferenceNetwork
from picopose_cli.pose.rules import Hypothesis, Rules
from picopose_cli.pose.template_store import TemplateStore

PAIR_CHUNK = 40
"""Pairs whose similarity is regressed or whose flow is held at once; stage 3 itself takes a few of them at a time."""


BatchHypotheses = tuple[tuple[Hypothesis, ...], ...]
"""The hypotheses of each detection of a batch, best first."""


@dataclass(frozen=True)
class _Pair:
    """A detection and a template of its object: index in the batch, object, view, matching score."""

    query: int
    obj_id: int
    view: int
    score: float

    @property
    def template(self) -> tuple[int, int]:
        """Object and view."""
        return self.obj_id, self.view


@dataclass(frozen=True)
class _Aligned:
    """N pairs of one detection after stage 2, on the device.

    `index` (N,) of the pairs in a list, `A_obs_from_tmpl` (N,3,3) crop px, `alignment` (N,) (1: not searched).
    """

    index: Tensor
    A_obs_from_tmpl: Tensor
    alignment: Tensor

    def __getitem__(self, rows: Tensor | slice) -> _Aligned:
        return _Aligned(self.index[rows], self.A_obs_from_tmpl[rows], self.alignment[rows])


@dataclass(frozen=True)
class _AlignedPair:
    """A pair after stage 2: `A_obs_from_tmpl` (3,3) crop px, on the device, and the alignment (1: not searched)."""

    pair: _Pair
    A_obs_from_tmpl: Tensor
    alignment: float


class Matcher:
    """Stages 1-3 of the network for onboarded objects, by some rules.

    It keeps no state between batches but the store's caches of template features. Threads may share it: one batch at a
    time is on a GPU, and as many as it has threads on a CPU.
    """

    def __init__(self, network: InferenceNetwork, store: TemplateStore, rules: Rules) -> None:
        self.store = store
        self.rules = rules
        self._network = network
        self._turns = threading.BoundedSemaphore(thread_count() if network.device.type == "cpu" else 1)

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self._network.device

    def match(self, batch: QueryBatch) -> BatchHypotheses:
        """Return the hypotheses of each detection, sorted by matching score (paper's rules) or by alignment.

        The object of every detection must be in the store. The device is synchronised on return. A batch that does not
        fit into the device's memory is halved until it does. Raises PicoPoseError when one detection does not fit.
        """
        with self._turns:
            parts = split_on_oom(lambda rows: self._match(_part(batch, rows)), len(batch.obj_ids))
        return tuple(of_query for part in parts for of_query in part)

    def _match(self, batch: QueryBatch) -> BatchHypotheses:
        hypotheses: list[list[Hypothesis]] = [[] for _ in batch.obj_ids]
        with self._network.arithmetic():
            cells, features = self._network.extract(batch.inputs)
            aligned = self._align(batch, cells)
            for first in range(0, len(aligned), PAIR_CHUNK):
                chunk, following = (aligned[i : i + PAIR_CHUNK] for i in (first, first + PAIR_CHUNK))
                templates = self.store.offset_features([one.pair.template for one in chunk])
                self.store.read_ahead(one.pair.template for one in following)
                found = self._regress_offsets(batch, chunk, features, templates)
                for one, hypothesis in zip(chunk, found, strict=True):
                    hypotheses[one.pair.query].append(hypothesis)
        return tuple(tuple(of_query) for of_query in hypotheses)

    def _align(self, batch: QueryBatch, cells: Tensor) -> list[_AlignedPair]:
        """Run stages 1 and 2; the detections of one object share a matrix product."""
        masks = self._network.grid_masks(batch.masks)
        found: list[tuple[list[_Pair], _Aligned]] = []
        for obj_id in np.unique(batch.obj_ids).tolist():
            rows = np.flatnonzero(batch.obj_ids == obj_id).tolist()
            template_cells = self.store.cells(obj_id)
            scores, views = best_views(template_scores(cells[rows], masks[rows], template_cells), len(template_cells))
            for row, ranked_views, ranked_scores in zip(rows, views.tolist(), scores.tolist(), strict=True):
                positions = self.rules.choose_templates(ranked_views, self.store[obj_id].equivalent_views)
                pairs = [_Pair(row, obj_id, ranked_views[i], ranked_scores[i]) for i in positions]
                found.append((pairs, self._align_pairs(pairs, cells[row], template_cells)))
        found.sort(key=lambda one: one[0][0].query)
        # The numbers of all detections come to the host together: each transfer waits for the device.
        index = iter(torch.cat([aligned.index for _, aligned in found]).tolist())
        alignment = iter(torch.cat([aligned.alignment for _, aligned in found]).tolist())
        return [
            _AlignedPair(pairs[next(index)], A, next(alignment))
            for pairs, aligned in found
            for A in aligned.A_obs_from_tmpl
        ]

    def _align_pairs(self, pairs: list[_Pair], query_cells: Tensor, template_cells: Tensor) -> _Aligned:
        """Run stage 2 on a detection's pairs and search around it; the pairs of the best alignment are kept.

        `query_cells` (P,C) of the detection, `template_cells` (V,P,C) of all views of its object.
        """
        onboarded, patch_px = self.store[pairs[0].obj_id], self._network.config.vit.patch_px
        views = self._network.tensor(np.array([pair.view for pair in pairs]))

        def regress(rows: Tensor) -> _Aligned:
            chosen = views[rows]
            query, template = query_cells.float()[None], template_cells[chosen].float()
            # Every pose depends on these few outputs: always fp32.
            with torch.autocast(self._network.device.type, enabled=False):
                A = self._network.network.regress_affine(
                    query, template, onboarded.masks[chosen], onboarded.centres[chosen]
                ).A_obs_from_tmpl
            return _Aligned(rows, A, torch.ones_like(A[:, 0, 0]))

        def search(rounds: Sequence[Round], aligned: _Aligned) -> _Aligned:
            chosen = views[aligned.index]
            query, masks = query_cells.expand(len(chosen), -1, -1), onboarded.masks[chosen]
            return _Aligned(
                aligned.index,
                *search_affine(query, template_cells[chosen], masks, aligned.A_obs_from_tmpl, patch_px, rounds),
            )

        aligned = _joined(
            [regress(rows) for rows in torch.split(torch.arange(len(pairs), device=views.device), PAIR_CHUNK)]
        )
        for rounds, kept in self.rules.search_steps:
            chunks = [aligned[first : first + PAIR_CHUNK] for first in range(0, len(aligned.index), PAIR_CHUNK)]
            found = _joined([search(rounds, chunk) for chunk in chunks])
            aligned = found[found.alignment.argsort(descending=True, stable=True)[:kept]]
        return aligned

    def _regress_offsets(
        self,
        batch: QueryBatch,
        aligned: list[_AlignedPair],
        query_features: OffsetFeatures,
        templates: tuple[OffsetFeatures, list[int]],
    ) -> list[Hypothesis]:
        """Run stage 3 on some pairs; `templates`: features, and the index of each pair's."""
        pairs = [one.pair for one in aligned]
        A = torch.stack([one.A_obs_from_tmpl for one in aligned])
        masks = torch.stack([self.store[pair.obj_id].masks[pair.view] for pair in pairs])
        template_features, index = templates
        pair_index = torch.tensor([[pair.query for pair in pairs], index], device=self._network.device).T
        offsets = self._network.network.regress_offsets(query_features, template_features, pair_index, A, masks)
        return self._hypotheses(
            batch,
            aligned,
            A.double().cpu().numpy(),
            offsets.flows[-1].cpu().numpy(),
            offsets.certainty_logits[-1][:, 0].cpu().numpy(),
        )

    def _hypotheses(
        self, batch: QueryBatch, aligned: list[_AlignedPair], A: Array, flow: Array, logit: Array
    ) -> list[Hypothesis]:
        pairs = [one.pair for one in aligned]
        objects = [self.store[pair.obj_id] for pair in pairs]
        queries, views = [pair.query for pair in pairs], [pair.view for pair in pairs]
        A_crop = batch.A_crop_from_image
        centres = np.stack([onboarded.centre_m for onboarded in objects])
        T_tmpl = np.stack([onboarded.T_tmpl_from_obj[view] for onboarded, view in zip(objects, views, strict=True)])
        poses = affine_poses(
            A,
            A_crop[queries],
            np.stack([onboarded.A_crop_from_image[view] for onboarded, view in zip(objects, views, strict=True)]),
            batch.K[queries],
            np.stack([onboarded.K for onboarded in objects]),
            move_origin(T_tmpl, centres),
        )
        poses = move_origin(self.rules.stage2_poses(poses), -centres)
        return [
            Hypothesis(
                pair.view,
                pair.score,
                poses[i],
                self.rules.correspondences(onboarded, pair.view, flow[i], logit[i], A_crop[pair.query]),
                float(A_crop[pair.query, 0, 0]),
                aligned[i].alignment,
            )
            for i, (pair, onboarded) in enumerate(zip(pairs, objects, strict=True))
        ]


def _joined(parts: Sequence[_Aligned]) -> _Aligned:
    return _Aligned(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(_Aligned)))


def _part(batch: QueryBatch, rows: slice) -> QueryBatch:
    return QueryBatch(**{field.name: getattr(batch, field.name)[rows] for field in fields(batch)})
