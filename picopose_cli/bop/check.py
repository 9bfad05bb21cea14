"""What would make an upload of a result file fail, or score less than it should.

An error is what the BOP toolkit rejects; a warning is what it takes in silence: rows that it will ignore or that cannot
be right. Files are read line by line as the toolkit reads them, so that every fault is found and not only the first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import AnyTarget, ImageTarget
from picopose_cli.bop.datasets import NAME_DROPS, Dataset
from picopose_cli.bop.results import (
    HEADER,
    MAX_TIME_SPREAD_S,
    ResultRow,
    is_header,
    numbered_lines,
    parse_result_name,
    parse_row,
)

ERROR, WARNING = "error", "warning"
ROTATION_TOLERANCE = 0.02
"""Of R R^T from the identity: LM-O's own ground truth reaches 0.0096, network outputs 1e-6."""
MIN_DISTANCE_MM = 20.0
"""No camera sees an object whole from closer; in metres every translation of the benchmark is far below."""


SHOWN_OF_A_KIND = 3


@dataclass(frozen=True)
class Finding:
    """One fault: `error` (the toolkit rejects the file) or `warning`, the line in the file, and what is wrong.

    `kind` is the same for all faults of a sort, for grouping; `row` is None when it is about the file as a whole.
    """

    severity: str
    row: int | None
    text: str
    kind: str

    def __str__(self) -> str:
        place = "" if self.row is None else f"row {self.row}: "
        return f"{self.severity}: {place}{self.text}"


def check_results(
    path: Path, dataset: Dataset | None = None, targets: Sequence[AnyTarget] | None = None
) -> list[Finding]:
    """Return all faults of a result file, in the order of the rows.

    Without `targets` images, objects and counts are not checked; without `dataset` the name is checked for its form
    only. Raises PicoPoseError when the file does not exist or cannot be read.
    """
    findings = list(_check_name(path, dataset))
    rows: list[tuple[int, ResultRow]] = []
    findings += _read_rows(path, rows)
    findings += _check_numbers(rows)
    findings += _check_times(rows)
    findings += _check_duplicates(rows)
    if targets is not None:
        findings += _check_targets(rows, targets)
    return sorted(findings, key=lambda finding: (finding.row is not None, finding.row or 0))


def _check_name(path: Path, dataset: Dataset | None) -> Iterator[Finding]:
    try:
        name = parse_result_name(path)
    except PicoPoseError as error:
        yield Finding(ERROR, None, str(error), "name")
        return
    if path.suffix != ".csv":
        yield Finding(WARNING, None, f"the name {path.name!r} does not end in .csv", "name")
    if dataset is None:
        return
    if name.dataset != dataset.name.translate(NAME_DROPS):
        text = f"the name says data set {name.dataset!r}, the file is checked against {dataset.name!r}"
        yield Finding(WARNING, None, text, "name")
    elif dataset.split != name.split_folder and dataset.result_split != name.split_folder.replace("_", "-"):
        text = f"the name says split {name.split_folder!r}, the file is checked against {dataset.split!r}"
        yield Finding(WARNING, None, text, "name")


def _read_rows(path: Path, rows: list[tuple[int, ResultRow]]) -> Iterator[Finding]:
    """Append the rows that can be read to `rows`; yield what is wrong with the others."""
    number = 0
    for number, line in numbered_lines(path):
        if number == 1 and is_header(line):
            continue
        if number == 1 and _looks_like_header(line):
            yield Finding(ERROR, 1, f"the header is {line.strip()[:80]!r}, must be {HEADER!r}", "header")
            continue
        if number == 1:
            yield Finding(WARNING, 1, f"there is no header {HEADER!r}", "header")
        try:
            rows.append((number, parse_row(line)))
        except ValueError as error:
            kind = "blank line" if not line.strip() else "unreadable row"
            yield Finding(ERROR, number, str(error), kind)
    if number == 0:
        yield Finding(ERROR, None, "the file is empty", "empty file")
    elif not rows:
        yield Finding(ERROR, None, "the file holds no estimate that can be read", "empty file")


def _looks_like_header(line: str) -> bool:
    """Tell a header with wrong names from a first row without header: a row begins with a number."""
    first = line.split(",")[0].strip()
    return bool(first) and not any(character.isdigit() for character in first)


def _check_numbers(rows: Iterable[tuple[int, ResultRow]]) -> Iterator[Finding]:
    for number, row in rows:
        if not all(map(math.isfinite, (row.score, *row.R, *row.t_mm, row.time_s))):
            names = ("score", (row.score,)), ("R", row.R), ("t", row.t_mm), ("time", (row.time_s,))
            fields = [name for name, values in names if not all(map(math.isfinite, values))]
            yield Finding(WARNING, number, f"{', '.join(fields)} not finite: the row cannot match anything", "NaN")
        if min(row.scene_id, row.im_id, row.obj_id) < 0:
            yield Finding(WARNING, number, "an id is negative", "negative id")
        if row.time_s < 0:
            text = f"time {row.time_s:g} is negative: the toolkit then reports no time for the whole file"
            yield Finding(WARNING, number, text, "negative time")
        yield from _check_pose(number, row)


def _check_pose(number: int, row: ResultRow) -> Iterator[Finding]:
    R = np.array(row.R).reshape(3, 3)
    if np.isfinite(R).all():
        with np.errstate(over="ignore", invalid="ignore"):  # absurd numbers are reported, not computed with
            deviation = np.abs(R @ R.T - np.eye(3)).max()
            determinant = np.linalg.det(R)
        if not deviation <= ROTATION_TOLERANCE:
            text = f"R is not a rotation (R R^T differs from the identity by {deviation:.3g})"
            yield Finding(WARNING, number, text, "not a rotation")
        elif determinant < 0:
            yield Finding(WARNING, number, "R is a reflection (its determinant is -1)", "not a rotation")
    distance_mm = math.hypot(*row.t_mm)
    if distance_mm < MIN_DISTANCE_MM:
        text = f"|t| = {distance_mm:.3g} mm: looks like metres, must be mm"
        yield Finding(WARNING, number, text, "t in metres")
    elif math.isfinite(distance_mm) and row.t_mm[2] <= 0:
        yield Finding(
            WARNING, number, f"t z = {row.t_mm[2]:.6g} mm: the object lies behind the camera", "behind camera"
        )


def _check_times(rows: Iterable[tuple[int, ResultRow]]) -> Iterator[Finding]:
    first: dict[tuple[int, int], tuple[int, float]] = {}
    for number, row in rows:
        first_number, time_s = first.setdefault((row.scene_id, row.im_id), (number, row.time_s))
        if abs(time_s - row.time_s) > MAX_TIME_SPREAD_S:
            text = f"time {row.time_s:g} differs from {time_s:g} of the same image in row {first_number}"
            yield Finding(ERROR, number, text, "differing times")


def _check_duplicates(rows: Iterable[tuple[int, ResultRow]]) -> Iterator[Finding]:
    first: dict[tuple[object, ...], int] = {}
    for number, row in rows:
        key = (row.scene_id, row.im_id, row.obj_id, row.R, row.t_mm)
        first_number = first.setdefault(key, number)
        if first_number != number:
            yield Finding(WARNING, number, f"the same pose of the same object as in row {first_number}", "duplicate")


def _check_targets(rows: Sequence[tuple[int, ResultRow]], targets: Sequence[AnyTarget]) -> Iterator[Finding]:
    """Compare with what is asked for: objects of an image (BOP19), or the image as a whole (BOP24)."""
    wanted = dict(map(_key_and_count, targets))
    images = {key[:2] for key in wanted}
    counts: Counter[tuple[int, ...]] = Counter()
    for number, row in rows:
        image = (row.scene_id, row.im_id)
        key: tuple[int, ...] = image if image in wanted else (*image, row.obj_id)
        counts[key] += 1
        if image not in images:
            yield Finding(WARNING, number, f"{_place(image)} is no target image: ignored", "unknown image")
        elif key not in wanted:
            text = f"object {row.obj_id} is no target of {_place(image)}: ignored"
            yield Finding(WARNING, number, text, "unknown object")
        elif counts[key] == wanted[key] + 1:
            text = f"{_place(key)} has more rows than the {wanted[key]} that count"
            yield Finding(WARNING, number, text, "too many rows")
    for key in sorted(set(wanted) - set(counts)):
        yield Finding(WARNING, None, f"target without a row: {_place(key)}", "missing target")


def _key_and_count(target: AnyTarget) -> tuple[tuple[int, ...], int]:
    if isinstance(target, ImageTarget):
        return (target.scene_id, target.im_id), target.max_estimates
    return (target.scene_id, target.im_id, target.obj_id), target.inst_count


def _place(key: tuple[int, ...]) -> str:
    scene_id, im_id, *obj_id = key
    return "".join(f"object {one} of " for one in obj_id) + f"scene {scene_id}, image {im_id}"


def grouped_lines(findings: Sequence[Finding]) -> list[str]:
    """Return a line a finding, errors first, of each kind only the first few and then how many more there are."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.kind), []).append(finding)
    lines = []
    for (severity, kind), members in sorted(groups.items(), key=lambda item: item[0][0] != ERROR):
        lines += [str(finding) for finding in members[:SHOWN_OF_A_KIND]]
        more = members[SHOWN_OF_A_KIND:]
        if more:
            rows = [str(finding.row) for finding in more if finding.row is not None]
            where = f" (rows {', '.join(rows[:10])}{', ...' if len(rows) > 10 else ''})" if rows else ""
            lines.append(f"{severity}: {kind}: {len(more)} more{where}")
    return lines
