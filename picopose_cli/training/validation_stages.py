"""The stages of the network on validation samples, with any of them replaced by the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from picopose_cli.base.types import Array, TemplateBank
from picopose_cli.network.matching import masks_on_grid, unit_cells
from picopose_cli.network.offsets import OffsetEstimate, OffsetFeatures
from picopose_cli.network.picopose import PicoPose
from picopose_cli.network.vit import FeatureMaps
from picopose_cli.pose.correspondences import affine_poses, cell_centre_points, rotate_to_ray, subcell_correspondences
from picopose_cli.pose.residuals import PAIR_STD_PX
from picopose_cli.pose.solve import RobustPose, best_pose, solve_robust
from picopose_cli.synthesis.samples import Sample
from picopose_cli.training.batches import PairBatch, ViewBatch, collate, network_inputs
from picopose_cli.training.distributed import TrainingProcess
from picopose_cli.training.supervision import true_affine

_EXTRACTION_BATCH = 32


@dataclass(frozen=True)
class OnboardedObject:
    """An object: its bank, its V views on the device, their feature maps and unit-length cells (V,P,C)."""

    bank: TemplateBank
    views: ViewBatch
    maps: FeatureMaps
    cells: Tensor


@dataclass(frozen=True)
class ObservedBatch:
    """B observations of one object on the device: `batch` with any templates, unit-length cells, offset features."""

    samples: Sequence[Sample]
    batch: PairBatch
    cells: Tensor
    features: OffsetFeatures


@dataclass(frozen=True)
class Attempt:
    """The results of stages 2 and 3 with one view per observation.

    `pairs` are the observations with these views; `A_obs_from_tmpl` (B,3,3) is the similarity that stage 3 starts from;
    `T_stage2` (B,4,4) are the poses of stage 2, `solutions` those of stage 3.
    """

    pairs: PairBatch
    A_obs_from_tmpl: Tensor
    offsets: OffsetEstimate
    T_stage2: Array
    solutions: list[RobustPose | None]

    @property
    def T_stage3(self) -> Array:
        """Poses (B,4,4) of stage 3, or of stage 2 where stage 3 has none."""
        pairs = zip(self.solutions, self.T_stage2, strict=True)
        return np.stack([fallback if solution is None else solution.T_cam_from_obj for solution, fallback in pairs])


class StageRunner:
    """Runs the stages of a network in eval mode on its device."""

    def __init__(self, network: PicoPose, process: TrainingProcess) -> None:
        self._network, self._process = network, process

    def onboard(self, bank: TemplateBank) -> OnboardedObject:
        """Return the features of all views of an object."""
        views = ViewBatch(
            torch.from_numpy(bank.crops_rgb),
            torch.from_numpy(bank.masks),
            torch.from_numpy(bank.depth_centre_m),
            torch.from_numpy(bank.K).double().expand(len(bank.crops_rgb), -1, -1),
            torch.from_numpy(bank.A_crop_from_image).double(),
            torch.from_numpy(bank.T_tmpl_from_obj).double(),
        ).mapped(lambda tensor: tensor.to(self._process.device))
        maps = self._extract(views.crops_rgb)
        return OnboardedObject(bank, views, maps, unit_cells(maps[-1]))

    def observe(self, samples: Sequence[Sample]) -> ObservedBatch:
        """Return the features of the observations of some samples."""
        batch = collate(samples).to(self._process.device)
        maps = self._extract(batch.observation.crops_rgb)
        with self._process.autocast():
            return ObservedBatch(samples, batch, unit_cells(maps[-1]), self._network.offset_features(maps))

    def attempt(
        self, onboarded: OnboardedObject, observed: ObservedBatch, views: Tensor, *, from_truth: bool = False
    ) -> Attempt:
        """Return the results with a view (B,) for each observation; `from_truth` replaces stage 2 by the truth."""
        network = self._network
        pairs = pairs_with_views(observed.batch, onboarded.views, views)
        masks = masks_on_grid(pairs.template.masks, network.config.grid)
        truth = true_affine(pairs.observation, pairs.template)
        A = truth.A_obs_from_tmpl
        if not from_truth:
            with _true_fp32(self._process.device):  # as in inference
                cells = onboarded.cells[views]
                A = network.regress_affine(observed.cells, cells, masks, truth.origin_tmpl_crop).A_obs_from_tmpl
        with self._process.autocast():
            distinct, place = torch.unique(views, return_inverse=True)
            features = network.offset_features(tuple(level[distinct] for level in onboarded.maps))
            index = torch.stack([torch.arange(len(views), device=views.device), place], 1)
            offsets = network.regress_offsets(observed.features, features, index, A, masks)
        T_stage2 = _stage2_poses(A, pairs)
        return Attempt(pairs, A, offsets, T_stage2, _solve(offsets, observed.samples, onboarded.bank, views, T_stage2))

    def _extract(self, crops_rgb: Tensor) -> FeatureMaps:
        with self._process.autocast():
            parts = [self._network.extract(network_inputs(part)) for part in torch.split(crops_rgb, _EXTRACTION_BATCH)]
        return tuple(torch.cat(level) for level in zip(*parts, strict=True))


@contextmanager
def _true_fp32(device: torch.device) -> Iterator[None]:
    """Compute in fp32, without the autocast and the TF32 of training."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def pairs_with_views(batch: PairBatch, views: ViewBatch, index: Tensor) -> PairBatch:
    """Return the observations of a batch, each with the view of its `index` (B,) as template."""
    return PairBatch(batch.observation, views.mapped(lambda tensor: tensor[index]), batch.diameter_m)


def best_poses(attempts: Sequence[Attempt]) -> Array:
    """Return, for each observation, the pose (B,4,4) of the attempt with the most soft inliers."""
    chosen = [
        best_pose([attempt.solutions[i] for attempt in attempts], np.stack([a.T_stage2[i] for a in attempts]))
        for i in range(len(attempts[0].solutions))
    ]
    return np.stack([pose.T_cam_from_obj for pose in chosen])


def _stage2_poses(A_obs_from_tmpl: Tensor, pairs: PairBatch) -> Array:
    """Return the poses (B,4,4) of similarities (B,3,3) in crop px."""
    observation, template = pairs.observation, pairs.template
    arguments = (
        A_obs_from_tmpl, observation.A_crop_from_image, template.A_crop_from_image, observation.K, template.K,
        template.T_cam_from_obj,
    )  # fmt: skip
    return rotate_to_ray(affine_poses(*(argument.double().cpu().numpy() for argument in arguments)))


def _solve(
    offsets: OffsetEstimate, samples: Sequence[Sample], bank: TemplateBank, views: Tensor, T_stage2: Array
) -> list[RobustPose | None]:
    """Return the pose of stage 3 for each observation, None where there is none."""
    flow, logits = offsets.flows[-1].cpu().numpy(), offsets.certainty_logits[-1][:, 0].cpu().numpy()
    pairs = []
    for i, (sample, view) in enumerate(zip(samples, views.tolist(), strict=True)):
        depth = bank.depth_centre_m[view]
        xyz = cell_centre_points(depth, bank.K, bank.A_crop_from_image[view], bank.T_tmpl_from_obj[view])
        pairs.append(subcell_correspondences(flow[i], logits[i], xyz, depth > 0, sample.observation.A_crop_from_image))
    K = np.stack([sample.observation.K for sample in samples])
    crops = np.stack([sample.observation.A_crop_from_image for sample in samples])
    std_px = PAIR_STD_PX / np.linalg.norm(crops[:, :2, 0], axis=1)  # a crop may be rotated
    return solve_robust(pairs, K, std_px, T_stage2, views.device)
