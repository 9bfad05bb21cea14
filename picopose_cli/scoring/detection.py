"""BOP24: average precision of the detection task, in which the objects of an image are not known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.types import MM_PER_M, Array
from picopose_cli.scoring.assignment import UNMATCHED, best_scored, match_greedily
from picopose_cli.scoring.localisation import UNKNOWN_TIME_S
from picopose_cli.scoring.pair_errors import PairErrors
from picopose_cli.scoring.thresholds import MSPD_THRESHOLDS_PX, MSSD_THRESHOLDS, MSSD_THRESHOLDS_MM

RECALL_LEVELS = np.linspace(0, 1, 101)
AP_THRESHOLDS = {"mssd": MSSD_THRESHOLDS, "mspd": MSPD_THRESHOLDS_PX, "mssd_mm": MSSD_THRESHOLDS_MM}


@dataclass(frozen=True)
class Precision:
    """Average precision of one object at each threshold: `mssd`, `mspd`, `mssd_mm` (thresholds,).

    `targets`: instances to find; `estimates` that are counted; `matches` at the widest MSSD threshold.
    """

    targets: int
    estimates: int
    matches: int
    mssd: Array
    mspd: Array
    mssd_mm: Array


@dataclass(frozen=True)
class DetectionScores:
    """The scores of one result file: the precision of each object, and the mean time per image (None: unknown)."""

    objects: dict[int, Precision]
    mean_time_s: float | None
    value: ClassVar = "average precision"
    errors: ClassVar = tuple(AP_THRESHOLDS)

    def curve(self, error: str) -> Array:
        """Return the mean over objects of the average precision by `mssd`, `mspd` or `mssd_mm`, (thresholds,)."""
        mean: Array = np.mean([getattr(precision, error) for precision in self.objects.values()], axis=0)
        return mean

    def object_mean(self, obj_id: int, error: str) -> float | None:
        """Return the average precision of an object by an error, None for an object without targets."""
        precision = self.objects.get(obj_id)
        return None if precision is None else float(getattr(precision, error).mean())

    def summary(self, *, per_object: bool = False) -> dict[str, Any]:
        """Return the scores under the names of the toolkit's scores_bop24.json; `per_object` adds each object's."""
        mssd, mspd, mssd_mm = (float(self.curve(error).mean()) for error in AP_THRESHOLDS)
        scores: dict[str, Any] = {
            "bop24_mAP": (mssd + mspd) / 2,
            "bop24_mAP_mssd": mssd,
            "bop24_mAP_mspd": mspd,
            "bop24_mAP_mssd_mm": mssd_mm,
            "bop24_average_time_per_image": UNKNOWN_TIME_S if self.mean_time_s is None else self.mean_time_s,
            "bop25_mAP": mssd,
            "bop25_mAP_mm": mssd_mm,
        }
        if per_object:
            scores["objects"] = {str(obj_id): _object_summary(one) for obj_id, one in self.objects.items()}
        return scores


def _object_summary(precision: Precision) -> dict[str, Any]:
    counts = {"targets": precision.targets, "estimates": precision.estimates, "matches": precision.matches}
    return counts | {f"AP_{error}": float(getattr(precision, error).mean()) for error in AP_THRESHOLDS}


def detection_precisions(errors: Iterable[PairErrors]) -> dict[int, Precision]:
    """Return the precision of each object that has targets, by object id.

    `errors` of all objects in all images, the estimates of each sorted by score, best first.
    """
    by_object: dict[int, list[PairErrors]] = {}
    for pairs in errors:
        by_object.setdefault(pairs.obj_id, []).append(pairs)
    return {
        obj_id: _object_precision(images)
        for obj_id, images in sorted(by_object.items())
        if any(pairs.is_target.any() for pairs in images)
    }


def _object_precision(images: list[PairErrors]) -> Precision:
    targets = sum(int(pairs.is_target.sum()) for pairs in images)
    order = best_scored(np.concatenate([pairs.scores for pairs in images]))
    curves, matches = [], []
    for error, thresholds in AP_THRESHOLDS.items():
        classified = [
            classify_matches(match_greedily(_errors(one, error), thresholds), one.is_target) for one in images
        ]
        correct, counted = (np.concatenate(parts, axis=1)[:, order] for parts in zip(*classified, strict=True))
        rows = zip(correct, counted, strict=True)
        curves.append(np.array([average_precision(hits[keep], targets) for hits, keep in rows]))
        matches.append(int(correct[-1].sum()))
    return Precision(targets, len(order), matches[0], *curves)


def _errors(pairs: PairErrors, error: str) -> Array:
    return {"mssd": pairs.mssd_m / pairs.diameter_m, "mspd": pairs.mspd_px, "mssd_mm": pairs.mssd_m * MM_PER_M}[error]


def classify_matches(
    matched: NDArray[np.intp], is_target: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return for matches (T,E) which estimates are correct and which are counted, both (T,E).

    An estimate that is matched to an instance that is not a target (`is_target` (G,)) is neither correct nor wrong: it
    is not counted. Source: toolkit, score.calc_pose_detection_scores.
    """
    found = matched != UNMATCHED
    counted = np.append(is_target, True)[matched]  # UNMATCHED is the last
    return found & counted, counted


def average_precision(correct: NDArray[np.bool_], targets: int) -> float:
    """Return the precision averaged over 101 levels of recall.

    `correct` (E,) of all estimates, sorted by score, best first; `targets`: number of instances to find. The precision
    at a level is the highest at that recall or above, 0 where the recall is not reached. Source: COCO's evaluation.
    """
    if not correct.any():
        return 0.0
    hits = np.cumsum(correct)
    precision = hits / np.arange(1, len(correct) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(hits / targets, RECALL_LEVELS, side="left")
    return float(np.append(envelope, 0.0)[reached].mean())
