"""Comparison with the result of an earlier commit, object by object: which sets lose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from accuracy.summary import bootstrap_interval

MAX_LOSS = 0.01
"""AR that a set may lose: less than what another draw of objects changes, so that no class pays for another's gain."""
SECTIONS = ("rows", "symmetric_objects", "classes")
Key = tuple[str, str | None, str, str]


def add_gains(result: dict[str, Any], before: dict[str, Any]) -> None:
    """Add to each row the AR above that of the same line in an earlier result, if its data were the same."""
    earlier = dict(_rows(before))
    for key, row in _rows(result):
        old = earlier.get(key)
        if old is not None and _data(result, row) == _data(before, old):
            gains, targets = np.subtract(row["object_AR"], old["object_AR"]), np.array(row["object_targets"])
            row["AR_above_before"] = float(np.average(gains, weights=targets))
            row["AR_above_before_95"] = bootstrap_interval(gains, targets)


def losses(result: dict[str, Any]) -> list[str]:
    """Return the lines that lose more than `MAX_LOSS`, in words."""
    return [
        f"{key[1] or key[0]}, {row['masks']} masks, {row['line']}: {row['AR_above_before']:+.3f}"
        for key, row in _rows(result)
        if row.get("AR_above_before", 0) < -MAX_LOSS
    ]


def _rows(result: dict[str, Any]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield the rows that have an AR for each object, with what identifies them."""
    for section in SECTIONS:
        for row in result.get(section, ()):
            if "object_AR" in row:
                yield (section, row.get("data"), row["masks"], row["line"]), row


def _data(result: dict[str, Any], row: dict[str, Any]) -> tuple[str | None, list[int]]:
    """Return the hash of a row's data, where it is known, and the number of targets of each object."""
    return row.get("data_sha256", result.get("data_sha256")), row["object_targets"]
