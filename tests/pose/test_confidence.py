from __future__ import annotations

import numpy as np
import pytest

from picopose_cli.pose.confidence import contour_confidence, refined_confidence, unrefined_confidence

COUNTS = [(refined_confidence, 4), (unrefined_confidence, 3), (contour_confidence, 3)]


@pytest.mark.parametrize(("confidence", "count"), COUNTS)
def test_more_of_any_evidence_is_more_confidence(confidence, count):
    rng = np.random.default_rng(0)
    for values in rng.uniform(0.05, 0.9, (20, count)):
        for i in range(count):
            more = values.copy()
            more[i] += 0.1
            assert 0 < confidence(*values) < confidence(*more) < 1


@pytest.mark.parametrize(("confidence", "count"), COUNTS)
def test_no_evidence_is_hardly_any_confidence(confidence, count):
    assert confidence(*np.zeros(count - 1), 1.0) < 0.01
    assert confidence(*np.ones(count)) > 0.9
