"""The calibration of confidences on cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from calibrate_confidence import KINDS, Sample, calibrated, chosen, regress, reliability, sigmoid

SHARED = np.array([2.0, 1.5, 1.0, 3.0])


def drawn(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantities (N,3) of contours, and whether the poses are right, with the odds of the weights SHARED."""
    values = rng.uniform(0.05, 0.95, (count, 3))
    X = np.column_stack([np.log(values + np.array(KINDS["contours"][0])), np.ones(count)])
    return values, rng.random(count) < sigmoid(X @ SHARED)


def test_regression_finds_the_weights_that_the_data_was_drawn_with():
    values, right = drawn(np.random.default_rng(0), 20000)
    X = np.column_stack([np.log(values + np.array(KINDS["contours"][0])), np.ones(len(values))])
    np.testing.assert_allclose(regress(X, right.astype(float), np.zeros(4)), SHARED, atol=0.2)
    few = slice(20)  # too few to tell: the earlier weights remain, nearly
    np.testing.assert_allclose(regress(X[few], right[few].astype(float), SHARED)[:2], SHARED[:2], atol=0.2)


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_share():
    predicted = np.array([0.05] * 4 + [0.75] * 4 + [1.0] * 2)
    found = reliability(predicted, np.array([0, 0, 0, 1, 1, 1, 1, 0, 1, 1], float))
    assert [row["right"] for row in found["reliability"]] == [0.25, 0.75, 1.0]
    assert found["error"] == pytest.approx(0.4 * 0.2)


def test_each_half_of_the_objects_is_predicted_by_the_weights_of_the_other():
    """Of the objects of the second half every pose is wrong: no confidence fits, and the choice shows it."""
    rng, samples = np.random.default_rng(1), []
    for kind, (offsets, _) in KINDS.items():
        for i in range(400):
            obj, values = i % 4, rng.uniform(0.1, 1, len(offsets))
            error = 0.01 if obj % 2 == 0 and values.sum() > len(values) / 2 else 0.32
            samples.append(Sample(f"set/{obj}", f"set/{kind}/{i // 8}/{obj}", kind, tuple(values), error))
    found = calibrated(samples)
    for kind, (offsets, _) in KINDS.items():
        of_kind = found["kinds"][kind]
        assert len(of_kind["weights"]) == len(offsets) + 1
        assert min(of_kind["weights"][:-1]) > 0
        assert of_kind["fitted"]["poses"] == 400
        assert of_kind["fitted"]["error"] > 0.4
    by_fitted = found["chosen_by_fitted"]
    assert by_fitted["poses"] == 200 * len(KINDS)
    assert by_fitted["AR_MSSD"] < 0.75  # an error of .32 is below the last four thresholds, of ten
    assert by_fitted["log_loss"] > 1


def test_the_most_confident_pose_of_a_detection_is_chosen():
    def pose(detection: str, agreement: float, error: float) -> Sample:
        return Sample("set/1", detection, "contours", (agreement, 0.9, 1.0), error)

    weights = {"contours": np.array([1.0, 0, 0, 0])}
    half = [pose("a", 0.2, 0.01), pose("a", 0.8, 0.6), pose("b", 0.7, 0.08), pose("b", 0.6, 0.6)]
    found = chosen([half, []], [weights, weights])
    assert (found["poses"], found["AR_MSSD"]) == (2, pytest.approx(0.9 / 2))  # an error of .08: nine of ten thresholds
    assert found["log_loss"] == pytest.approx(-np.log([1 - 0.81 / 1.81, 0.71 / 1.71]).mean())
