from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.banks import noise_bank
from helpers.matchers import make_matcher
from helpers.networks import random_network
from helpers.poses import K
from helpers.queries import random_batch

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import ObjectInfo, QueryBatch
from picopose_cli.network.devices import use_threads_here
from picopose_cli.network.matching import best_views, masks_on_grid, template_scores, unit_cells
from picopose_cli.pose import matcher as module
from picopose_cli.pose import rules, template_store
from picopose_cli.pose.affine_search import search_affine
from picopose_cli.pose.correspondences import affine_poses, released_correspondences
from picopose_cli.pose.matcher import BatchHypotheses, Matcher
from picopose_cli.pose.rules import Hypothesis
from picopose_cli.templates.crops import normalise_bgr


def subset(batch: QueryBatch, rows: list[int]) -> QueryBatch:
    return QueryBatch(
        *(getattr(batch, name)[rows] for name in ("inputs", "masks", "A_crop_from_image", "K", "obj_ids"))
    )


@pytest.fixture(scope="module")
def network():
    return random_network()


def plain_hypotheses(network, batch: QueryBatch, count: int):
    """The oracle: one detection and one hypothesis at a time, every template feature computed again."""
    results = []
    for row, obj_id in enumerate(batch.obj_ids.tolist()):
        bank = noise_bank(obj_id)
        with torch.inference_mode():
            query = network.extract(torch.from_numpy(batch.inputs[row : row + 1]))
            templates = network.extract(torch.from_numpy(normalise_bgr(bank.crops_rgb)))
            mask = masks_on_grid(torch.from_numpy(batch.masks[row : row + 1]), 16)
            scores = template_scores(unit_cells(query[-1]), mask, unit_cells(templates[-1]))
            best, views = best_views(scores, count)
            of_query = []
            for score, view in zip(best[0].tolist(), views[0].tolist(), strict=True):
                template = network.extract(torch.from_numpy(normalise_bgr(bank.crops_rgb[view : view + 1])))
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
    estimated = make_matcher(network).match(batch)
    for expected, actual in zip(plain_hypotheses(network, batch, 3), estimated, strict=True):
        for (view, score, pose, pairs), hypothesis in zip(expected, actual, strict=True):
            assert hypothesis.view == view
            assert hypothesis.template_score == pytest.approx(score, abs=1e-5)
            np.testing.assert_allclose(hypothesis.T_stage2, pose, atol=1e-4)
            assert len(hypothesis.correspondences.uv_image) == pytest.approx(len(pairs.uv_image), rel=0.01, abs=2)
            if len(hypothesis.correspondences.uv_image) == len(pairs.uv_image):
                assert (abs(hypothesis.correspondences.uv_image - pairs.uv_image).max(axis=1) < 1e-6).mean() > 0.99


def test_the_search_keeps_the_templates_of_the_best_alignment(network, monkeypatch):
    """The oracle searches every template in all rounds; the fine search of the best ones finds the same."""
    monkeypatch.setattr(rules, "SEARCHED_TEMPLATES", 9)
    monkeypatch.setattr(rules, "FINELY_SEARCHED_TEMPLATES", 9)
    batch = random_batch([7, 1, 1])
    estimated = make_matcher(network, rules="default").match(batch)
    for row, of_query in enumerate(estimated):
        bank = noise_bank(int(batch.obj_ids[row]))
        with torch.inference_mode():
            query = unit_cells(network.extract(torch.from_numpy(batch.inputs[row : row + 1]))[-1])
            cells = unit_cells(network.extract(torch.from_numpy(normalise_bgr(bank.crops_rgb)))[-1])
            mask = masks_on_grid(torch.from_numpy(batch.masks[row : row + 1]), 16)
            views = best_views(template_scores(query, mask, cells), 9)[1][0]
            masks = masks_on_grid(torch.from_numpy(bank.masks), 16)[views]
            xyz = bank.A_crop_from_image[views] @ bank.K @ bank.T_tmpl_from_obj[views, :3, 3:]
            origins = torch.from_numpy(xyz[:, :2, 0] / xyz[:, 2:, 0]).float()
            queries = query.repeat(9, 1, 1)
            A = network.regress_affine(queries, cells[views], masks, origins).A_obs_from_tmpl
            _, alignment = search_affine(queries, cells[views], masks, A, 14)
        best = alignment.argsort(descending=True)[:3]
        np.testing.assert_allclose([one.alignment for one in of_query], alignment[best], rtol=1e-3)
        assert [one.view for one in of_query] == views[best].tolist()


def test_one_of_equivalent_views_is_tried(network):
    half_turn = np.diag([-1.0, -1, 1, 1])
    info = ObjectInfo(1, 0.1, half_turn[None], ())
    bank = noise_bank(1)
    T = bank.T_tmpl_from_obj.copy()
    T[1::2, :3, :3] = T[::2, :3, :3] @ half_turn[:3, :3]  # each odd view shows what the one before it shows
    matcher = make_matcher(network, rules="default", hypotheses=12)
    matcher.store.add_object(replace(bank, T_tmpl_from_obj=T), info=info)
    (found,) = matcher.match(random_batch([1]))
    assert sorted({one.view // 2 for one in found}) == list(range(6))
    assert len(found) == 6
    (released,) = make_matcher(network, hypotheses=12).match(random_batch([1]))
    score = {one.view: one.template_score for one in released}
    assert all(score[one.view] == max(score[one.view], score[one.view ^ 1]) for one in found)


def assert_close(one: Hypothesis, other: Hypothesis, atol: float = 1e-5) -> None:
    assert one.view == other.view
    np.testing.assert_allclose(one.T_stage2, other.T_stage2, atol=atol)


def test_hypotheses_are_sorted_by_score_and_independent_of_other_detections(network):
    batch = random_batch([1, 7, 1, 7])
    together = make_matcher(network).match(batch)
    for row in range(4):
        (alone,) = make_matcher(network).match(subset(batch, [row]))
        scores = [hypothesis.template_score for hypothesis in alone]
        assert scores == sorted(scores, reverse=True)
        for one, other in zip(alone, together[row], strict=True):
            assert_close(one, other)


def test_parts_that_are_matched_at_the_same_time_change_no_bit(network, monkeypatch):
    """Also when each thread drops what another has just read."""
    parts = [random_batch([1, 7], seed=seed) for seed in range(6)]
    expected = [make_matcher(network).match(part) for part in parts]
    monkeypatch.setitem(template_store.CPU_CACHE_BYTES, "offsets", 1)
    monkeypatch.setitem(template_store.CPU_CACHE_BYTES, "cells", 1)
    matcher = make_matcher(network)
    with ThreadPoolExecutor(3, initializer=use_threads_here, initargs=(torch.get_num_threads(),)) as threads:
        found = list(threads.map(matcher.match, parts))
    for of_part, expected_of_part in zip(found, expected, strict=True):
        for one, other in zip(of_part, expected_of_part, strict=True):
            for a, b in zip(one, other, strict=True):
                assert_close(a, b, atol=0)
                np.testing.assert_array_equal(a.correspondences.uv_image, b.correspondences.uv_image)


def test_caches_that_hold_nothing_change_nothing(network, monkeypatch):
    batch = random_batch([1, 7, 1])
    expected = make_matcher(network).match(batch)
    monkeypatch.setitem(template_store.CPU_CACHE_BYTES, "offsets", 1)
    monkeypatch.setitem(template_store.CPU_CACHE_BYTES, "cells", 1)
    monkeypatch.setattr(module, "PAIR_CHUNK", 2)
    matcher = make_matcher(network)
    for _ in range(2):
        for one, other in zip(matcher.match(batch), expected, strict=True):
            for a, b in zip(one, other, strict=True):
                assert_close(a, b, atol=1e-6)
                np.testing.assert_allclose(len(a.correspondences.uv_image), len(b.correspondences.uv_image), atol=2)


def test_template_features_are_computed_once(network):
    matcher = make_matcher(network)
    batch_sizes = []
    original = network.extract
    try:
        network.extract = lambda inputs: batch_sizes.append(len(inputs)) or original(inputs)
        matcher.match(random_batch([1, 7, 1]))
        matcher.match(random_batch([1, 7, 1], seed=1))
    finally:
        del network.extract
    assert batch_sizes == [3, 3]


def test_fewer_views_than_hypotheses(network):
    matcher = make_matcher(network, hypotheses=5, obj_ids=[1], views=2)
    (hypotheses,) = matcher.match(random_batch([1]))
    assert len(hypotheses) == 2
    assert matcher.rules.solve([hypotheses], K[None], matcher.device)[0][0].T_cam_from_obj.shape == (4, 4)


@pytest.mark.parametrize("name", ["paper", "default"])
def test_poses_are_finite(network, name):
    matcher = make_matcher(network, rules=name)
    for hypotheses in matcher.match(random_batch([1, 7])):
        pose = matcher.rules.solve([hypotheses], K[None], matcher.device)[0][0]
        assert np.isfinite(pose.T_cam_from_obj).all()
        assert pose.confidence == 1 if name == "paper" else 0 <= pose.confidence < 1


def test_bf16_runs_and_stays_close_in_the_affine(network):
    batch = random_batch([1])
    depths = []
    for precision in ("fp32", "bf16"):
        # both views are tried, whatever their scores
        matcher = make_matcher(network, precision=precision, hypotheses=2, obj_ids=[1], views=2)
        (hypotheses,) = matcher.match(batch)
        depths.append({hypothesis.view: hypothesis.T_stage2[2, 3] for hypothesis in hypotheses})
    assert depths[0] != depths[1]
    assert depths[1] == pytest.approx(depths[0], rel=0.2)


class SmallDevice(Matcher):
    """Has memory for `room` detections at once, like a GPU that is too small."""

    room = 2

    def _match(self, batch: QueryBatch) -> BatchHypotheses:
        self.batch_sizes = [*getattr(self, "batch_sizes", []), len(batch.obj_ids)]
        if len(batch.obj_ids) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super()._match(batch)


def test_a_batch_that_does_not_fit_is_halved(network, caplog):
    batch = random_batch([1, 7, 1, 7, 7])
    whole = make_matcher(network)
    small = SmallDevice(whole._network, whole.store, whole.rules)
    halved, expected = small.match(batch), whole.match(batch)
    assert small.batch_sizes == [5, 2, 3, 1, 2]
    assert "do not fit" in caplog.text
    for one, other in zip(halved, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            assert_close(a, b)
    small.room = 0
    with pytest.raises(PicoPoseError, match="does not fit"):
        small.match(batch)
