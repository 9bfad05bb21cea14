"""Accuracy of each stage on the validation set, also with the stages before it replaced by the truth.

Names of the results: `chosen` is the network alone with its best template, `five` with five hypotheses;
`true_template` starts from the template nearest in viewing direction, `true_affine` also from the true 2D similarity.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from picopose_cli.base.train_options import TrainOptions
from picopose_cli.base.types import Array, TemplateBank
from picopose_cli.network.matching import best_views, masks_on_grid, template_scores
from picopose_cli.network.picopose import PicoPose
from picopose_cli.synthesis.samples import Sample
from picopose_cli.training.distributed import TrainingProcess
from picopose_cli.training.supervision import true_flow
from picopose_cli.training.validation_metrics import (
    Rows,
    add_affine,
    add_flow,
    add_poses,
    add_view_choice,
    average_precision,
    surface_points,
    view_angles_deg,
)
from picopose_cli.training.validation_set import ValidationSet, make_validation_set
from picopose_cli.training.validation_stages import Attempt, StageRunner, best_poses

HYPOTHESES = 5


class Validator:
    """Scores networks on a fixed set; called with a network in eval mode on the device and a step."""

    def __init__(self, data: ValidationSet, process: TrainingProcess) -> None:
        self._data = data
        self._process = process

    def __call__(self, network: PicoPose, step: int) -> dict[str, float]:  # noqa: ARG002 - for validators that log
        """Return the mean of every number over all samples."""
        rows: Rows = defaultdict(list)
        certainty: list[tuple[Array, Array]] = []
        runner = StageRunner(network, self._process)
        with torch.inference_mode():
            for key, bank in self._data.banks.items():
                samples = [sample for sample in self._data.samples if sample.object_key == key]
                if samples:
                    certainty.append(_score_object(runner, network, bank, samples, rows))
        means = {name: float(np.mean(values)) for name, values in rows.items()}
        logits, labels = (np.concatenate(column) for column in zip(*certainty, strict=True))
        return means | {"certainty_ap": average_precision(logits, labels)}


def open_validator(options: TrainOptions, process: TrainingProcess) -> Validator | None:
    """Return the validator of a run, with the same set for every source and run; None without validation objects."""
    if not options.validation_objects or not process.is_leader:
        return None
    return Validator(make_validation_set(options.validation_objects), process)


def _score_object(
    runner: StageRunner, network: PicoPose, bank: TemplateBank, samples: Sequence[Sample], rows: Rows
) -> tuple[Array, Array]:
    """Add the numbers of an object's samples to `rows`; return certainty logits (N,) and true validity (N,) bool."""
    onboarded, observed = runner.onboard(bank), runner.observe(samples)
    masks = masks_on_grid(observed.batch.observation.masks, network.config.grid)
    _, ranked = best_views(template_scores(observed.cells, masks, onboarded.cells), HYPOTHESES)
    angles = view_angles_deg(observed.batch.observation.T_cam_from_obj, onboarded.views.T_cam_from_obj)
    add_view_choice(rows, angles, ranked)
    attempts = {
        "chosen": runner.attempt(onboarded, observed, ranked[:, 0]),
        "true_template": runner.attempt(onboarded, observed, angles.argmin(1)),
        "true_affine": runner.attempt(onboarded, observed, angles.argmin(1), from_truth=True),
    }
    others = [runner.attempt(onboarded, observed, views) for views in ranked[:, 1:].unbind(1)]
    poses = {f"{name}_stage2": attempt.T_stage2 for name, attempt in attempts.items()}
    poses |= {f"{name}_stage3": attempt.T_stage3 for name, attempt in attempts.items()}
    poses["five_stage3"] = best_poses([attempts["chosen"], *others])
    add_poses(rows, poses, samples, surface_points(bank))
    for name, attempt in attempts.items():
        if name != "true_affine":
            add_affine(rows, name, attempt)
        if name != "chosen":
            add_flow(rows, name, attempt)
    return _certainty(attempts["true_template"], network.config.flow_grids[-1])


def _certainty(attempt: Attempt, grid: int) -> tuple[Array, Array]:
    """Return the certainty logits (N,) and the true validity (N,) bool of the template's visible cells."""
    visible = attempt.pairs.template.depth_centre_m > 0
    logits = attempt.offsets.certainty_logits[-1][:, 0]
    valid = true_flow(attempt.pairs, (grid,))[0].valid
    return logits[visible].cpu().numpy(), valid[visible].cpu().numpy()
