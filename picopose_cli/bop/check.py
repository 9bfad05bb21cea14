"""Faults of a result file that make an upload fail, or score less than it should.

An error is what the BOP toolkit rejects; a warning is what it accepts although rows are ignored or cannot be correct.
Files are read line by line as the toolkit reads them, so that every fault is found and not only the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import rotation_deviation
from picopose_cli.base.types import AnyTarget, Array, ImageTarget
from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.known_datasets import is_unscored_sensor, scored_suffixes
from picopose_cli.bop.result_names import drop_separators, parse_result_name
from picopose_cli.bop.results import (
    HEADER,
    MAX_TIME_SPREAD_S,
    ResultRow,
    is_header,
    numbered_lines,
    parse_row,
)

if TYPE_CHECKING:  # `infer` checks its results at the end: its start must not wait for pandas
    import pandas as pd

ERROR, WARNING = "error", "warning"
ROTATION_TOLERANCE = 0.02
"""Of R R^T from the identity: the ground truth of LM-O reaches 0.0096, network outputs 1e-6."""
MIN_DISTANCE_MM = 20.0
"""No camera sees a whole object from closer; in metres every translation of the benchmark is far below."""
SHOWN_PER_KIND = 3

_IMAGE = ["scene_id", "im_id"]
_OBJECT = [*_IMAGE, "obj_id"]
_R = [f"R{index}" for index in range(9)]
_T_MM = ["x_mm", "y_mm", "z_mm"]


@dataclass(frozen=True)
class Finding:
    """One fault: `error` (the toolkit rejects the file) or `warning`, the line in the file, and its description.

    `kind` is the same for all faults of a sort, for grouping; `row` is None when it is about the whole file.
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

    Without `targets` images, objects and counts are not checked; without `dataset` only the form of the name is.
    Raises PicoPoseError when the file does not exist or cannot be read.
    """
    findings = list(_check_name(path, dataset))
    rows: dict[int, ResultRow] = {}
    findings += _read_rows(path, rows)
    table = _make_table(rows)
    findings += _check_numbers(table)
    findings += _check_rotations(table)
    findings += _check_translations(table)
    findings += _check_times(table)
    findings += _check_duplicates(table)
    if targets is not None:
        findings += _check_targets(table, targets)
    return sorted(findings, key=lambda finding: (finding.row is not None, finding.row or 0))


def _check_name(path: Path, dataset: Dataset | None) -> Iterator[Finding]:
    try:
        name = parse_result_name(path)
    except PicoPoseError as error:
        yield Finding(ERROR, None, str(error), "name")
        return
    if is_unscored_sensor(name.dataset, name.split_type):
        scored = " and ".join(suffix.removeprefix("_") for suffix in scored_suffixes(name.dataset))
        text = f"the poses are of the sensor {name.split_type}, in its frame; BOP scores those of {scored}"
        yield Finding(WARNING, None, text, "sensor")
    if path.suffix != ".csv":
        yield Finding(WARNING, None, f"the name {path.name!r} does not end in .csv", "name")
    if dataset is None:
        return
    if name.dataset != drop_separators(dataset.name):
        text = f"data set {name.dataset!r} in the name, but the file is compared with {dataset.name!r}"
        yield Finding(WARNING, None, text, "name")
    elif dataset.split != name.split_folder and dataset.result_split != name.split_folder.replace("_", "-"):
        text = f"split {name.split_folder!r} in the name, but the file is compared with {dataset.split!r}"
        yield Finding(WARNING, None, text, "name")


def _read_rows(path: Path, rows: dict[int, ResultRow]) -> Iterator[Finding]:
    """Add the readable rows to `rows` by line number; yield the faults of the others."""
    number = 0
    for number, line in numbered_lines(path):
        if number == 1 and is_header(line):
            continue
        if number == 1 and _is_wrong_header(line):
            yield Finding(ERROR, 1, f"the header is {line.strip()[:80]!r}, must be {HEADER!r}", "header")
            continue
        if number == 1:
            yield Finding(WARNING, 1, f"there is no header {HEADER!r}", "header")
        try:
            rows[number] = parse_row(line)
        except ValueError as error:
            kind = "blank line" if not line.strip() else "unreadable row"
            yield Finding(ERROR, number, str(error), kind)
    if number == 0:
        yield Finding(ERROR, None, "the file is empty", "empty file")
    elif not rows:
        yield Finding(ERROR, None, "the file has no readable row", "empty file")


def _is_wrong_header(line: str) -> bool:
    """Return whether a line is a header with wrong names, not a row: the first field of a row has digits."""
    first = line.split(",")[0].strip()
    return bool(first) and not any(character.isdigit() for character in first)


def _make_table(rows: dict[int, ResultRow]) -> pd.DataFrame:
    """Return the rows as a table of numbers, indexed by line number; `row` is the line number as a column."""
    import pandas as pd

    values = list(rows.values())
    ids = np.array([value[:3] for value in values], np.int64).reshape(-1, 3)
    R = np.array([value.R for value in values], np.float64).reshape(-1, 9)
    t_mm = np.array([value.t_mm for value in values], np.float64).reshape(-1, 3)
    table = pd.DataFrame(ids, index=list(rows), columns=_OBJECT)
    table[_R], table[_T_MM] = R, t_mm
    table["score"] = np.array([value.score for value in values], np.float64)
    table["time_s"] = np.array([value.time_s for value in values], np.float64)
    table["row"] = table.index
    return table


def _check_numbers(table: pd.DataFrame) -> Iterator[Finding]:
    import pandas as pd

    columns = {"score": ["score"], "R": _R, "t": _T_MM, "time": ["time_s"]}
    broken = pd.DataFrame({name: ~np.isfinite(table[parts]).all(axis=1) for name, parts in columns.items()})
    for row, flags in zip(_rows(table, broken.any(axis=1)), broken[broken.any(axis=1)].to_numpy(), strict=True):
        fields = [name for name, flag in zip(columns, flags, strict=True) if flag]
        effect = "there is no mean time" if fields == ["time"] else "the row cannot match anything"
        yield Finding(WARNING, row, f"{', '.join(fields)} not finite: {effect}", "NaN")
    for row in _rows(table, (table[_OBJECT] < 0).any(axis=1)):
        yield Finding(WARNING, row, "an id is negative", "negative id")
    negative = table[table["time_s"] < 0]
    for row, time_s in zip(negative["row"].tolist(), negative["time_s"].tolist(), strict=True):
        text = f"time {time_s:g} is negative: the toolkit then reports no time for the whole file"
        yield Finding(WARNING, row, text, "negative time")


def _rows(table: pd.DataFrame, chosen: pd.Series[bool] | Array) -> list[int]:
    numbers: list[int] = table["row"][chosen].tolist()
    return numbers


def _check_rotations(table: pd.DataFrame) -> Iterator[Finding]:
    finite = table[np.isfinite(table[_R]).all(axis=1)]
    R: Array = finite[_R].to_numpy().reshape(-1, 3, 3)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers too large to compute with are reported as well
        deviations = rotation_deviation(R)
        determinants = np.linalg.det(R)
    for index in np.flatnonzero(~(deviations <= ROTATION_TOLERANCE) | (determinants < 0)):
        text = f"R is not a rotation (R R^T differs from the identity by {deviations[index]:.3g})"
        if deviations[index] <= ROTATION_TOLERANCE:
            text = "R is a reflection (its determinant is -1)"
        yield Finding(WARNING, int(finite["row"].iloc[index]), text, "not a rotation")


def _check_translations(table: pd.DataFrame) -> Iterator[Finding]:
    x_mm, y_mm, z_mm = table[_T_MM].to_numpy().T
    distances_mm = np.hypot(np.hypot(x_mm, y_mm), z_mm)
    near = distances_mm < MIN_DISTANCE_MM
    for row, distance_mm in zip(_rows(table, near), distances_mm[near], strict=True):
        yield Finding(WARNING, row, f"|t| = {distance_mm:.3g} mm: probably metres, must be mm", "t in metres")
    behind = ~near & np.isfinite(distances_mm) & (z_mm <= 0)
    for row, depth_mm in zip(_rows(table, behind), z_mm[behind], strict=True):
        yield Finding(WARNING, row, f"t z = {depth_mm:.6g} mm: the object is behind the camera", "behind camera")


def _check_times(table: pd.DataFrame) -> Iterator[Finding]:
    """Compare the time of each row with that of the first row of its image; unknown (negative) ones are left out."""
    table = table[table["time_s"] >= 0]
    first_rows = table.groupby(_IMAGE)["row"].transform("first")
    first_times_s = table["time_s"].loc[first_rows].to_numpy()
    differing = (table["time_s"] - first_times_s).abs() > MAX_TIME_SPREAD_S
    times_s = table["time_s"][differing].tolist(), first_times_s[differing].tolist()
    for row, first_row, time_s, first_s in zip(
        _rows(table, differing), first_rows[differing].tolist(), *times_s, strict=True
    ):
        text = f"time {time_s:g} differs from {first_s:g} of the same image in row {first_row}"
        yield Finding(ERROR, row, text, "differing times")


def _check_duplicates(table: pd.DataFrame) -> Iterator[Finding]:
    pose = [*_OBJECT, *_R, *_T_MM]
    known = table.dropna(subset=pose)  # NaN equals nothing
    repeated = known[known.duplicated(pose, keep=False)]
    first_rows = repeated.groupby(pose)["row"].transform("first")
    for row, first_row in zip(repeated["row"].tolist(), first_rows.tolist(), strict=True):
        if row != first_row:
            yield Finding(WARNING, row, f"the same pose of the same object as in row {first_row}", "duplicate")


def _check_targets(table: pd.DataFrame, targets: Sequence[AnyTarget]) -> Iterator[Finding]:
    """Compare with the targets: objects of an image (BOP19), or whole images (BOP24).

    BOP19 counts the best rows of an object, so that more rows are harmless, unless equal scores leave the choice to
    their order.
    """
    import pandas as pd

    keys = _IMAGE if isinstance(targets[0], ImageTarget) else _OBJECT
    limits = pd.DataFrame(map(_key_and_limit, targets), columns=[*keys, "limit"])
    rows = table[[*_OBJECT, "score", "row"]].merge(limits, how="left", on=keys)
    rows["limit"] = rows["limit"].fillna(-1).astype(np.int64)  # -1: not a target
    of_image = pd.MultiIndex.from_frame(rows[_IMAGE]).isin(pd.MultiIndex.from_frame(limits[_IMAGE]))
    for *image, row in rows.loc[~of_image, [*_IMAGE, "row"]].to_numpy().tolist():
        yield Finding(WARNING, row, f"{_place(image)} is not a target image: ignored", "unknown image")
    for *image, obj_id, row in rows.loc[of_image & (rows["limit"] < 0), [*_OBJECT, "row"]].to_numpy().tolist():
        text = f"object {obj_id} is not a target of {_place(image)}: ignored"
        yield Finding(WARNING, row, text, "unknown object")
    if keys == _OBJECT:
        rows = rows.sort_values("score", ascending=False, kind="stable")
    first_beyond = rows.groupby(keys).cumcount() == rows["limit"]
    if keys == _OBJECT:
        first_beyond &= rows["score"] == rows.groupby(keys)["score"].shift()
    effect = ", some of them of equal score: their order decides" if keys == _OBJECT else ""
    for *key, row, limit in rows.loc[first_beyond, [*keys, "row", "limit"]].to_numpy().tolist():
        text = f"{_place(key)} has more rows than the {limit} that are counted{effect}"
        yield Finding(WARNING, row, text, "too many rows")
    for key in pd.MultiIndex.from_frame(limits[keys]).difference(pd.MultiIndex.from_frame(table[keys])):
        yield Finding(WARNING, None, f"target without a row: {_place(key)}", "missing target")


def _key_and_limit(target: AnyTarget) -> tuple[int, ...]:
    if isinstance(target, ImageTarget):
        return target.scene_id, target.im_id, target.max_estimates
    return target.scene_id, target.im_id, target.obj_id, target.inst_count


def _place(key: Sequence[int]) -> str:
    scene_id, im_id, *obj_id = key
    return "".join(f"object {one} of " for one in obj_id) + f"scene {scene_id}, image {im_id}"


def grouped_lines(findings: Sequence[Finding]) -> list[str]:
    """Return a line per finding, errors first; of each kind only the first few, then the number of the others."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.kind), []).append(finding)
    lines = []
    for (severity, kind), members in sorted(groups.items(), key=lambda item: item[0][0] != ERROR):
        lines += [str(finding) for finding in members[:SHOWN_PER_KIND]]
        more = members[SHOWN_PER_KIND:]
        if more:
            rows = [str(finding.row) for finding in more if finding.row is not None]
            where = f" (rows {', '.join(rows[:10])}{', ...' if len(rows) > 10 else ''})" if rows else ""
            lines.append(f"{severity}: {kind}: {len(more)} more{where}")
    return lines
