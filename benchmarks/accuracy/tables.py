"""The measurements as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from accuracy.summary import NUMBERS

ABLATIONS_CAPTION = (
    "95 %: bootstrap over the objects; above: AR above --rules paper, 5 hypotheses, same draws; worst: object"
)
SYMMETRIC_CAPTION = "above: AR above the same line without the symmetries"
EXTRA_CAPTION = "above: AR above that of the best detections alone; targets without a detection are not found"
CLASSES_CAPTION = "rough masks; 95 %: bootstrap over the objects; before: the same line in the result of --before"
DETECTION_CAPTION = "above: mAP above that of the detector's score; 95 %: bootstrap over the objects"
REAL_CAPTION = "no AR without depth images; each mean is over the data sets that have the number"


def ablations_table(title: str, caption: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return rows of variants by kind of mask, with intervals."""
    table = _table(title, caption, ("masks", "line"))
    for head in ("found", *_NUMBER_HEADS, "AR 95 %", "above, 95 %", "worst"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        worst = row.get("worst_object_above")
        above = _gain(row["AR_above"], row["AR_above_95"]) if "AR_above" in row else "-"
        intervals = _interval(row["AR_95"]), above, "-" if worst is None else f"{worst:+.3f}"
        table.add_row(row["masks"], row["line"], *_numbers(row), *intervals)
    return table


def classes_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return rows of lines by class, with intervals and, where it is known, the gain above an earlier result."""
    table = _table(title, CLASSES_CAPTION, ("data", "line"))
    for head in ("found", *_NUMBER_HEADS, "AR 95 %", "above paper, 95 %", "above before, 95 %"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        above = _gain(row["AR_above"], row["AR_above_95"])
        known = "AR_above_before" in row
        before = _gain(row["AR_above_before"], row["AR_above_before_95"]) if known else "-"
        table.add_row(row["data"], row["line"], *_numbers(row), _interval(row["AR_95"]), above, before)
    return table


def real_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return rows of variants by data set."""
    table = _table(title, REAL_CAPTION, ("data", "line"))
    for head in ("found", *_NUMBER_HEADS):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["data"], row["line"], *_numbers(row))
    return table


def detection_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return rows of the detection task."""
    heads = ("line", "estimates", "mAP", "MSSD", "MSPD", "mAP 95 %", "above, 95 %")
    table = _table(title, DETECTION_CAPTION, heads)
    for row in rows:
        numbers = [_number(row[name]) for name in ("mAP", "mAP_mssd", "mAP_mspd")]
        above = _gain(row["above"], row["above_95"]) if "above" in row else "-"
        table.add_row(row["line"], str(row["estimates"]), *numbers, _interval(row["mAP_95"]), above)
    return table


_NUMBER_HEADS = ("AR", "VSD", "MSSD", "MSPD", "MSSD<.1d", "s/image")


def _table(title: str, caption: str, heads: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left", caption=caption)
    for head in heads:
        table.add_column(head)
    return table


def _numbers(row: dict[str, Any]) -> list[str]:
    return [f"{row['estimates']}/{row['targets']}", *(_number(row[name]) for name in NUMBERS)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(ends: tuple[float, float], sign: str = "") -> str:
    return f"{ends[0]:{sign}.3f} {ends[1]:{sign}.3f}"


def _gain(value: float, interval: tuple[float, float]) -> str:
    return f"{value:+.3f} ({_interval(interval, '+')})"
