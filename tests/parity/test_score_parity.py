"""`picopose score` against the numbers that the BOP toolkit prints for the same files.

The models of `data/scoring` are the convex hulls of the scored ones: MSSD and MSPD are largest at their vertices.
Without depth images there is no VSD and no average of the three: `tests/commands/test_score.py` checks these.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from picopose_cli.base.options import ScoreOptions
from picopose_cli.commands import score

SCORING_DIR = Path(__file__).parent / "data/scoring"
NEEDS_DEPTH = {"bop19_average_recall", "bop19_average_recall_vsd"}


@pytest.mark.parametrize("targets", ["bop19", "bop24"])
def test_official_scores(targets, tmp_path):
    output = tmp_path / "scores.json"
    paths = (SCORING_DIR / "results/mid_ycbv-test.csv",)
    score.run(ScoreOptions(paths, data_dir=SCORING_DIR, targets=targets, output=output, workers=1))
    official = json.loads((SCORING_DIR / "official_scores.json").read_text())
    wanted = {name for name in official if name.startswith("bop19") == (targets == "bop19")} - NEEDS_DEPTH
    ours = json.loads(output.read_text())
    assert set(ours) == wanted
    for name in wanted:
        assert ours[name] == pytest.approx(official[name], abs=1e-9), name
