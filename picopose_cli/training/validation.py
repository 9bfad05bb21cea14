"""How well each stage does on objects that were never trained on, also with the stages before it replaced by the truth.

The names of the numbers: `chosen` is the network by itself with its best template, `five` with five hypotheses,
`true_template` starts from the template nearest in viewing direction, `true_affine` from the true 2D similarity too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picopose_cli.base.geometry import rotation_angle_rad, transform_points
from picopose_cli.base.types import CROP_PX, Array, TemplateBank
from picopose_cli.network.matching import best_views, masks_on_grid, template_scores, unit_cells
from picopose_cli.network.offsets import OffsetEstimate, OffsetFeatures
from picopose_cli.network.picopose import PicoPose
from picopose_cli.network.vit import FeatureMaps
from picopose_cli.pose.correspondences import affine_poses, cell_centre_points, rotate_to_ray, subcell_correspondences
from picopose_cli.pose.solve import RobustPose, choose_by_evidence, solve_robust
from picopose_cli.synthesis.samples import Sample
from picopose_cli.training.batches import PairBatch, ViewBatch, collate, network_inputs
from picopose_cli.training.supervision import true_affine, true_flow

HYPOTHESES = 5
NEAR_VIEW_DEG = 20.0
"""Neighbouring views of the 162 stand 15 to 18 degrees apart."""
THRESHOLDS = np.arange(1, 11) * 0.05
"""Of the object's diameter: the pose errors whose recalls are averaged, as in BOP's AR."""
_CROPS_AT_A_TIME = 32
_SURFACE_POINTS = 400
_POINT_VIEWS = 24

Rows = dict[str, list[float]]
"""Numbers by name, one a sample."""


@dataclass(frozen=True)
class ValidationSet:
    """A fixed set: samples, and the template banks of their objects by `object_key`."""

    samples: tuple[Sample, ...]
    banks: Mapping[str, TemplateBank]


@dataclass(frozen=True)
class _Object:
    """An onboarded object: its bank, its views on the device, their maps and unit cells (V,P,C), surface points."""

    bank: TemplateBank
    views: ViewBatch
    maps: FeatureMaps
    cells: Tensor
    points_m: Array


@dataclass(frozen=True)
class _Queries:
    """B observations of one object on the device: `batch` with any template, unit cells, offset features."""

    samples: Sequence[Sample]
    batch: PairBatch
    cells: Tensor
    features: OffsetFeatures


@dataclass(frozen=True)
class _Tried:
    """One template a query: `views` (B,), similarity (B,3,3), offsets, and stage 2's poses (B,4,4), stage 3's."""

    views: Tensor
    A_obs_from_tmpl: Tensor
    offsets: OffsetEstimate
    T_stage2: Array
    solutions: list[RobustPose | None]

    @property
    def T_stage3(self) -> Array:
        """Stage 3's poses, stage 2's where there is none."""
        pairs = zip(self.solutions, self.T_stage2, strict=True)
        return np.stack([fallback if solution is None else solution.T_cam_from_obj for solution, fallback in pairs])


class Validator:
    """Scores networks on a fixed set; called with a network in eval mode on its device and a step."""

    def __init__(self, data: ValidationSet, device: torch.device, precision: str) -> None:
        self._data = data
        self._device = device
        self._bf16 = precision == "bf16"

    def __call__(self, network: PicoPose, step: int) -> dict[str, float]:  # noqa: ARG002 - the loop tells the step
        """Return the mean of every number over all samples."""
        rows: Rows = defaultdict(list)
        certainty: list[tuple[Array, Array]] = []
        with torch.inference_mode():
            for key, bank in self._data.banks.items():
                samples = [sample for sample in self._data.samples if sample.object_key == key]
                if samples:
                    self._score_object(network, bank, samples, rows, certainty)
        numbers = {name: float(np.mean(values)) for name, values in rows.items()}
        logits, labels = (np.concatenate(column) for column in zip(*certainty, strict=True))
        return numbers | {"certainty_ap": average_precision(logits, labels)}

    def _score_object(
        self,
        network: PicoPose,
        bank: TemplateBank,
        samples: Sequence[Sample],
        rows: Rows,
        certainty: list[tuple[Array, Array]],
    ) -> None:
        onboarded, queries = self._onboard(network, bank), self._look(network, samples)
        scores = template_scores(queries.cells, self._grid(network, queries.batch.observation.masks), onboarded.cells)
        _, ranked = best_views(scores, HYPOTHESES)
        angles = view_angles_deg(queries.batch.observation.T_cam_from_obj, onboarded.views.T_cam_from_obj)
        nearest = angles.argmin(1)
        _add_choice(rows, angles, ranked)
        tried = {
            "chosen": self._try(network, onboarded, queries, ranked[:, 0]),
            "true_template": self._try(network, onboarded, queries, nearest),
            "true_affine": self._try(network, onboarded, queries, nearest, truth=True),
        }
        others = [self._try(network, onboarded, queries, views) for views in ranked[:, 1:].unbind(1)]
        poses = {f"{name}_stage2": attempt.T_stage2 for name, attempt in tried.items()}
        poses |= {f"{name}_stage3": attempt.T_stage3 for name, attempt in tried.items()}
        poses["five_stage3"] = _best_of([tried["chosen"], *others])
        _add_poses(rows, poses, samples, onboarded)
        for name, attempt in tried.items():
            pairs = _pairs_with(queries.batch, onboarded.views, attempt.views)
            if name != "true_affine":
                _add_affine(rows, name, attempt, pairs)
            if name != "chosen":
                _add_flow(rows, name, attempt, pairs)
        truth = true_flow(_pairs_with(queries.batch, onboarded.views, nearest), network.config.flow_grids[-1:])[0]
        shown = onboarded.views.depth_centre_m[nearest] > 0
        logits = tried["true_template"].offsets.certainty_logits[-1][:, 0]
        certainty.append((logits[shown].cpu().numpy(), truth.valid[shown].cpu().numpy()))

    def _onboard(self, network: PicoPose, bank: TemplateBank) -> _Object:
        count = len(bank.crops_rgb)
        views = ViewBatch(
            torch.from_numpy(bank.crops_rgb),
            torch.from_numpy(bank.masks),
            torch.from_numpy(bank.depth_centre_m),
            torch.from_numpy(bank.K).double().expand(count, -1, -1),
            torch.from_numpy(bank.A_crop_from_image).double(),
            torch.from_numpy(bank.T_tmpl_from_obj).double(),
        ).mapped(lambda tensor: tensor.to(self._device))
        maps = self._extract(network, views.crops_rgb)
        return _Object(bank, views, maps, unit_cells(maps[-1]), surface_points(bank))

    def _look(self, network: PicoPose, samples: Sequence[Sample]) -> _Queries:
        batch = collate(samples).to(self._device)
        maps = self._extract(network, batch.observation.crops_rgb)
        with self._autocast():
            return _Queries(samples, batch, unit_cells(maps[-1]), network.offset_features(maps))

    def _extract(self, network: PicoPose, crops_rgb: Tensor) -> FeatureMaps:
        with self._autocast():
            parts = [network.extract(network_inputs(part)) for part in torch.split(crops_rgb, _CROPS_AT_A_TIME)]
        return tuple(torch.cat(level) for level in zip(*parts, strict=True))

    def _try(
        self, network: PicoPose, onboarded: _Object, queries: _Queries, views: Tensor, *, truth: bool = False
    ) -> _Tried:
        """Run stages 2 and 3 with a view (B,) for each query; `truth`: stage 3 from the true similarity."""
        pairs = _pairs_with(queries.batch, onboarded.views, views)
        masks = self._grid(network, pairs.template.masks)
        target = true_affine(pairs.observation, pairs.template)
        with self._autocast():
            affine = network.regress_affine(queries.cells, onboarded.cells[views], masks, target.origin_tmpl_crop)
            A = target.A_obs_from_tmpl if truth else affine.A_obs_from_tmpl
            distinct, place = torch.unique(views, return_inverse=True)
            features = network.offset_features(tuple(level[distinct] for level in onboarded.maps))
            index = torch.stack([torch.arange(len(views), device=self._device), place], 1)
            offsets = network.regress_offsets(queries.features, features, index, A, masks)
        starts = _stage2_poses(A, pairs)
        return _Tried(views, A, offsets, starts, _solve(offsets, queries, onboarded.bank, views, starts))

    def _grid(self, network: PicoPose, masks: Tensor) -> Tensor:
        return masks_on_grid(masks, network.config.grid)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)


def view_angles_deg(T_cam_from_obj: Tensor, T_views: Tensor) -> Tensor:
    """Return the angles (B,V) between the directions in which cameras (B,4,4) and views (V,4,4) see the object."""
    directions = [
        torch.nn.functional.normalize((T[:, :3, :3].transpose(1, 2) @ T[:, :3, 3:])[..., 0], dim=1)
        for T in (T_cam_from_obj, T_views)
    ]
    return torch.rad2deg((directions[0] @ directions[1].T).clamp(-1, 1).acos())


def surface_points(bank: TemplateBank) -> Array:
    """Return points (N,3) in metres spread over what the bank's views show of the object."""
    chosen = range(0, len(bank.depth_centre_m), max(1, len(bank.depth_centre_m) // _POINT_VIEWS))
    points = np.concatenate(
        [
            cell_centre_points(depth, bank.K, bank.A_crop_from_image[view], bank.T_tmpl_from_obj[view])[depth > 0]
            for view in chosen
            for depth in (bank.depth_centre_m[view],)
        ]
    )
    rng = np.random.default_rng(0)
    sampled: Array = points[rng.choice(len(points), min(_SURFACE_POINTS, len(points)), replace=False)]
    return sampled


def pose_recalls(T_est: Array, T_true: Array, points_m: Array, diameter_m: float) -> tuple[float, float]:
    """Return the mean recalls of one pose (4,4) for the greatest and for the mean nearest distance of points (N,3).

    The first is MSSD without symmetries, the second ADD-S, both at 5 to 50 % of the diameter.
    """
    moved, true = transform_points(T_est, points_m), transform_points(T_true, points_m)
    if not np.isfinite(moved).all():
        return 0.0, 0.0
    furthest = np.linalg.norm(moved - true, axis=1).max()
    nearest = np.linalg.norm(moved[:, None] - true[None], axis=2).min(axis=1).mean()
    return float((furthest < THRESHOLDS * diameter_m).mean()), float((nearest < THRESHOLDS * diameter_m).mean())


def average_precision(scores: Array, labels: Array) -> float:
    """Return the area under precision over recall of scores (N,) for labels (N,) bool; 0 where nothing is true."""
    ranked = labels[np.argsort(-scores, kind="stable")].astype(np.float64)
    if not ranked.any():
        return 0.0
    precision = ranked.cumsum() / np.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / ranked.sum())


def _add_choice(rows: Rows, angles: Tensor, ranked: Tensor) -> None:
    chosen = angles.gather(1, ranked)
    rows["view_deg"] += chosen[:, 0].tolist()
    rows["view_deg_best_possible"] += angles.amin(1).tolist()
    rows["view_top1"] += (chosen[:, 0] < NEAR_VIEW_DEG).double().tolist()
    rows["view_top5"] += (chosen < NEAR_VIEW_DEG).any(1).double().tolist()


def _add_affine(rows: Rows, name: str, tried: _Tried, pairs: PairBatch) -> None:
    truth = true_affine(pairs.observation, pairs.template)
    A = tried.A_obs_from_tmpl
    origin = truth.origin_tmpl_crop[:, None]
    moved = (origin @ A[:, :2, :2].transpose(1, 2))[:, 0] + A[:, :2, 2] - origin[:, 0]
    turn = torch.atan2(A[:, 1, 0], A[:, 0, 0]) - truth.angle_rad
    rows[f"{name}_translation_px"] += (moved - truth.translation_px).norm(dim=1).tolist()
    rows[f"{name}_log_scale"] += (A[:, :2, 0].norm(dim=1) / truth.scale).log().abs().tolist()
    rows[f"{name}_inplane_deg"] += torch.rad2deg(torch.atan2(turn.sin(), turn.cos()).abs()).tolist()


def _add_flow(rows: Rows, name: str, tried: _Tried, pairs: PairBatch) -> None:
    """Add the end-point errors of every level in crop px, over the valid cells of each sample that has any."""
    grids = tuple(flow.shape[-1] for flow in tried.offsets.flows)
    for grid, flow, truth in zip(grids, tried.offsets.flows, true_flow(pairs, grids), strict=True):
        error = (flow - truth.flow).norm(dim=1) * truth.valid
        cells = truth.valid.sum((1, 2))
        means = (error.sum((1, 2)) / cells.clamp(min=1) * CROP_PX / grid)[cells > 0]
        rows[f"{name}_flow_{grid}_px"] += means.tolist()


def _add_poses(rows: Rows, poses: Mapping[str, Array], samples: Sequence[Sample], onboarded: _Object) -> None:
    for name, T in poses.items():
        for T_est, sample in zip(T, samples, strict=True):
            T_true = sample.observation.T_cam_from_obj
            furthest, nearest = pose_recalls(T_est, T_true, onboarded.points_m, sample.diameter_m)
            rows[f"{name}_mssd"].append(furthest)
            rows[f"{name}_adds"].append(nearest)
            rows[f"{name}_deg"].append(float(np.rad2deg(rotation_angle_rad(T_est[:3, :3], T_true[:3, :3]))))


def _pairs_with(batch: PairBatch, views: ViewBatch, index: Tensor) -> PairBatch:
    """Return the observations of a batch with the views (B,) of their object."""
    return PairBatch(batch.observation, views.mapped(lambda tensor: tensor[index]), batch.diameter_m)


def _stage2_poses(A_obs_from_tmpl: Tensor, pairs: PairBatch) -> Array:
    observation, template = pairs.observation, pairs.template
    arguments = (
        A_obs_from_tmpl, observation.A_crop_from_image, template.A_crop_from_image, observation.K, template.K,
        template.T_cam_from_obj,
    )  # fmt: skip
    return rotate_to_ray(affine_poses(*(argument.double().cpu().numpy() for argument in arguments)))


def _solve(
    offsets: OffsetEstimate, queries: _Queries, bank: TemplateBank, views: Tensor, starts: Array
) -> list[RobustPose | None]:
    flow, logits = offsets.flows[-1].cpu().numpy(), offsets.certainty_logits[-1][:, 0].cpu().numpy()
    solutions = []
    for i, (sample, view) in enumerate(zip(queries.samples, views.tolist(), strict=True)):
        depth = bank.depth_centre_m[view]
        xyz = cell_centre_points(depth, bank.K, bank.A_crop_from_image[view], bank.T_tmpl_from_obj[view])
        A_crop = sample.observation.A_crop_from_image
        pairs = subcell_correspondences(flow[i], logits[i], xyz, depth > 0, A_crop)
        crop_scale = float(np.linalg.norm(A_crop[:2, 0]))  # augmentation turns crops
        solutions.append(solve_robust(pairs, sample.observation.K, crop_scale, starts[i]))
    return solutions


def _best_of(attempts: Sequence[_Tried]) -> Array:
    """Return the pose (B,4,4) of the attempt with most evidence, a query each."""
    chosen = [
        choose_by_evidence([attempt.solutions[i] for attempt in attempts], np.stack([a.T_stage2[i] for a in attempts]))
        for i in range(len(attempts[0].solutions))
    ]
    return np.stack([pose.T_cam_from_obj for pose in chosen])
