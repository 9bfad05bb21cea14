from __future__ import annotations

import numpy as np
import pytest

from picopose_cli.pose.confidence import refined_confidence, unrefined_confidence


@pytest.mark.parametrize("confidence", [lambda x: refined_confidence(*x), lambda x: unrefined_confidence(*x[:2])])
def test_more_of_any_evidence_is_more_confidence(confidence):
    rng = np.random.default_rng(0)
    for values in rng.uniform(0, 0.9, (20, 3)):
        for i in range(2):
            more = values.copy()
            more[i] += 0.1
            assert 0 < confidence(values) < confidence(more) < 1


def test_no_evidence_is_hardly_any_confidence():
    assert refined_confidence(0, 0, 0) < 0.01
    assert unrefined_confidence(0, 0) < 0.01
    assert refined_confidence(1, 1, 1) > 0.9
