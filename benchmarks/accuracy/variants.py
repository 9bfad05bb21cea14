"""The table of ablations: variants of the inference, each of which differs from another in one thing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from picopose_cli.base.options import DEFAULT_REFINE_ROUNDS, REFINED_HYPOTHESES

HYPOTHESES = 5
"""Hypotheses per detection in every pass of the network."""
MAX_ROUNDS = DEFAULT_REFINE_ROUNDS
"""Most rounds of refinement that are measured."""


@dataclass(frozen=True)
class Variant:
    """A way to estimate: which flows of stage 3, and which rules make a pose of them.

    `flows`: stage 3 starts from the similarity that stage 2 `regressed`, from the `searched` one, from that without
    knowledge of the objects' symmetries (`unaware`), or from the `truth`. `hypotheses`: how many of a pass's hypotheses
    are solved, 0 for the first one's stage-2 pose. `sub_cell` correspondences, `robust` solver and choice by
    `soft_inliers` each replace the released rule. `rounds` of refinement follow. The score of a pose is that of `infer`
    or, with `detector_score`, the detection's.
    """

    slug: str
    """In the name of the result file."""
    title: str
    """In the table."""
    hypotheses: int
    flows: str
    sub_cell: bool = False
    robust: bool = False
    soft_inliers: bool = False
    rounds: int = 0
    detector_score: bool = False


@dataclass(frozen=True)
class InferLine:
    """A line of the table of classes: `options` of `picopose infer`; the `slug` is in the name of the result file."""

    slug: str
    title: str
    options: dict[str, Any]


def default_variant(slug: str, hypotheses: int, rounds: int = 0, flows: str = "searched") -> Variant:
    """Return the variant with all of the default rules."""
    title = f"--rules default, {hypotheses} hypothes{'i' if hypotheses == 1 else 'e'}s, --refine {rounds}"
    return Variant(slug, title, hypotheses, flows, True, True, True, rounds)


ORACLE = Variant("oracle", "oracle: nearest template", 0, "truth")
PAPER = Variant("paper5", "--rules paper, 5 hypotheses", 5, "regressed")
DEFAULT = default_variant("default5", HYPOTHESES)
REFINED = tuple(default_variant(f"default5-{rounds}", HYPOTHESES, rounds) for rounds in range(1, MAX_ROUNDS + 1))
INFERRED = default_variant(f"default{REFINED_HYPOTHESES}-{MAX_ROUNDS}", REFINED_HYPOTHESES, MAX_ROUNDS)
"""What `infer` writes by default."""

REGRESSED = (
    Variant("stage2", "stage 2 alone, best template", 0, "regressed"),
    Variant("paper1", "--rules paper, 1 hypothesis", 1, "regressed"),
    Variant("paper3", "--rules paper, 3 hypotheses", 3, "regressed"),
    PAPER,
    Variant("subcell", "paper, sub-cell pairs alone", 5, "regressed", sub_cell=True),
    Variant("robust", "paper, robust solver alone", 5, "regressed", robust=True),
    Variant("soft-inliers", "paper, choice by soft inliers alone", 5, "regressed", soft_inliers=True),
    replace(default_variant("unsearched", 5, flows="regressed"), title="these three together"),
)
SEARCHED = (Variant("searched", "paper, searched similarity alone", 5, "searched"), DEFAULT, *REFINED)
FEWER_HYPOTHESES = tuple(
    default_variant(f"default{count}-{rounds}", count, rounds) for count in (1, 3) for rounds in range(MAX_ROUNDS + 1)
)
"""For accuracy over time, measured with rough masks only."""
FROM_TRUTH = (
    Variant("truth-paper", "stage 3 from the truth, paper's rules", 1, "truth"),
    replace(default_variant("truth-default", 1, flows="truth"), title="stage 3 from the truth, default rules"),
)
"""Measured with the true masks only, as is the oracle."""
ABLATIONS = (ORACLE, *REGRESSED, *SEARCHED, *FEWER_HYPOTHESES, *FROM_TRUTH)

PAPER_LINE = InferLine("infer-paper", "--rules paper", {"rules": "paper"})
LINES = (
    PAPER_LINE,
    InferLine("infer-refine0", "--refine 0", {"refine": 0}),
    InferLine("infer-default", "the defaults", {}),
)
"""Of the classes of objects and images; the last is what users get."""

EXTRA_DETECTIONS = tuple(
    InferLine(f"extra{count}", f"--extra-detections {count}", {"extra_detections": count}) for count in range(4)
)
"""Of the localisation task with wrong detections."""

REAL = (PAPER, DEFAULT, *REFINED, INFERRED)
UNAWARE = tuple(replace(variant, slug=f"unaware{variant.rounds}", flows="unaware") for variant in (DEFAULT, INFERRED))
"""Without knowledge of the objects' symmetries."""
DETECTION = (
    replace(DEFAULT, title="--refine 0, the tool's score"),
    replace(INFERRED, slug="detector", title=f"--refine {MAX_ROUNDS}, the detector's score", detector_score=True),
    replace(INFERRED, title=f"--refine {MAX_ROUNDS}, the tool's score"),
)
