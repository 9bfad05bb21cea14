from __future__ import annotations

import numpy as np
import pytest
from helpers.scored_poses import estimates, instance
from hypothesis import given, settings
from hypothesis import strategies as st

from picopose_cli.base.types import ImageTarget
from picopose_cli.scoring.assignment import UNMATCHED
from picopose_cli.scoring.detection import DetectionScores, average_precision, classify_matches, detection_precisions
from picopose_cli.scoring.pair_errors import PairErrors
from picopose_cli.scoring.selection import select_detection


def errors(scores, mssd_m, is_target=None, obj_id=1):
    mssd_m = np.array(mssd_m, float).reshape(len(scores), -1)
    is_target = np.ones(mssd_m.shape[1], bool) if is_target is None else np.array(is_target)
    return PairErrors(obj_id, 0.1, np.array(scores, float), is_target, mssd_m, mssd_m * 1000)


def plain_average_precision(right, targets):
    """Precision at 101 recalls, each found by looking at every cut of the ranking."""
    values = []
    for level in np.linspace(0, 1, 101):
        cuts = [
            sum(right[: end + 1]) / (end + 1) for end in range(len(right)) if sum(right[: end + 1]) / targets >= level
        ]
        values.append(max(cuts, default=0.0))
    return float(np.mean(values))


@settings(max_examples=100, deadline=None)
@given(right=st.lists(st.booleans(), max_size=12), more=st.integers(0, 5))
def test_average_precision_equals_the_plain_version(right, more):
    targets = max(sum(right) + more, 1)
    found = average_precision(np.array(right, bool), targets)
    assert found == pytest.approx(plain_average_precision(right, targets), abs=1e-12)


def test_average_precision_of_known_rankings():
    assert average_precision(np.array([True, True]), 2) == 1
    assert average_precision(np.array([], bool), 2) == 0
    assert average_precision(np.array([True]), 2) == pytest.approx(51 / 101)  # recalls 0 to .50
    assert average_precision(np.array([False, True]), 1) == pytest.approx(0.5)


def test_estimates_of_all_images_are_ranked_together():
    wrong_first = [errors([0.9], [[0.09]]), errors([0.5], [[0.0]])]
    right_first = [errors([0.4], [[0.09]]), errors([0.5], [[0.0]])]
    assert detection_precisions(wrong_first)[1].mssd[0] == pytest.approx(51 / 101 * 0.5)
    assert detection_precisions(right_first)[1].mssd[0] == pytest.approx(51 / 101)


def test_an_estimate_matched_to_an_instance_that_is_no_target_is_not_counted():
    images = [errors([0.9, 0.8], [[0.09, 0.0], [0.0, 0.09]], is_target=[True, False])]
    precision = detection_precisions(images)[1]
    assert (precision.targets, precision.matches) == (1, 1)
    np.testing.assert_array_equal(precision.mssd, 1)
    right, counts = classify_matches(np.array([[0, 1, UNMATCHED]]), np.array([True, False]))
    assert right.tolist() == [[True, False, False]]
    assert counts.tolist() == [[True, False, True]]


def test_a_hardly_visible_instance_is_matched_like_any_other():
    """The nearest instance takes the estimate, which is then not counted although a target was near as well."""
    precision = detection_precisions([errors([0.9], [[0.004, 0.001]], is_target=[True, False])])[1]
    assert precision.targets == 1
    np.testing.assert_array_equal(precision.mssd, 0)
    precision = detection_precisions([errors([0.9], [[0.001, 0.004]], is_target=[True, False])])[1]
    np.testing.assert_array_equal(precision.mssd, 1)


def test_wrong_estimates_count_in_an_image_whose_only_instances_are_hardly_visible():
    found = errors([0.5], [[0.0]])
    beside, on_it = (errors([0.9], [[error_m]], is_target=[False]) for error_m in (0.09, 0.0))
    assert detection_precisions([found, beside])[1].mssd[0] == pytest.approx(0.5)  # a false positive above the match
    assert detection_precisions([found, on_it])[1].mssd[0] == 1  # neither right nor wrong


def test_equal_scores_keep_the_order_of_the_images():
    right, wrong = errors([0.5], [[0.0]]), errors([0.5], [[0.09]], is_target=[False])
    assert detection_precisions([right, wrong])[1].mssd[0] == 1
    assert detection_precisions([wrong, right])[1].mssd[0] == pytest.approx(0.5)


def test_objects_with_nothing_to_find_are_left_out_of_the_mean():
    scores = DetectionScores(
        detection_precisions([errors([0.9], [[0.0]]), errors([0.9], [[0.0]], is_target=[False], obj_id=2)]), 1.5
    )
    assert list(scores.objects) == [1]
    summary = scores.summary(per_object=True)
    assert summary.pop("objects")["1"] == {
        "targets": 1,
        "estimates": 1,
        "matches": 1,
        "AP_mssd": 1,
        "AP_mspd": 1,
        "AP_mssd_mm": 1,
    }
    assert set(summary) == {
        *(f"bop24_mAP{kind}" for kind in ("", "_mssd", "_mspd", "_mssd_mm")),
        "bop24_average_time_per_image",
        "bop25_mAP",
        "bop25_mAP_mm",
    }
    assert summary["bop25_mAP"] == summary["bop24_mAP_mssd"]
    assert summary["bop25_mAP_mm"] == summary["bop24_mAP_mssd_mm"]


def test_thresholds_in_mm_run_from_2_to_20():
    below, above = 0.0119, 0.0121
    precision = detection_precisions([errors([0.9], [[below]]), errors([0.8], [[above]])])[1]
    np.testing.assert_allclose(precision.mssd_mm, [0] * 5 + [51 / 101] + [1] * 4)


def test_the_best_estimates_of_an_image_count_with_all_instances_of_their_object():
    rows = [(1, 2, 5, score, score) for score in (0.1, 0.9, 0.5)] + [
        (1, 2, 6, 0.7, 0.0),
        (1, 2, 7, 0.8, 0),
        (9, 9, 5, 1, 0),
    ]
    instances = {
        (1, 2): [instance(2, 0, 5, 0.05), instance(2, 1, 5, 0.1), instance(2, 2, 7, 0.09), instance(2, 3, 8, 1.0)]
    }
    selection = select_detection(estimates(rows), [ImageTarget(1, 2, max_estimates=4)], instances)
    five, seven, eight = selection.images[1, 2]
    assert (five.obj_id, seven.obj_id, eight.obj_id) == (5, 7, 8)  # there is no instance of object 6
    assert (seven.scores.tolist(), seven.is_target.tolist()) == ([0.8], [False])
    assert five.scores.tolist() == [0.9, 0.5]
    assert five.is_target.tolist() == [False, True]
    assert eight.T_est.shape == (0, 4, 4)
    assert selection.beyond_limit == 1
    assert selection.not_targets == 2  # object 6, and the other image
