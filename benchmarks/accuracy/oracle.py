"""Stages 1 and 2 replaced by the truth: the nearest template and the true similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from accuracy.flows import PAPER_RULES, DetectionSolver, RecordedFlow, TimedMatcher
from accuracy.variants import FROM_TRUTH
from picopose_cli.base.types import Array, QueryBatch, TemplateBank
from picopose_cli.network.offsets import OffsetFeatures
from picopose_cli.pose.correspondences import affine_poses, rotate_to_ray
from picopose_cli.pose.inference_network import InferenceNetwork
from picopose_cli.pose.rules import Hypothesis
from picopose_cli.templates.crops import normalise_bgr
from picopose_cli.training.batches import ViewBatch
from picopose_cli.training.supervision import true_affine
from picopose_cli.training.validation_metrics import view_angles_deg


@dataclass(frozen=True)
class TrueStarts:
    """The true results of stages 1 and 2 for N detections: `views` (N) of their `banks` and the similarities.

    `A_obs_from_tmpl` (N,3,3) crop px; `T_stage2` (N,4,4) metres: the poses that both imply, the best possible result of
    these stages.
    """

    banks: tuple[TemplateBank, ...]
    views: tuple[int, ...]
    A_obs_from_tmpl: Array
    T_stage2: Array


def true_starts(banks: Sequence[TemplateBank], T_true: Array, K: Array, A_crop_from_image: Array) -> TrueStarts:
    """Return the templates nearest in viewing direction, with the true similarity to N observations.

    The objects are centred on their origin. `banks` one per detection, `T_true` (N,4,4) metres, `K` and
    `A_crop_from_image` (N,3,3) of the observations.
    """
    views = [
        int(view_angles_deg(torch.from_numpy(T[None]), torch.from_numpy(bank.T_tmpl_from_obj)).argmin())
        for bank, T in zip(banks, T_true, strict=True)
    ]
    chosen = list(zip(banks, views, strict=True))
    K_tmpl = np.stack([bank.K for bank in banks])
    A_crop_tmpl = np.stack([bank.A_crop_from_image[view] for bank, view in chosen])
    T_tmpl = np.stack([bank.T_tmpl_from_obj[view] for bank, view in chosen])
    targets = true_affine(_geometry(K, A_crop_from_image, T_true), _geometry(K_tmpl, A_crop_tmpl, T_tmpl))
    A = targets.A_obs_from_tmpl.double().numpy()
    T_stage2 = rotate_to_ray(affine_poses(A, A_crop_from_image, A_crop_tmpl, K, K_tmpl, T_tmpl))
    return TrueStarts(tuple(banks), tuple(views), A, T_stage2)


def _geometry(K: Array, A_crop_from_image: Array, T_cam_from_obj: Array) -> ViewBatch:
    """Return views without crops, masks and depth, which the true similarity does not depend on."""
    unused = (torch.empty(0),) * 3
    return ViewBatch(*unused, *(torch.from_numpy(array).double() for array in (K, A_crop_from_image, T_cam_from_obj)))


def poses_from_truth(
    network: InferenceNetwork,
    matcher: TimedMatcher,
    batch: QueryBatch,
    query_features: OffsetFeatures,
    starts: TrueStarts,
) -> dict[str, Array]:
    """Return the poses (N,4,4) of stage 3 from the truth by slug of the variant.

    `query_features` of the batch's N detections, whose objects are in the matcher's store.
    """
    rows = range(len(starts.views))
    flows, logits = _regress_offsets(network, query_features, starts)
    poses: dict[str, list[Array]] = {variant.slug: [] for variant in FROM_TRUTH}
    for i in rows:
        A_crop, onboarded = batch.A_crop_from_image[i], matcher.store[starts.banks[i].obj_id]
        recorded = RecordedFlow.record(PAPER_RULES, onboarded, starts.views[i], flows[i], logits[i], A_crop)
        one = Hypothesis(starts.views[i], 0.0, starts.T_stage2[i], recorded, float(A_crop[0, 0]), 1.0)
        solver = DetectionSolver([one], batch.K[i])
        for variant in FROM_TRUTH:
            poses[variant.slug].append(solver.poses(variant)[0][0].T_cam_from_obj)
    return {slug: np.stack(found) for slug, found in poses.items()}


def _regress_offsets(
    network: InferenceNetwork, query_features: OffsetFeatures, starts: TrueStarts
) -> tuple[Array, Array]:
    """Return stage 3's finest flow (N,2,64,64) and certainty logits (N,64,64) of the true templates."""
    chosen = list(zip(starts.banks, starts.views, strict=True))
    crops, masks = (np.stack([getattr(bank, name)[view] for bank, view in chosen]) for name in ("crops_rgb", "masks"))
    with network.arithmetic():
        template_features = network.extract_offset_features(normalise_bgr(crops))
        pairs = torch.arange(len(chosen), device=network.device)[:, None].repeat(1, 2)
        A = network.tensor(starts.A_obs_from_tmpl.astype(np.float32))
        offsets = network.network.regress_offsets(
            query_features, template_features, pairs, A, network.grid_masks(masks)
        )
        return offsets.flows[-1].cpu().numpy(), offsets.certainty_logits[-1][:, 0].cpu().numpy()
