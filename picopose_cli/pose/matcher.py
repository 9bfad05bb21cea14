"""The estimator: the network and the templates of the onboarded objects on one device, no files.

A QueryBatch goes in, hypotheses come out; `solve` turns the hypotheses of one detection into its pose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picopose_cli.base.geometry import apply_affine, project_points
from picopose_cli.base.symmetries import drop_equivalent_views, equivalent_views, symmetry_transforms
from picopose_cli.base.types import Array, Correspondences, ObjectInfo, QueryBatch, TemplateBank, TemplateView
from picopose_cli.network.devices import split_on_oom
from picopose_cli.network.matching import best_views, masks_on_grid, template_scores, unit_cells
from picopose_cli.network.offsets import OffsetFeatures, pack_features, unpack_features
from picopose_cli.network.picopose import PicoPose
from picopose_cli.pose.affine_search import COARSE, FINE, Round, search_affine
from picopose_cli.pose.correspondences import (
    affine_poses,
    cell_centre_points,
    released_correspondences,
    rotate_to_ray,
    subcell_correspondences,
)
from picopose_cli.pose.ransac import choose_released, solve_released
from picopose_cli.pose.solve import RobustPose, solve_robust
from picopose_cli.pose.template_store import (
    Chunk,
    FeatureFile,
    FeaturesInMemory,
    Kept,
    TemplateFeatures,
    template_features,
)
from picopose_cli.templates.crops import normalise_bgr

Item = TypeVar("Item")

TEMPLATE_CHUNK = 16
"""Template views that go through the backbone at once, always the same ones: so their features are always the same."""
CANDIDATES = 80
"""Templates of a detection whose similarity is searched, but for the released rules."""
CLOSER_CANDIDATES = 24
"""Of those, by what the coarse search has found, the ones that are searched finely."""
PAIR_CHUNK = 40
"""Pairs whose similarity is regressed or whose flow is held at once; stage 3 itself takes a few of them at a time."""
KEPT_OFFSETS_BYTES = 1 << 29
"""Offset features kept on the device, 5.5 MB a view in fp32 for the released sizes."""
KEPT_CELLS_BYTES = {"cpu": 3 << 29, "cuda": 6 << 30}
"""Cells kept on the device, 170 MB an object in fp32 for the released sizes; the rest is read again when needed."""


@dataclass(frozen=True)
class Hypothesis:
    """One template tried for one detection.

    `view` indexes the bank's views, `score` is the template's matching score, `T_stage2` (4,4) metres the pose that the
    affine alone implies (but for the released rules turned to the object's ray), `pairs` what the pose is solved from,
    `crop_scale` the crop's px an image px, `support` in [0, 1] of its similarity (1: not searched).
    """

    view: int
    score: float
    T_stage2: Array
    pairs: Correspondences
    crop_scale: float
    support: float


@dataclass(frozen=True)
class _Object:
    """An onboarded object: its features, and of its bank what is needed besides.

    `masks` (V,16,16) and `origins` (V,2) crop px of the projected object origin lie on the device. `alike` (V,V): which
    views show the same, None where each shows something else.
    """

    features: TemplateFeatures
    masks: Tensor
    origins: Tensor
    xyz_obj_m: Array
    depth_centre_m: Array
    K: Array
    A_crop_from_image: Array
    T_tmpl_from_obj: Array
    alike: NDArray[np.bool_] | None


@dataclass(frozen=True)
class _Pair:
    """A hypothesis on its way: detection index in the batch, object, view, matching score."""

    query: int
    obj_id: int
    view: int
    score: float


@dataclass(frozen=True)
class _Start:
    """A hypothesis after stage 2: `A_obs_from_tmpl` (3,3) crop px, on the device, and the support of the search."""

    pair: _Pair
    A_obs_from_tmpl: Tensor
    support: float


class Estimator:
    """Network and onboarded objects on a device; see the module's text.

    `precision` fp32 or bf16 (the network under autocast; geometry stays fp32 and, on the host, fp64). `paper` selects
    the released rules for pairs, solver and choice.
    """

    def __init__(self, network: PicoPose, *, device: str, precision: str, hypotheses: int, paper: bool) -> None:
        self._network = network
        self._device = torch.device(device)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._hypotheses = hypotheses
        self._paper = paper
        self._objects: dict[int, _Object] = {}
        self._kept_cells = Kept(KEPT_CELLS_BYTES[self._device.type])
        self._kept_offsets = Kept(KEPT_OFFSETS_BYTES)
        self._unwritable: set[Path] = set()
        self._seen: tuple[QueryBatch, OffsetFeatures] | None = None

    def add_object(
        self,
        bank: TemplateBank,
        on_views: Callable[[int], None] | None = None,
        file: FeatureFile | None = None,
        info: ObjectInfo | None = None,
    ) -> None:
        """Take the template features of a bank from `file`, or compute them and write it.

        `on_views` hears how many views were done. Without a file, or where it cannot be written, memory holds them.
        `info` tells the object's symmetries: of views that look alike only the best matching one is tried.
        """
        views = len(bank.crops_rgb)
        told = on_views or (lambda _: None)
        done = 0

        def compute() -> Iterator[Chunk]:
            nonlocal done
            for start in range(0, views, TEMPLATE_CHUNK):
                chunk = self._compute_features(bank.crops_rgb[start : start + TEMPLATE_CHUNK])
                done += len(chunk[0])
                told(len(chunk[0]))
                yield chunk

        may_write = file is not None and file.path.parent not in self._unwritable
        features = template_features(file, views, compute, may_write=may_write)
        if file is not None and isinstance(features, FeaturesInMemory):
            self._unwritable.add(file.path.parent)
        if not done:
            told(views)
        origins = apply_affine(bank.A_crop_from_image, project_points(bank.K, bank.T_tmpl_from_obj[:, None, :3, 3]))
        self._objects[bank.obj_id] = _Object(
            features,
            self._grid_masks(bank.masks),
            self._tensor(origins[:, 0].astype(np.float32)),
            bank.xyz_obj_m,
            bank.depth_centre_m,
            bank.K,
            bank.A_crop_from_image,
            bank.T_tmpl_from_obj,
            None if info is None else equivalent_views(bank.T_tmpl_from_obj, symmetry_transforms(info)),
        )

    def hypotheses(self, batch: QueryBatch) -> list[tuple[Hypothesis, ...]]:
        """Return the hypotheses of each detection, best first: by matching score (released rules) or by support.

        Every object of the batch must have been added. The device is synchronised on return. A batch that does not fit
        into the device's memory is halved until it does. Raises PicoPoseError when one detection does not fit.
        """
        parts = split_on_oom(lambda rows: self._hypotheses_at_once(_part(batch, rows)), len(batch.obj_ids))
        return [of_query for part in parts for of_query in part]

    def _compute_features(self, crops_rgb: Array) -> Chunk:
        """Return the cells and packed offset features of some views, on the host and in the precision of storage."""
        with self._arithmetic():
            maps = self._network.extract(self._tensor(normalise_bgr(crops_rgb)))
            cells, offsets = self._unit_cells(maps), pack_features(self._network.offset_features(maps))
            return cells.cpu(), offsets.to(self._dtype).cpu()

    def _hypotheses_at_once(self, batch: QueryBatch) -> list[tuple[Hypothesis, ...]]:
        results: list[list[Hypothesis]] = [[] for _ in batch.obj_ids]
        with self._arithmetic():
            maps = self._network.extract(self._tensor(batch.inputs))
            cells, features = self._unit_cells(maps), self._network.offset_features(maps)
            del maps
            self._seen = batch, features
            starts = self._match(batch, cells)
            for first in range(0, len(starts), PAIR_CHUNK):
                chunk = starts[first : first + PAIR_CHUNK]
                for start, hypothesis in zip(chunk, self._refine_offsets(batch, chunk, features), strict=True):
                    results[start.pair.query].append(hypothesis)
        return [tuple(of_query) for of_query in results]

    def solve(self, hypotheses: Sequence[Hypothesis], K: Array) -> tuple[Array, float]:
        """Return a detection's T_cam_from_obj (4,4) and confidence, `K` (3,3) of its image; thread-safe."""
        if not self._paper:
            best = self.candidates(hypotheses, K)[0]
            return best.T_cam_from_obj, best.confidence
        T_stage2 = np.stack([hypothesis.T_stage2 for hypothesis in hypotheses])
        return choose_released([solve_released(hypothesis.pairs, K) for hypothesis in hypotheses], T_stage2), 1.0

    def candidates(self, hypotheses: Sequence[Hypothesis], K: Array) -> list[RobustPose]:
        """Return the pose of each hypothesis, not by the released rules; the one of most worth first."""
        poses = []
        for one in hypotheses:
            found = solve_robust(one.pairs, K, one.crop_scale, one.T_stage2) or RobustPose(one.T_stage2, 0.0)
            poses.append(replace(found, support=one.support))
        return sorted(poses, key=lambda pose: -pose.worth)  # stable: of equals the better template's

    def look(self, batch: QueryBatch) -> OffsetFeatures:
        """Return the offset features of a batch's detections, on the device; those of the last batch are at hand."""
        if self._seen is not None and self._seen[0] is batch:
            return self._seen[1]
        with self._arithmetic():
            return self._network.offset_features(self._network.extract(self._tensor(batch.inputs)))

    def match_views(
        self, features: OffsetFeatures, queries: Sequence[int], views: Sequence[TemplateView], A_obs_from_tmpl: Array
    ) -> tuple[Array, Array]:
        """Run stage 3 alone: the finest flow (N,2,64,64) and certainty logits (N,64,64) of N views of any object.

        `features` as `look` gave them, `queries` (N) whose detection each view is compared with, `A_obs_from_tmpl`
        (N,3,3) crop px. Memory that does not suffice is met as by `hypotheses`.
        """

        def match(rows: slice) -> tuple[Array, Array]:
            return self._match_at_once(features, queries[rows], views[rows], A_obs_from_tmpl[rows])

        flows, logits = zip(*split_on_oom(match, len(views)), strict=True)
        return np.concatenate(flows), np.concatenate(logits)

    def _match_at_once(
        self, features: OffsetFeatures, queries: Sequence[int], views: Sequence[TemplateView], A_obs_from_tmpl: Array
    ) -> tuple[Array, Array]:
        crops_rgb, masks = np.stack([view.crop_rgb for view in views]), np.stack([view.mask for view in views])
        with self._arithmetic():
            of_views = self._network.offset_features(self._network.extract(self._tensor(normalise_bgr(crops_rgb))))
            index = torch.tensor([list(queries), list(range(len(views)))], device=self._device).T
            A = self._tensor(A_obs_from_tmpl.astype(np.float32))
            offsets = self._network.regress_offsets(features, of_views, index, A, self._grid_masks(masks))
            return offsets.flows[-1].cpu().numpy(), offsets.certainty_logits[-1][:, 0].cpu().numpy()

    def _match(self, batch: QueryBatch, cells: Tensor) -> list[_Start]:
        """Run stages 1 and 2; the detections of one object share a matrix product."""
        masks = self._grid_masks(batch.masks)
        count = self._hypotheses if self._paper else max(CANDIDATES, self._hypotheses)
        starts: list[_Start] = []
        for obj_id in np.unique(batch.obj_ids).tolist():
            rows = np.flatnonzero(batch.obj_ids == obj_id).tolist()
            template_cells = self._template_cells(obj_id)
            scores = template_scores(cells[rows], masks[rows], template_cells)
            alike = None if self._paper else self._objects[obj_id].alike
            best, views = best_views(scores, count if alike is None else len(template_cells))
            for row, views_of_row, of_row in zip(rows, views.tolist(), best.tolist(), strict=True):
                places = range(len(of_row)) if alike is None else drop_equivalent_views(views_of_row, alike)[:count]
                pairs = [_Pair(row, obj_id, views_of_row[i], of_row[i]) for i in places]
                starts += self._starts(pairs, cells, template_cells)
        return sorted(starts, key=lambda start: start.pair.query)  # stable: the order of a detection's stays

    def _starts(self, pairs: list[_Pair], query_cells: Tensor, template_cells: Tensor) -> list[_Start]:
        """Run stage 2 on a detection's pairs; of its templates those stay on which most matches agree."""
        starts = _in_chunks(pairs, partial(self._regress_affine, query_cells, template_cells))
        if self._paper:
            return starts
        for rounds, count in ((COARSE, max(CLOSER_CANDIDATES, self._hypotheses)), (FINE, self._hypotheses)):
            found = _in_chunks(starts, partial(self._search, query_cells, template_cells, rounds))
            starts = sorted(found, key=lambda start: -start.support)[:count]  # stable: of equals the better matching
        return starts

    def _regress_affine(self, query_cells: Tensor, template_cells: Tensor, pairs: Sequence[_Pair]) -> list[_Start]:
        of_object, views = self._objects[pairs[0].obj_id], [pair.view for pair in pairs]
        query, template = query_cells[[pair.query for pair in pairs]].float(), template_cells[views].float()
        with torch.autocast(self._device.type, enabled=False):  # a few outputs that every pose hangs on: always fp32
            estimate = self._network.regress_affine(query, template, of_object.masks[views], of_object.origins[views])
        return [_Start(pair, A, 1.0) for pair, A in zip(pairs, estimate.A_obs_from_tmpl, strict=True)]

    def _search(
        self, query_cells: Tensor, template_cells: Tensor, rounds: Sequence[Round], starts: Sequence[_Start]
    ) -> list[_Start]:
        """Return what some rounds of the search make of starts of one object."""
        pairs, A = [start.pair for start in starts], torch.stack([start.A_obs_from_tmpl for start in starts])
        views = [pair.view for pair in pairs]
        query, masks = query_cells[[pair.query for pair in pairs]], self._objects[pairs[0].obj_id].masks[views]
        A, support = search_affine(query, template_cells[views], masks, A, self._network.config.vit.patch_px, rounds)
        return [_Start(*of_pair) for of_pair in zip(pairs, A, support.tolist(), strict=True)]

    def _refine_offsets(
        self, batch: QueryBatch, starts: list[_Start], query_features: OffsetFeatures
    ) -> list[Hypothesis]:
        """Run stage 3 on some pairs."""
        pairs = [start.pair for start in starts]
        A = torch.stack([start.A_obs_from_tmpl for start in starts])
        masks = torch.stack([self._objects[pair.obj_id].masks[pair.view] for pair in pairs])
        template_features, places = self._template_features(pairs)
        index = torch.tensor([[pair.query for pair in pairs], places], device=self._device).T
        offsets = self._network.regress_offsets(query_features, template_features, index, A, masks)
        return self._read_hypotheses(
            batch,
            starts,
            A.double().cpu().numpy(),
            offsets.flows[-1].cpu().numpy(),
            offsets.certainty_logits[-1][:, 0].cpu().numpy(),
        )

    def _template_features(self, pairs: list[_Pair]) -> tuple[OffsetFeatures, list[int]]:
        """Return the offset features of the distinct templates of some pairs, and each pair's place among them."""
        keys = [(pair.obj_id, pair.view) for pair in pairs]
        place = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        packed = torch.stack([self._template_offsets(*key) for key in place])
        return unpack_features(packed, self._network.config), [place[key] for key in keys]

    def _template_cells(self, obj_id: int) -> Tensor:
        of_object = self._objects[obj_id].features
        return self._kept_cells.get(obj_id, lambda: of_object.cells().to(self._device))

    def _template_offsets(self, obj_id: int, view: int) -> Tensor:
        of_object = self._objects[obj_id].features
        return self._kept_offsets.get((obj_id, view), lambda: of_object.offsets(view).to(self._device))

    def _unit_cells(self, maps: Sequence[Tensor]) -> Tensor:
        return unit_cells(maps[-1]).to(self._dtype)

    def _read_hypotheses(
        self, batch: QueryBatch, starts: list[_Start], A: Array, flow: Array, logit: Array
    ) -> list[Hypothesis]:
        pairs = [start.pair for start in starts]
        banks = [self._objects[pair.obj_id] for pair in pairs]
        queries = [pair.query for pair in pairs]
        poses = affine_poses(
            A,
            batch.A_crop_from_image[queries],
            np.stack([bank.A_crop_from_image[pair.view] for bank, pair in zip(banks, pairs, strict=True)]),
            batch.K[queries],
            np.stack([bank.K for bank in banks]),
            np.stack([bank.T_tmpl_from_obj[pair.view] for bank, pair in zip(banks, pairs, strict=True)]),
        )
        if not self._paper:
            poses = rotate_to_ray(poses)
        return [
            Hypothesis(
                pair.view,
                pair.score,
                poses[i],
                self._pairs(bank, pair.view, flow[i], logit[i], batch.A_crop_from_image[pair.query]),
                float(batch.A_crop_from_image[pair.query, 0, 0]),
                starts[i].support,
            )
            for i, (pair, bank) in enumerate(zip(pairs, banks, strict=True))
        ]

    def _pairs(self, bank: _Object, view: int, flow: Array, logit: Array, A_crop: Array) -> Correspondences:
        if self._paper:
            return released_correspondences(flow, logit, bank.xyz_obj_m[view], A_crop)
        depth = bank.depth_centre_m[view]
        xyz = cell_centre_points(depth, bank.K, bank.A_crop_from_image[view], bank.T_tmpl_from_obj[view])
        return subcell_correspondences(flow, logit, xyz, depth > 0, A_crop)

    def _grid_masks(self, masks: Array) -> Tensor:
        return masks_on_grid(self._tensor(masks), self._network.config.grid)

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """No gradients; bf16 where asked for, and otherwise true fp32: cuDNN would round to TF32 by default."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype != torch.float32))
            if self._device.type == "cuda":
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=self._dtype != torch.float32))
            yield


def _in_chunks(items: Sequence[Item], work: Callable[[Sequence[Item]], list[_Start]]) -> list[_Start]:
    return [start for first in range(0, len(items), PAIR_CHUNK) for start in work(items[first : first + PAIR_CHUNK])]


def _part(batch: QueryBatch, rows: slice) -> QueryBatch:
    """Return some detections of a batch; the batch itself where it is all of them."""
    if rows == slice(0, len(batch.obj_ids)):
        return batch
    return QueryBatch(**{field.name: getattr(batch, field.name)[rows] for field in fields(batch)})
