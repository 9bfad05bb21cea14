"""Where the paper's and the default rules differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.banks import noise_bank
from helpers.poses import K, noisy_pairs, random_pose
from helpers.toy_pairs import toy_bank

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T, ray_rotation
from picopose_cli.base.types import GRID_CELLS, Correspondences, TemplateBank
from picopose_cli.pose import rules as module
from picopose_cli.pose.rules import DefaultRules, Hypothesis, PaperRules, RankedPose, make_rules
from picopose_cli.pose.template_store import FeaturesInMemory, OnboardedObject

NOTHING = Correspondences(np.empty((0, 2)), np.empty((0, 3)), np.empty(0))
CPU = torch.device("cpu")
RULES = {"paper": PaperRules(5), "default": DefaultRules(5)}


def onboarded(bank: TemplateBank) -> OnboardedObject:
    nothing = torch.empty(0)
    geometry = (bank.depth_corner_m, bank.depth_centre_m, bank.K, bank.A_crop_from_image, bank.T_tmpl_from_obj)
    return OnboardedObject(FeaturesInMemory(nothing, nothing), nothing, nothing, *geometry, bank.centre_m, None)


def hypothesis(correspondences: Correspondences, T_stage2: np.ndarray, alignment: float = 1.0) -> Hypothesis:
    return Hypothesis(0, 0.5, T_stage2, correspondences, 1.5, alignment)


def solve_alone(name: str, hypotheses: list[Hypothesis]) -> list[RankedPose]:
    (poses,) = RULES[name].solve([hypotheses], K[None], CPU)
    return poses


def test_names():
    assert make_rules("paper", 3) == PaperRules(3)
    assert make_rules("default", 3) == DefaultRules(3)
    with pytest.raises(PicoPoseError, match="'papers'"):
        make_rules("papers", 3)


def test_the_paper_runs_stage_2_on_the_best_templates_only():
    ranked = list(range(99, -1, -1))
    equivalent = np.ones((100, 100), bool)
    assert RULES["paper"].choose_templates(ranked, equivalent) == [0, 1, 2, 3, 4]
    assert RULES["default"].choose_templates(ranked, None) == list(range(module.SEARCHED_TEMPLATES))
    assert RULES["default"].choose_templates(ranked, equivalent) == [0]
    assert DefaultRules(90).choose_templates(ranked, None) == list(range(90))
    assert PaperRules(5).choose_templates([2, 0], None) == [0, 1]


def test_only_the_default_rules_search():
    assert not RULES["paper"].search_steps
    assert [kept for _, kept in RULES["default"].search_steps] == [module.FINELY_SEARCHED_TEMPLATES, 5]
    assert [kept for _, kept in DefaultRules(30).search_steps] == [30, 30]


def test_only_the_default_rules_rotate_to_the_ray():
    T = make_T(np.eye(3)[None], np.array([[0.2, -0.1, 0.5]]))
    np.testing.assert_array_equal(RULES["paper"].stage2_poses(T), T)
    np.testing.assert_allclose(RULES["default"].stage2_poses(T)[:, :3, :3], ray_rotation(T[:, :3, 3]))


def test_only_the_default_rules_have_continuous_targets():
    bank, view = toy_bank("box", every=40), 1
    flow = np.full((2, GRID_CELLS, GRID_CELLS), 0.3)
    logit = np.full((GRID_CELLS, GRID_CELLS), 9.0)
    found = {name: one.correspondences(onboarded(bank), view, flow, logit, np.eye(3)) for name, one in RULES.items()}
    cells = found["paper"].uv_image / 3.5
    np.testing.assert_allclose(cells % 1, 0.5)
    np.testing.assert_allclose(found["default"].uv_image / 3.5 % 1, 0.3)
    shown = bank.depth_centre_m[view] > 0
    assert len(found["default"].uv_image) == shown[:-1, :-1].sum()
    assert len(found["paper"].uv_image) > len(found["default"].uv_image)
    rows, cols = (np.floor(cells).astype(int).T)[::-1]
    np.testing.assert_array_equal(found["paper"].xyz_obj_m, bank.xyz_obj_m[view][rows, cols])


def test_the_paper_chooses_by_inlier_ratio_and_the_default_by_soft_inliers():
    """A few exact correspondences against many good ones with outliers."""
    rng = np.random.default_rng(0)
    T_few, T_many = random_pose(rng), random_pose(rng)
    few, many = noisy_pairs(rng, T_few, count=12), noisy_pairs(rng, T_many, count=800, noise_px=0.5, outliers=0.4)
    hypotheses = [hypothesis(many, T_many), hypothesis(few, T_few)]
    paper, default = (solve_alone(name, hypotheses) for name in ("paper", "default"))
    np.testing.assert_allclose(paper[0].T_cam_from_obj, T_few, atol=1e-3)
    np.testing.assert_allclose(default[0].T_cam_from_obj, T_many, atol=1e-2)
    assert len(paper) == len(default) == 2
    assert [pose.confidence for pose in paper] == [1, 1]
    assert 0.2 < default[0].confidence < 0.9
    assert default[0].confidence > default[1].confidence


def test_alignment_counts_by_the_default_rules_only():
    rng = np.random.default_rng(1)
    T = [random_pose(rng) for _ in range(2)]
    pairs = [noisy_pairs(rng, pose, count=400) for pose in T]
    hypotheses = [hypothesis(pairs[0], T[0], 0.1), hypothesis(pairs[1], T[1], 0.2)]
    np.testing.assert_allclose(solve_alone("default", hypotheses)[0].T_cam_from_obj, T[1], atol=1e-3)
    np.testing.assert_allclose(solve_alone("paper", hypotheses)[0].T_cam_from_obj, T[0], atol=1e-3)


@pytest.mark.parametrize("name", RULES)
def test_without_a_solution_the_first_stage_2_pose_is_taken(name):
    T = [make_T(np.eye(3), np.array([0, 0, z])) for z in (0.5, 0.6)]
    poses = solve_alone(name, [hypothesis(NOTHING, one) for one in T])
    np.testing.assert_array_equal([pose.T_cam_from_obj for pose in poses], T)
    assert poses[0].selection_score == 0


@pytest.mark.parametrize("name", RULES)
def test_detections_are_solved_together_as_alone(name):
    """Each with its own camera, whatever numbers of hypotheses they have."""
    rng = np.random.default_rng(2)
    T = [random_pose(rng) for _ in range(4)]
    hypotheses = [hypothesis(noisy_pairs(rng, pose, count=300, outliers=0.3), pose) for pose in T]
    parts, K_of = [hypotheses[:1], [], hypotheses[1:]], np.stack([K, K, K * [[1.1], [1.1], [1]]])
    together = RULES[name].solve(parts, K_of, CPU)
    assert [len(poses) for poses in together] == [1, 0, 3]
    for part, K_one, poses in zip(parts, K_of, together, strict=True):
        (alone,) = RULES[name].solve([part], K_one[None], CPU)
        np.testing.assert_array_equal([p.T_cam_from_obj for p in poses], [p.T_cam_from_obj for p in alone])
        assert [pose.selection_score for pose in poses] == [pose.selection_score for pose in alone]


def test_only_the_default_rules_can_refine():
    assert DefaultRules.can_refine
    assert not PaperRules.can_refine


def test_points_are_those_of_the_bank():
    bank = noise_bank()
    flow, logit = np.zeros((2, GRID_CELLS, GRID_CELLS)), np.full((GRID_CELLS, GRID_CELLS), 9.0)
    found = RULES["paper"].correspondences(onboarded(bank), 3, flow + 0.5, logit, np.eye(3))
    assert set(map(tuple, found.xyz_obj_m)) <= set(map(tuple, bank.xyz_obj_m[3].reshape(-1, 3).astype(np.float64)))
