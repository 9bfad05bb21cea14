"""The numbers of validation: with a perfect network, on hand-made cases, and with stages replaced by the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.networks import CROP_224, random_network
from helpers.toy_pairs import K_OBS, MESHES, nearest_view, render_view, toy_bank
from scipy.spatial.transform import Rotation

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import TemplateBank
from picopose_cli.network.matching import masks_on_grid
from picopose_cli.network.offsets import OffsetEstimate
from picopose_cli.network.picopose import PicoPose
from picopose_cli.synthesis.samples import CropView, Sample
from picopose_cli.training import validation_stages
from picopose_cli.training.distributed import TrainingProcess
from picopose_cli.training.start import start_network
from picopose_cli.training.supervision import true_affine, true_flow
from picopose_cli.training.validation import Validator
from picopose_cli.training.validation_metrics import average_precision, pose_recalls, surface_points, view_angles_deg
from picopose_cli.training.validation_set import ValidationSet, make_validation_set
from picopose_cli.training.validation_stages import StageRunner

EVERY = 6
CPU = TrainingProcess(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def bank() -> TemplateBank:
    return toy_bank("box", every=EVERY)


@pytest.fixture(scope="module")
def data(bank: TemplateBank) -> ValidationSet:
    """Three observations: a view of the bank itself, rotated and nearer; two tilted by a few degrees."""
    samples = []
    rng = np.random.default_rng(0)
    for view, tilt_deg in ((3, 0.0), (10, 6.0), (20, 8.0)):
        R = Rotation.from_euler("zx", [40 * view, tilt_deg], degrees=True).as_matrix()
        T = make_T(R @ bank.T_tmpl_from_obj[view, :3, :3], np.array([0.01, -0.01, 0.4]))
        nearest = nearest_view(T, bank.T_tmpl_from_obj)
        template = CropView(
            bank.crops_rgb[nearest], bank.masks[nearest], bank.depth_centre_m[nearest], bank.K,
            bank.A_crop_from_image[nearest].astype(np.float64), bank.T_tmpl_from_obj[nearest],
        )  # fmt: skip
        samples.append(Sample("box", bank.diameter_m, render_view(MESHES["box"], K_OBS, T, rng), template))
    return ValidationSet(tuple(samples), {"box": bank})


def test_with_the_truth_in_their_place_the_poses_are_right(
    data: ValidationSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 3 is replaced by the true flow: whatever is left of an error is validation's own."""
    truths = []

    def remember(pairs: object, grids: object) -> object:
        found = true_flow(pairs, grids)  # type: ignore[arg-type]
        truths.append(found)
        return found

    class Perfect(PicoPose):
        def regress_offsets(self, *_: object, **__: object) -> OffsetEstimate:
            found = truths[-1]
            logits = tuple(torch.where(level.valid, 9.0, -9.0)[:, None] for level in found)
            return OffsetEstimate(tuple(level.flow for level in found), logits)

    def pairs_with(batch: object, views: object, index: torch.Tensor) -> object:
        pairs = plain_pairs(batch, views, index)  # type: ignore[arg-type]
        remember(pairs, network.config.flow_grids)
        return pairs

    plain_pairs = validation_stages.pairs_with_views
    monkeypatch.setattr(validation_stages, "pairs_with_views", pairs_with)
    network = random_network()
    network.__class__ = Perfect
    numbers = Validator(data, CPU)(network, 0)
    for name in ("true_template", "true_affine"):
        assert numbers[f"{name}_stage3_mssd"] == 1
        assert numbers[f"{name}_stage3_adds"] == 1
        assert numbers[f"{name}_stage3_deg"] < 0.5
        assert numbers[f"{name}_flow_64_px"] == pytest.approx(0, abs=1e-5)
    assert numbers["certainty_ap"] > 0.999


def test_true_similarity_without_stage_3_is_the_oracle(data: ValidationSet) -> None:
    network = start_network(CROP_224, None, 0).eval()  # its stage 3 leaves what it is given as it is
    numbers = Validator(data, CPU)(network, 0)
    assert numbers["view_deg_best_possible"] == pytest.approx((0 + 6 + 8) / 3, abs=3)
    assert numbers["true_affine_stage2_deg"] < 9
    assert numbers["true_affine_stage2_mssd"] > 0.8
    assert numbers["true_affine_stage2_mssd"] >= numbers["chosen_stage2_mssd"]
    assert numbers["view_deg"] >= numbers["view_deg_best_possible"]
    assert 0 <= numbers["view_top1"] <= numbers["view_top5"] <= 1
    assert numbers["true_affine_flow_64_px"] < 40
    assert all(np.isfinite(value) for value in numbers.values())
    names = {
        f"{start}_{stage}_mssd"
        for start in ("chosen", "true_template", "true_affine")
        for stage in ("stage2", "stage3")
    }
    assert names | {"five_stage3_mssd", "chosen_inplane_deg", "true_template_translation_px"} <= set(numbers)


def test_stage_2_runs_in_fp32_as_in_inference(data: ValidationSet, bank: TemplateBank) -> None:
    network = random_network()
    runner = StageRunner(network, TrainingProcess(torch.device("cpu"), "bf16"))
    views = torch.tensor([3, 10, 20])
    with torch.inference_mode():
        onboarded, observed = runner.onboard(bank), runner.observe(data.samples)
        attempt = runner.attempt(onboarded, observed, views)
        masks = masks_on_grid(attempt.pairs.template.masks, network.config.grid)
        origin = true_affine(attempt.pairs.observation, attempt.pairs.template).origin_tmpl_crop
        expected = network.regress_affine(observed.cells, onboarded.cells[views], masks, origin)
    assert attempt.offsets.flows[-1].isfinite().all()
    assert torch.equal(attempt.A_obs_from_tmpl, expected.A_obs_from_tmpl)


def test_viewing_angles() -> None:
    T = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    T[:, 2, 3] = 1.0
    T[1, :3, :3] = torch.from_numpy(Rotation.from_euler("z", 70, degrees=True).as_matrix())  # no other direction
    T[2, :3, :3] = torch.from_numpy(Rotation.from_euler("x", 30, degrees=True).as_matrix())
    np.testing.assert_allclose(view_angles_deg(T, T[:1])[:, 0], [0, 0, 30], atol=1e-5)
    shifted = T[:1].clone()
    shifted[0, 0, 3] = 1.0  # seen 45 degrees off the optical axis: another side is seen
    assert view_angles_deg(shifted, T[:1]).item() == pytest.approx(45)


def test_surface_points_lie_on_the_object(bank: TemplateBank) -> None:
    points = surface_points(bank)
    half = np.array([0.04, 0.05, 0.03])
    off = np.abs(np.abs(points) - half).min(axis=1)
    assert len(points) == 400
    assert np.median(off) < 5e-4
    assert (np.abs(points) < half + 2e-3).all()
    assert (points.max(axis=0) > half - 2e-3).all()


def test_pose_recalls_by_hand() -> None:
    points = np.array([[0.05, 0, 0], [-0.05, 0, 0], [0, 0.03, 0]])
    T = make_T(np.eye(3), np.array([0, 0, 1.0]))
    shifted = T.copy()
    shifted[0, 3] = 0.012  # 12 % of the diameter: 8 of 10 thresholds
    assert pose_recalls(T, T, points, 0.1) == (1.0, 1.0)
    assert pose_recalls(shifted, T, points, 0.1) == pytest.approx((0.8, 0.8))
    rotated = T.copy()
    rotated[:3, :3] = np.diag([-1.0, -1, 1])
    furthest, nearest = pose_recalls(rotated, T, points, 0.1)
    assert furthest == 0
    assert nearest > 0.5
    assert pose_recalls(np.full((4, 4), np.nan), T, points, 0.1) == (0.0, 0.0)


def test_average_precision_by_hand() -> None:
    scores, labels = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, np.zeros(4, bool)) == 0
    assert average_precision(-scores, labels) < average_precision(scores, labels)


def test_the_held_out_set_is_always_the_same() -> None:
    first, second = make_validation_set(1, 2), make_validation_set(1, 2)
    assert [sample.object_key for sample in first.samples] == ["held-out-0"] * 2
    for a, b in zip(first.samples, second.samples, strict=True):
        assert (a.observation.crop_rgb == b.observation.crop_rgb).all()
        assert (a.observation.T_cam_from_obj == b.observation.T_cam_from_obj).all()
    bank = first.banks["held-out-0"]
    assert len(bank.crops_rgb) == 162
    assert replace(bank).diameter_m == first.samples[0].diameter_m
