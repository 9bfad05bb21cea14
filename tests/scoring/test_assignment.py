from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from picopose_cli.scoring.assignment import UNMATCHED, best_scored, match_greedily, most_visible


def plain_match(errors, threshold):
    """One threshold, one estimate after the other."""
    matched, taken = [], set()
    for row in errors:
        best, best_error = UNMATCHED, threshold
        for index, error in enumerate(row):
            if index not in taken and error < best_error:
                best, best_error = index, error
        if best != UNMATCHED:
            taken.add(best)
        matched.append(best)
    return matched


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), estimates=st.integers(0, 6), instances=st.integers(0, 5), levels=st.integers(1, 12)
)
def test_greedy_matching_equals_the_plain_version(seed, estimates, instances, levels):
    rng = np.random.default_rng(seed)
    errors = rng.integers(0, levels + 1, (estimates, instances)) / levels  # many ties
    errors[rng.random(errors.shape) < 0.1] = np.inf
    thresholds = np.array([0.2, 0.5, 1.0, 0.05])
    wanted = [plain_match(errors, threshold) for threshold in thresholds]
    np.testing.assert_array_equal(match_greedily(errors, thresholds), np.reshape(wanted, (4, estimates)))


def test_an_error_on_the_threshold_is_too_large():
    assert match_greedily(np.array([[0.05]]), np.array([0.05, 0.0500001])).tolist() == [[UNMATCHED], [0]]


def test_the_better_scored_estimate_chooses_first_even_if_the_other_fits_better():
    errors = np.array([[0.1, 0.3], [0.05, 0.6]])
    assert match_greedily(errors, np.array([0.5]))[0].tolist() == [0, UNMATCHED]


def test_nan_and_infinite_errors_match_nothing():
    errors = np.array([[np.nan, np.inf], [0.1, np.nan]])
    assert match_greedily(errors, np.array([1.0]))[0].tolist() == [UNMATCHED, 0]


def test_errors_may_differ_by_threshold():
    errors = np.array([[[0.4]], [[0.1]]])
    assert match_greedily(errors, np.array([0.2, 0.2]))[:, 0].tolist() == [UNMATCHED, 0]


def test_best_scored_keeps_the_order_of_equal_scores():
    assert best_scored(np.array([0.5, 0.9, 0.5, 0.9, 0.1]), 3).tolist() == [1, 3, 0]
    assert best_scored(np.array([0.5, 0.9])).tolist() == [1, 0]
    assert best_scored(np.empty(0), 2).tolist() == []


def test_most_visible_takes_the_first_of_equally_visible_ones():
    assert most_visible(np.array([0.2, 0.9, 0.9, 0.9]), 2).tolist() == [1, 2]
    assert most_visible(np.array([0.2]), 3).tolist() == [0]
