"""BOP19: recall of the localisation task, in which the objects of each image and their number are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import Any, ClassVar

import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.scoring.assignment import UNMATCHED, match_greedily
from picopose_cli.scoring.pair_errors import PairErrors
from picopose_cli.scoring.thresholds import (
    ADD_AREA_LIMIT_M,
    ADD_THRESHOLD,
    MSPD_THRESHOLDS_PX,
    MSSD_THRESHOLDS,
    VSD_THRESHOLDS,
)

UNKNOWN_TIME_S = -1.0
"""The toolkit's value for a missing time."""


@dataclass(frozen=True)
class Tally:
    """Counts of matched targets of one object, or of several together; tallies of the same kind can be added.

    `targets`: instances to find; `estimates` that are counted. Numbers of matched targets: `vsd` (taus, thresholds),
    `mssd` and `mspd` (thresholds,); `add` and `adds` at a tenth of the diameter; `add_area`, `adds_area`: sum over the
    targets of the area under the recall curve up to 10 cm (1 for a perfect pose). None: not computed.
    """

    targets: int
    estimates: int
    mssd: Array
    mspd: Array
    vsd: Array | None = None
    add: int | None = None
    adds: int | None = None
    add_area: float | None = None
    adds_area: float | None = None

    def __add__(self, other: Tally) -> Tally:
        """Return the sum of both."""
        return Tally(*(_sum(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)))

    @property
    def errors(self) -> tuple[str, ...]:
        """The errors that recalls were computed for, in BOP's order."""
        return ("mssd", "mspd") if self.vsd is None else ("vsd", "mssd", "mspd")

    @property
    def matches(self) -> int:
        """Number of targets matched at the widest MSSD threshold, half a diameter."""
        return int(self.mssd[-1])

    def recall(self, error: str) -> Array:
        """Return the recall (thresholds,) by `vsd` (mean over taus), `mssd` or `mspd`."""
        found = np.asarray(getattr(self, error), np.float64)
        return (found.mean(axis=0) if found.ndim == 2 else found) / max(self.targets, 1)

    def average_recall(self, error: str) -> float:
        """Return the mean recall over the thresholds (and taus) of an error."""
        return float(self.recall(error).mean())

    @property
    def total(self) -> float | None:
        """BOP's AR: the mean of the three average recalls; None without VSD."""
        return None if self.vsd is None else float(np.mean([self.average_recall(error) for error in self.errors]))

    def share(self, name: str) -> float | None:
        """Return `add`, `adds`, `add_area` or `adds_area` as a share of the targets, None where not computed."""
        value = getattr(self, name)
        return None if value is None else float(value / max(self.targets, 1))


@dataclass(frozen=True)
class LocalisationScores:
    """The scores of one result file: a tally of each object, and the mean time per image (None: unknown)."""

    objects: dict[int, Tally]
    mean_time_s: float | None
    value: ClassVar = "recall"

    @property
    def total(self) -> Tally:
        """All objects together."""
        return reduce(add, self.objects.values())

    @property
    def errors(self) -> tuple[str, ...]:
        """The errors that recalls were computed for."""
        return self.total.errors

    def curve(self, error: str) -> Array:
        """Return the recall of all objects together by an error, (thresholds,)."""
        return self.total.recall(error)

    def object_mean(self, obj_id: int, error: str) -> float | None:
        """Return the average recall of an object by an error, None for an object without targets."""
        tally = self.objects.get(obj_id)
        return None if tally is None else tally.average_recall(error)

    def summary(self, *, per_object: bool = False) -> dict[str, Any]:
        """Return the scores under the names of the toolkit's scores_bop19.json.

        Without VSD its recall and the total are left out. `per_object` adds ADD(-S) and the scores of each object.
        """
        total = self.total
        scores: dict[str, Any] = {} if total.total is None else {"bop19_average_recall": total.total}
        scores |= {f"bop19_average_recall_{error}": total.average_recall(error) for error in total.errors}
        scores["bop19_average_time_per_image"] = UNKNOWN_TIME_S if self.mean_time_s is None else self.mean_time_s
        if per_object:
            scores |= _average_distances(total)
            scores["objects"] = {str(obj_id): _object_summary(tally) for obj_id, tally in self.objects.items()}
        return scores


def _object_summary(tally: Tally) -> dict[str, Any]:
    scores: dict[str, Any] = {
        "targets": tally.targets,
        "estimates": tally.estimates,
        "matches": tally.matches,
        "average_recall": tally.total,
    }
    scores |= {f"average_recall_{error}": tally.average_recall(error) for error in tally.errors}
    return scores | _average_distances(tally)


def _average_distances(tally: Tally) -> dict[str, float | None]:
    names = {"add": "add_recall", "adds": "adds_recall", "add_area": "add_auc", "adds_area": "adds_auc"}
    return {written: tally.share(name) for name, written in names.items()}


def _sum(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a + b


def localisation_tallies(errors: Iterable[PairErrors]) -> dict[int, Tally]:
    """Return a tally of each object, by object id, from the errors of all its targets."""
    tallies: dict[int, Tally] = {}
    for pairs in errors:
        tally = tally_target(pairs)
        known = tallies.get(pairs.obj_id)
        tallies[pairs.obj_id] = tally if known is None else known + tally
    return dict(sorted(tallies.items()))


def tally_target(pairs: PairErrors) -> Tally:
    """Return the tally of one object in one image; all instances are targets."""
    found, area = _find_by_average(pairs.add_m, pairs.diameter_m)
    found_symmetric, area_symmetric = _find_by_average(pairs.adds_m, pairs.diameter_m)
    return Tally(
        targets=pairs.mssd_m.shape[1],
        estimates=len(pairs.scores),
        mssd=_found(pairs.mssd_m / pairs.diameter_m, MSSD_THRESHOLDS),
        mspd=_found(pairs.mspd_px, MSPD_THRESHOLDS_PX),
        vsd=None if pairs.vsd is None else _found_at_taus(pairs.vsd, VSD_THRESHOLDS),
        add=found,
        adds=found_symmetric,
        add_area=area,
        adds_area=area_symmetric,
    )


def _found(errors: Array, thresholds: Array) -> Array:
    """Return the number of matched instances at each threshold (T,) for errors (E,G), or one array for each (T,E,G)."""
    found: Array = (match_greedily(errors, thresholds) != UNMATCHED).sum(axis=1)
    return found


def _found_at_taus(errors: Array, thresholds: Array) -> Array:
    """Return the number of matched instances for errors (taus,E,G), (taus, thresholds); all matched in one call."""
    taus = len(errors)
    found = _found(np.repeat(errors, len(thresholds), axis=0), np.tile(thresholds, taus))
    return found.reshape(taus, -1)


def _find_by_average(error_m: Array | None, diameter_m: float) -> tuple[int | None, float | None]:
    """Return the number of instances matched at a tenth of the diameter, and the summed area under the recall curve.

    The area of one instance is that of a step from 0 to 1 at its error, 1 - error / 10 cm. Estimates are matched to the
    nearest unmatched instance, best score first.
    """
    if error_m is None:
        return None, None
    found = int(_found(error_m / diameter_m, np.array([ADD_THRESHOLD]))[0])
    matched = match_greedily(error_m, np.array([ADD_AREA_LIMIT_M]))[0]
    rows = np.flatnonzero(matched != UNMATCHED)
    return found, float((1 - error_m[rows, matched[rows]] / ADD_AREA_LIMIT_M).sum())
