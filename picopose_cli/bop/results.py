"""Result files of the BOP challenge: their names, their rows (mm, seconds), written and read.

A row is `scene_id,im_id,obj_id,score,R,t,time`: R nine numbers row by row, t three in mm, `time` the seconds for the
whole image. Source: the result format of the BOP challenge and the toolkit's loader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_path
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import MM_PER_M, Array, PoseEstimate
from picopose_cli.bop.datasets import NAME_DROPS

HEADER = "scene_id,im_id,obj_id,score,R,t,time"
MAX_TIME_SPREAD_S = 0.001
"""Times of an image's rows that differ by more make the toolkit refuse the file."""
_MAX_ID = 2**53
_ROWS_AT_ONCE = 4096
_ID_FIELDS = 3
_FIELDS = HEADER.split(",")
_CHECK = "run `picopose check` on it for all faults"


@dataclass(frozen=True)
class ResultName:
    """The parts of a result file's name, METHOD_DATASET-SPLIT[-SPLITTYPE][_OPTID].csv."""

    method: str
    dataset: str
    split: str
    split_type: str | None = None
    opt_id: str | None = None

    @property
    def split_folder(self) -> str:
        """The split as `open_dataset` takes it."""
        return self.split if self.split_type is None else f"{self.split}_{self.split_type}"


class ResultRow(NamedTuple):
    """One line of a result file as it stands: `R` nine numbers row by row, `t_mm` three, `time_s` of the image."""

    scene_id: int
    im_id: int
    obj_id: int
    score: float
    R: tuple[float, ...]
    t_mm: tuple[float, ...]
    time_s: float


@dataclass(frozen=True)
class ResultTable:
    """A result file as arrays over its N rows: ids (N,) i64, `score` (N,), `T_cam_from_obj` (N,4,4) metres, `time_s`.

    `row` (N,) are line numbers in the file, for messages. All numbers are finite; `time_s` below 0 means not known.
    """

    path: Path
    scene_id: Array
    im_id: Array
    obj_id: Array
    score: Array
    T_cam_from_obj: Array
    time_s: Array
    row: Array

    def mean_time_s(self) -> float | None:
        """Return the mean time over images, None when a time is unknown (negative).

        Raises PicoPoseError when the times of an image differ by more than a millisecond, as the toolkit does.
        """
        if (self.time_s < 0).any() or not len(self.time_s):
            return None
        images = np.stack([self.scene_id, self.im_id], axis=1)
        _, first, image = np.unique(images, axis=0, return_index=True, return_inverse=True)
        times_s = self.time_s[first]
        differing = np.abs(self.time_s - times_s[image.reshape(-1)]) > MAX_TIME_SPREAD_S
        if differing.any():
            row = self.row[np.argmax(differing)]
            raise PicoPoseError(f"row {row}: the time differs from the image's other rows", where=self.path, fix=_CHECK)
        return float(times_s.mean())


def write_results(path: Path, estimates: Iterable[PoseEstimate]) -> None:
    """Write estimates as a BOP result file, which appears whole; numbers are written so that they read back exactly.

    The rows are written as they come and not held. Raises PicoPoseError when the file cannot be written, and ValueError
    for estimates that no result file may hold: numbers that are not finite, or differing times within an image.
    """
    import pandas as pd  # half a second that reading and scoring need not wait for

    rows = map(_fields, _with_one_time_an_image(estimates))
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii", newline="") as stream:
        stream.write(HEADER + "\n")
        while part := list(islice(rows, _ROWS_AT_ONCE)):
            pd.DataFrame(part).to_csv(stream, index=False, header=False, lineterminator="\n")


def _with_one_time_an_image(estimates: Iterable[PoseEstimate]) -> Iterator[PoseEstimate]:
    times_s: dict[tuple[int, int], float] = {}
    for estimate in estimates:
        image = (estimate.scene_id, estimate.im_id)
        if estimate.time_s != times_s.setdefault(image, estimate.time_s):
            raise ValueError(f"scene {image[0]}, image {image[1]}: the rows of an image need the same time")
        yield estimate


def _fields(estimate: PoseEstimate) -> tuple[int | float | str, ...]:
    T = np.asarray(estimate.T_cam_from_obj, np.float64)
    if not (np.isfinite(T).all() and np.isfinite([estimate.score, estimate.time_s]).all()):
        raise ValueError(f"scene {estimate.scene_id}, image {estimate.im_id}: an estimate is not finite")
    R = " ".join(map(repr, T[:3, :3].ravel().tolist()))
    t = " ".join(map(repr, (T[:3, 3] * MM_PER_M).tolist()))
    ids = int(estimate.scene_id), int(estimate.im_id), int(estimate.obj_id)
    return (*ids, float(estimate.score), R, t, float(estimate.time_s))


def read_results(path: Path) -> ResultTable:
    """Return a BOP result file as arrays in metres, rows in the order of the file.

    Raises PicoPoseError naming the row when a line is not what the toolkit's loader takes, or holds NaN.
    """
    rows = []
    numbers = []
    for number, line in numbered_lines(path):
        if number == 1 and is_header(line):
            continue
        try:
            rows.append(parse_row(line))
        except ValueError as error:
            raise PicoPoseError(f"row {number}: {error}", where=path, fix=_CHECK) from error
        numbers.append(number)
    if not rows:
        raise PicoPoseError("the result file holds no rows", where=path, fix="write at least one estimate")
    table = _table(path, rows, numbers)
    finite = np.isfinite(table.T_cam_from_obj).all(axis=(1, 2)) & np.isfinite(table.score) & np.isfinite(table.time_s)
    if not finite.all():
        row = table.row[np.argmin(finite)]
        raise PicoPoseError(f"row {row} holds a number that is not finite", where=path, fix=_CHECK)
    return table


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers from 1, without line ends.

    Raises PicoPoseError when the file is missing or cannot be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                yield number, line.rstrip("\n")
    except FileNotFoundError as error:
        raise PicoPoseError("the result file does not exist", where=path, fix="check the path") from error
    except OSError as error:
        raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=path, fix="check the file") from error


def parse_row(line: str) -> ResultRow:
    """Return one line's numbers, read as the toolkit reads them; NaN passes.

    Raises ValueError saying which field is wrong.
    """
    fields = line.split(",")
    if len(fields) != len(_FIELDS):
        raise ValueError(f"{len(fields)} fields, needs {len(_FIELDS)}" if line.strip() else "the line is blank")
    if fields[0].strip() == _FIELDS[0]:
        raise ValueError("a header where a row is needed")
    scene_id, im_id, obj_id, score, R, t, time = fields
    R_numbers, t_numbers = R.split(), t.split()
    if len(R_numbers) != 9 or len(t_numbers) != 3:
        raise ValueError(f"R has {len(R_numbers)} numbers, t {len(t_numbers)}; they need 9 and 3, split by blanks")
    try:
        ids = int(scene_id), int(im_id), int(obj_id)
        floats = tuple(map(float, R_numbers)), tuple(map(float, t_numbers)), float(time)
        row = ResultRow(*ids, float(score), *floats)
    except ValueError:
        raise ValueError(_broken_field(fields)) from None
    if max(map(abs, ids)) > _MAX_ID:
        raise ValueError("an id is too large")
    return row


def is_header(line: str) -> bool:
    """Tell whether a file's first line is the header, by the toolkit's rule: it contains the field names."""
    return HEADER in line


def _broken_field(fields: list[str]) -> str:
    """Say which field of a row is not the number it should be."""
    for index, (name, text) in enumerate(zip(_FIELDS, fields, strict=True)):
        for part in text.split() or [text]:
            try:
                _ = int(part) if index < _ID_FIELDS else float(part)
            except ValueError:
                return f"{name} holds {part[:40]!r}, which is not a {'whole ' if index < _ID_FIELDS else ''}number"
    return "a field holds more than one number"


def _table(path: Path, rows: list[ResultRow], numbers: list[int]) -> ResultTable:
    R = np.array([row.R for row in rows]).reshape(-1, 3, 3)
    t_m = np.array([row.t_mm for row in rows]) / MM_PER_M
    return ResultTable(
        path=path,
        scene_id=np.array([row.scene_id for row in rows], np.int64),
        im_id=np.array([row.im_id for row in rows], np.int64),
        obj_id=np.array([row.obj_id for row in rows], np.int64),
        score=np.array([row.score for row in rows]),
        T_cam_from_obj=make_T(R, t_m),
        time_s=np.array([row.time_s for row in rows]),
        row=np.array(numbers, np.int64),
    )


def parse_result_name(path: Path) -> ResultName:
    """Return the parts of a result file's name as the toolkit reads them: up to the first dot, at `_`, then at `-`.

    Raises PicoPoseError saying what is wrong with the name (the toolkit stops with an IndexError).
    """
    stem = path.name.split(".")[0]
    method, *rest = stem.split("_")
    dataset, *splits = rest[0].split("-") if rest else [""]
    if method and dataset and splits and splits[0]:
        return ResultName(
            method=method,
            dataset=dataset,
            split=splits[0],
            split_type=splits[1] if len(splits) > 1 and splits[1] else None,
            opt_id="_".join(rest[1:]) or None,
        )
    raise PicoPoseError(
        f"the name {path.name!r} is not METHOD_DATASET-SPLIT.csv: {_name_fault(path.name)}",
        fix="rename the file, as in mymethod_ycbv-test.csv",
    )


def _name_fault(name: str) -> str:
    stem = name.split(".")[0]
    whole_stem = Path(name).stem
    if whole_stem != stem and "_" in whole_stem and ("_" not in stem or "-" not in stem.split("_", 1)[1]):
        return f"nothing after its first dot counts, which leaves {stem!r}; METHOD must hold no dot"
    if "_" not in stem:
        return "there is no `_` between METHOD and DATASET"
    method, *rest = stem.split("_")
    if not method:
        return "METHOD is empty"
    if any("-" in part.strip("-") for part in rest[1:]):
        return f"METHOD and DATASET must hold no `_`, so {rest[0]!r} is read as DATASET-SPLIT"
    return f"there is no SPLIT in {rest[0]!r}" if rest[0].split("-")[0] else "DATASET is empty"


def result_file_name(method: str, dataset: str, split: str) -> str:
    """Return the file name that BOP demands; `split` may carry a type (`test-TYPE`).

    `_`, `-` and `.` separate the parts of a name, so they are dropped from the data set's (`visp_cube` -> `vispcube`;
    `open_dataset` finds it again). Raises PicoPoseError for a method that holds `_` or `.`.
    """
    if not method or "_" in method or "." in method:
        raise PicoPoseError(f"method name {method!r} must be non-empty without `_` and `.`", fix="choose another name")
    return f"{method}_{dataset.translate(NAME_DROPS)}-{split.replace('_', '-')}.csv"
