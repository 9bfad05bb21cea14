from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.banks import noise_bank
from helpers.networks import random_network
from helpers.poses import K
from helpers.queries import random_batch

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import ObjectInfo, QueryBatch
from picopose_cli.network.matching import best_views, masks_on_grid, template_scores, unit_cells
from picopose_cli.pose import matcher as module
from picopose_cli.pose.affine_search import search_affine
from picopose_cli.pose.correspondences import affine_poses, released_correspondences
from picopose_cli.pose.matcher import Estimator


def subset(batch: QueryBatch, rows: list[int]) -> QueryBatch:
    return QueryBatch(
        *(getattr(batch, name)[rows] for name in ("inputs", "masks", "A_crop_from_image", "K", "obj_ids"))
    )


@pytest.fixture(scope="module")
def network():
    return random_network()


def make_estimator(network, **changes) -> Estimator:
    options = {"device": "cpu", "precision": "fp32", "hypotheses": 3, "paper": True} | changes
    estimator = Estimator(network, **options)
    for obj_id in (1, 7):
        estimator.add_object(noise_bank(obj_id))
    return estimator


def plain_hypotheses(network, batch: QueryBatch, count: int):
    """The oracle: one detection and one hypothesis at a time, every template feature computed again."""
    results = []
    for row, obj_id in enumerate(batch.obj_ids.tolist()):
        bank = noise_bank(obj_id)
        with torch.inference_mode():
            query = network.extract(torch.from_numpy(batch.inputs[row : row + 1]))
            templates = network.extract(torch.from_numpy(module.normalise_bgr(bank.crops_rgb)))
            mask = masks_on_grid(torch.from_numpy(batch.masks[row : row + 1]), 16)
            scores = template_scores(unit_cells(query[-1]), mask, unit_cells(templates[-1]))
            best, views = best_views(scores, count)
            of_query = []
            for score, view in zip(best[0].tolist(), views[0].tolist(), strict=True):
                template = network.extract(torch.from_numpy(module.normalise_bgr(bank.crops_rgb[view : view + 1])))
                template_mask = masks_on_grid(torch.from_numpy(bank.masks[view : view + 1]), 16)
                origin = (bank.A_crop_from_image[view] @ bank.K @ bank.T_tmpl_from_obj[view, :3, 3])[None]
                origin = torch.from_numpy(origin[:, :2] / origin[:, 2:]).float()
                affine = network.regress_affine(unit_cells(query[-1]), unit_cells(template[-1]), template_mask, origin)
                offsets = network.regress_offsets(
                    network.offset_features(query),
                    network.offset_features(template),
                    torch.tensor([[0, 0]]),
                    affine.A_obs_from_tmpl,
                    template_mask,
                )
                A_query = batch.A_crop_from_image[row]
                pose = affine_poses(
                    affine.A_obs_from_tmpl.double().numpy(),
                    A_query[None],
                    bank.A_crop_from_image[view][None],
                    K[None],
                    bank.K[None],
                    bank.T_tmpl_from_obj[view][None],
                )[0]
                pairs = released_correspondences(
                    offsets.flows[-1][0].numpy(),
                    offsets.certainty_logits[-1][0, 0].numpy(),
                    bank.xyz_obj_m[view],
                    A_query,
                )
                of_query.append((view, score, pose, pairs))
        results.append(of_query)
    return results


def test_equals_the_plain_schedule(network):
    batch = random_batch([7, 1, 1, 7, 1])
    estimated = make_estimator(network).hypotheses(batch)
    for expected, actual in zip(plain_hypotheses(network, batch, 3), estimated, strict=True):
        for (view, score, pose, pairs), hypothesis in zip(expected, actual, strict=True):
            assert hypothesis.view == view
            assert hypothesis.score == pytest.approx(score, abs=1e-5)
            np.testing.assert_allclose(hypothesis.T_stage2, pose, atol=1e-4)
            assert len(hypothesis.pairs.uv_image) == pytest.approx(len(pairs.uv_image), rel=0.01, abs=2)
            if len(hypothesis.pairs.uv_image) == len(pairs.uv_image):
                assert (abs(hypothesis.pairs.uv_image - pairs.uv_image).max(axis=1) < 1e-6).mean() > 0.99


def test_the_search_keeps_the_templates_that_most_matches_agree_on(network, monkeypatch):
    """The oracle searches every candidate in all rounds; close enough a second look at the best ones is the same."""
    monkeypatch.setattr(module, "CANDIDATES", 9)
    monkeypatch.setattr(module, "CLOSER_CANDIDATES", 9)
    batch = random_batch([7, 1, 1])
    estimated = make_estimator(network, paper=False).hypotheses(batch)
    for row, of_query in enumerate(estimated):
        bank = noise_bank(int(batch.obj_ids[row]))
        with torch.inference_mode():
            query = unit_cells(network.extract(torch.from_numpy(batch.inputs[row : row + 1]))[-1])
            cells = unit_cells(network.extract(torch.from_numpy(module.normalise_bgr(bank.crops_rgb)))[-1])
            mask = masks_on_grid(torch.from_numpy(batch.masks[row : row + 1]), 16)
            views = best_views(template_scores(query, mask, cells), 9)[1][0]
            masks = masks_on_grid(torch.from_numpy(bank.masks), 16)[views]
            xyz = bank.A_crop_from_image[views] @ bank.K @ bank.T_tmpl_from_obj[views, :3, 3:]
            origins = torch.from_numpy(xyz[:, :2, 0] / xyz[:, 2:, 0]).float()
            queries = query.repeat(9, 1, 1)
            A = network.regress_affine(queries, cells[views], masks, origins).A_obs_from_tmpl
            _, support = search_affine(queries, cells[views], masks, A, 14)
        best = support.argsort(descending=True)[:3]
        np.testing.assert_allclose([one.support for one in of_query], support[best], rtol=1e-3)
        assert [one.view for one in of_query] == views[best].tolist()


def test_of_views_that_look_alike_one_is_tried(network):
    half_turn = np.diag([-1.0, -1, 1, 1])
    info = ObjectInfo(1, 0.1, half_turn[None], ())
    bank = noise_bank(1)
    T = bank.T_tmpl_from_obj.copy()
    T[1::2, :3, :3] = T[::2, :3, :3] @ half_turn[:3, :3]  # each odd view sees what the one before it sees
    estimator = make_estimator(network, paper=False, hypotheses=12)
    estimator.add_object(replace(bank, T_tmpl_from_obj=T), info=info)
    (found,) = estimator.hypotheses(random_batch([1]))
    assert sorted({one.view // 2 for one in found}) == list(range(6))
    assert len(found) == 6
    (released,) = make_estimator(network, hypotheses=12).hypotheses(random_batch([1]))
    score = {one.view: one.score for one in released}
    assert all(score[one.view] == max(score[one.view], score[one.view ^ 1]) for one in found)


def test_hypotheses_fall_in_score_and_share_nothing_between_detections(network):
    batch = random_batch([1, 7, 1, 7])
    together = make_estimator(network).hypotheses(batch)
    for row in range(4):
        (alone,) = make_estimator(network).hypotheses(subset(batch, [row]))
        assert [h.view for h in alone] == [h.view for h in together[row]]
        scores = [h.score for h in alone]
        assert scores == sorted(scores, reverse=True)
        for one, other in zip(alone, together[row], strict=True):
            np.testing.assert_allclose(one.T_stage2, other.T_stage2, atol=1e-5)


def test_forgetting_template_features_changes_nothing(network, monkeypatch):
    batch = random_batch([1, 7, 1])
    expected = make_estimator(network).hypotheses(batch)
    monkeypatch.setattr(module, "KEPT_OFFSETS_BYTES", 1)
    monkeypatch.setitem(module.KEPT_CELLS_BYTES, "cpu", 1)
    monkeypatch.setattr(module, "PAIR_CHUNK", 2)
    estimator = make_estimator(network)
    for _ in range(2):
        actual = estimator.hypotheses(batch)
        for one, other in zip(actual, expected, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_allclose(a.T_stage2, b.T_stage2, atol=1e-6)
                np.testing.assert_allclose(len(a.pairs.uv_image), len(b.pairs.uv_image), atol=2)


def test_template_features_are_computed_once(network):
    estimator = make_estimator(network)
    seen = []
    original = network.extract
    try:
        network.extract = lambda inputs: seen.append(len(inputs)) or original(inputs)
        estimator.hypotheses(random_batch([1, 7, 1]))
        estimator.hypotheses(random_batch([1, 7, 1], seed=1))
    finally:
        del network.extract
    assert seen == [3, 3]


def test_fewer_views_than_hypotheses(network):
    estimator = Estimator(network, device="cpu", precision="fp32", hypotheses=5, paper=True)
    estimator.add_object(noise_bank(1, views=2))
    (hypotheses,) = estimator.hypotheses(random_batch([1]))
    assert len(hypotheses) == 2
    assert estimator.solve(hypotheses, K)[0].shape == (4, 4)


@pytest.mark.parametrize("paper", [True, False])
def test_solve_gives_a_finite_pose(network, paper):
    estimator = make_estimator(network, paper=paper)
    for hypotheses in estimator.hypotheses(random_batch([1, 7])):
        T, confidence = estimator.solve(hypotheses, K)
        assert np.isfinite(T).all()
        assert confidence == 1 if paper else 0 <= confidence < 1


def test_bf16_runs_and_stays_close_in_the_affine(network):
    batch = random_batch([1])
    depths = []
    for precision in ("fp32", "bf16"):
        estimator = Estimator(network, device="cpu", precision=precision, hypotheses=2, paper=True)
        estimator.add_object(noise_bank(1, views=2))  # both views are tried, whatever their scores
        (hypotheses,) = estimator.hypotheses(batch)
        depths.append({hypothesis.view: hypothesis.T_stage2[2, 3] for hypothesis in hypotheses})
    assert depths[0] != depths[1]
    assert depths[1] == pytest.approx(depths[0], rel=0.2)


class SmallDevice(Estimator):
    """Has room for so many detections at once, like a GPU that is too small."""

    room = 2

    def _hypotheses_at_once(self, batch):
        self.asked = [*getattr(self, "asked", []), len(batch.obj_ids)]
        if len(batch.obj_ids) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super()._hypotheses_at_once(batch)


def test_a_batch_that_does_not_fit_is_halved(network, caplog):
    batch = random_batch([1, 7, 1, 7, 7])
    estimator = SmallDevice(network, device="cpu", precision="fp32", hypotheses=3, paper=True)
    for obj_id in (1, 7):
        estimator.add_object(noise_bank(obj_id))
    halved = estimator.hypotheses(batch)
    assert estimator.asked == [5, 2, 3, 1, 2]
    assert "do not fit" in caplog.text
    for one, other in zip(halved, make_estimator(network).hypotheses(batch), strict=True):
        assert [h.view for h in one] == [h.view for h in other]
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a.T_stage2, b.T_stage2, atol=1e-5)
    estimator.room = 0
    with pytest.raises(PicoPoseError, match="does not fit"):
        estimator.hypotheses(batch)
