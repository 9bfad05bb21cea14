from __future__ import annotations

import numpy as np
import pytest
from helpers.scored_poses import estimates, instance

from picopose_cli.base.types import Target
from picopose_cli.scoring.assignment import UNMATCHED, match_greedily
from picopose_cli.scoring.localisation import LocalisationScores, localisation_tallies, tally_target
from picopose_cli.scoring.pair_errors import PairErrors
from picopose_cli.scoring.selection import select_localisation
from picopose_cli.scoring.thresholds import VSD_THRESHOLDS


def errors(mssd_m, mspd_px=None, **others):
    mssd_m = np.array(mssd_m, float)
    return PairErrors(
        obj_id=others.pop("obj_id", 1),
        diameter_m=0.1,
        scores=np.arange(len(mssd_m), 0, -1.0),
        is_target=np.ones(mssd_m.shape[1], bool),
        mssd_m=mssd_m,
        mspd_px=mssd_m * 100 if mspd_px is None else np.array(mspd_px, float),
        **others,
    )


def test_the_best_scored_estimates_and_the_most_visible_instances_count():
    given = estimates([(1, 2, 5, 0.3, 0.3), (1, 2, 5, 0.9, 0.9), (1, 2, 5, 0.5, 0.5), (1, 2, 6, 1, 6), (1, 3, 5, 1, 3)])
    instances = {(1, 2): [instance(2, 0, 5, 0.1, 10), instance(2, 1, 5, 0.8, 11), instance(2, 2, 5, 0.9, 12)]}
    selection = select_localisation(given, [Target(1, 2, 5, 2)], instances)
    (item,) = selection.images[1, 2]
    assert item.scores.tolist() == [0.9, 0.5]
    assert item.T_est[:, 0, 3].tolist() == [0.9, 0.5]
    assert item.T_gt[:, 0, 3].tolist() == [11, 12]
    assert item.is_target.all()
    assert (selection.not_targets, selection.beyond_limit) == (2, 1)


def test_a_target_without_estimates_still_counts():
    selection = select_localisation(
        estimates([(1, 9, 5, 1, 0)]), [Target(1, 2, 5, 1)], {(1, 2): [instance(2, 0, 5, 0.05)]}
    )
    (item,) = selection.images[1, 2]
    assert item.T_est.shape == (0, 4, 4)
    assert item.is_target.tolist() == [True]  # however little of it is visible
    tally = tally_target(errors(np.empty((0, 1))))
    assert (tally.targets, tally.estimates, tally.matches) == (1, 0, 0)
    assert tally.average_recall("mssd") == 0


def test_recall_counts_errors_under_each_threshold():
    tally = tally_target(errors([[0.012]], [[7.0]]))  # 0.12 of the diameter; 7 px
    np.testing.assert_array_equal(tally.recall("mssd"), [0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(tally.recall("mspd"), [0, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    assert tally.average_recall("mssd") == pytest.approx(0.8)
    assert tally.total is None  # no VSD, no AR


def test_the_tolerances_of_vsd_are_matched_independently():
    vsd = np.random.default_rng(2).choice(np.linspace(0, 0.6, 25), (10, 4, 3))  # with equal errors
    whole = tally_target(errors(np.zeros((4, 3)), vsd=vsd)).vsd
    assert whole.shape == (10, 10)
    for error, found in zip(vsd, whole, strict=True):
        np.testing.assert_array_equal(found, (match_greedily(error, VSD_THRESHOLDS) != UNMATCHED).sum(axis=1))


def test_vsd_is_averaged_over_taus_and_thresholds():
    vsd = np.linspace(0.46, 0.01, 10).reshape(10, 1, 1)  # right above 0.46, then above 0.41, ...
    tally = tally_target(errors([[0.0]], vsd=vsd))
    assert tally.average_recall("vsd") == pytest.approx(np.mean([vsd[:, 0, 0] < th for th in np.arange(1, 11) * 0.05]))
    assert tally.total == pytest.approx((tally.average_recall("vsd") + 2) / 3)


def test_tallies_of_an_object_add_up_and_one_estimate_finds_one_instance():
    scores = LocalisationScores(
        localisation_tallies(
            [errors([[0.001, 0.002]]), errors([[0.001, 0.04], [0.002, 0.001]]), errors([[np.inf]], obj_id=0)]
        ),
        mean_time_s=None,
    )
    assert list(scores.objects) == [0, 1]
    assert (scores.objects[1].targets, scores.objects[1].matches, scores.objects[1].estimates) == (4, 3, 3)
    assert (scores.total.targets, scores.total.matches) == (5, 3)
    assert scores.curve("mssd")[0] == pytest.approx(3 / 5)
    assert scores.object_mean(7, "mssd") is None


def test_average_distances_give_recall_and_area():
    add = np.array([[0.005, 0.2], [0.3, 0.03]])  # diameter 0.1: one under a tenth; areas 0.95 and 0.7
    tally = tally_target(errors(np.zeros((2, 2)), add_m=add, adds_m=add / 10))
    assert (tally.add, tally.adds) == (1, 2)
    assert tally.share("add_area") == pytest.approx((0.95 + 0.7) / 2)
    assert tally.share("adds") == 1
    plain = tally_target(errors(np.zeros((2, 2))))
    assert plain.share("add") is None


def test_summary_has_the_toolkits_names_and_makes_nothing_up():
    with_vsd = LocalisationScores({1: tally_target(errors([[0.0]], vsd=np.zeros((10, 1, 1))))}, 0.5)
    assert with_vsd.summary() == {
        "bop19_average_recall": 1.0,
        "bop19_average_recall_vsd": 1.0,
        "bop19_average_recall_mssd": 1.0,
        "bop19_average_recall_mspd": 1.0,
        "bop19_average_time_per_image": 0.5,
    }
    without = LocalisationScores({1: tally_target(errors([[0.0]]))}, None).summary(per_object=True)
    assert "bop19_average_recall" not in without
    assert "bop19_average_recall_vsd" not in without
    assert without["bop19_average_time_per_image"] == -1
    assert without["objects"]["1"]["matches"] == 1
    assert without["objects"]["1"]["average_recall"] is None
