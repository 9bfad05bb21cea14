"""Result files of the BOP challenge: rows in mm and seconds, written and read.

A row is `scene_id,im_id,obj_id,score,R,t,time`: R nine numbers row by row, t three in mm, `time` the seconds for the
whole image. Source: the result format of the BOP challenge and the toolkit's loader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_path
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import MM_PER_M, AnyTarget, Array, PoseEstimate, Target

if TYPE_CHECKING:
    import pandas as pd

HEADER = "scene_id,im_id,obj_id,score,R,t,time"
MAX_TIME_SPREAD_S = 0.001
"""The toolkit rejects a file in which the times of an image differ by more."""
_MAX_ID = 2**53
_ROWS_AT_ONCE = 4096
_ID_FIELDS = 3
_FIELDS = HEADER.split(",")
_CHECK = "run `picopose check` on it for all faults"


class ResultRow(NamedTuple):
    """One line of a result file, in its units: `R` nine numbers row by row, `t_mm` three, `time_s` of the image."""

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

    `row` (N,): line numbers in the file, for messages. A negative `time_s` means unknown. Of a row in `not_finite`, the
    pose is NaN: it matches nothing; no score is NaN.
    """

    path: Path
    scene_id: Array
    im_id: Array
    obj_id: Array
    score: Array
    T_cam_from_obj: Array
    time_s: Array
    row: Array
    not_finite: tuple[int, ...] = ()
    """Line numbers of the rows whose score is NaN, or whose pose has a number that is not finite."""

    def mean_time_s(self) -> float | None:
        """Return the mean time over images, None when a time is unknown (negative or not finite).

        Raises PicoPoseError when the times of an image differ by more than a millisecond, which the toolkit rejects.
        """
        if not (np.isfinite(self.time_s) & (self.time_s >= 0)).all() or not len(self.time_s):
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

    The rows are written in parts, as they come. Raises PicoPoseError when the file cannot be written, and ValueError
    for estimates that a result file must not hold: numbers that are not finite, or differing times within an image.
    """
    checked = _with_one_time_per_image(estimates)
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii", newline="") as stream:
        stream.write(HEADER + "\n")
        while part := list(islice(checked, _ROWS_AT_ONCE)):
            _make_frame(part).to_csv(stream, index=False, header=False, lineterminator="\n")


def _with_one_time_per_image(estimates: Iterable[PoseEstimate]) -> Iterator[PoseEstimate]:
    times_s: dict[tuple[int, int], float] = {}
    for estimate in estimates:
        image = (estimate.scene_id, estimate.im_id)
        if estimate.time_s != times_s.setdefault(image, estimate.time_s):
            raise ValueError(f"scene {image[0]}, image {image[1]}: the rows of an image need the same time")
        yield estimate


def _make_frame(estimates: Sequence[PoseEstimate]) -> pd.DataFrame:
    """Return the columns of a result file; raises ValueError for numbers that are not finite."""
    import pandas as pd  # imported here because reading a file, and so `picopose score`, must not wait for it

    T = np.array([estimate.T_cam_from_obj for estimate in estimates], np.float64)  # (N,4,4)
    frame = pd.DataFrame(
        {
            "scene_id": np.array([estimate.scene_id for estimate in estimates], np.int64),
            "im_id": np.array([estimate.im_id for estimate in estimates], np.int64),
            "obj_id": np.array([estimate.obj_id for estimate in estimates], np.int64),
            "score": np.array([estimate.score for estimate in estimates], np.float64),
            "R": _joined(T[:, :3, :3].reshape(-1, 9)),
            "t": _joined(T[:, :3, 3] * MM_PER_M),
            "time": np.array([estimate.time_s for estimate in estimates], np.float64),
        }
    )
    finite = np.isfinite(T).all(axis=(1, 2)) & np.isfinite(frame[["score", "time"]]).all(axis=1)
    if not finite.all():
        broken = frame[~finite].iloc[0]
        raise ValueError(f"scene {broken['scene_id']}, image {broken['im_id']}: an estimate is not finite")
    return frame


def _joined(numbers: Array) -> list[str]:
    """Return each row of (N,k) f64 as text, its numbers separated by blanks and exact."""
    return [" ".join(map(repr, row)) for row in numbers.tolist()]


def read_results(path: Path) -> ResultTable:
    """Return a BOP result file as arrays in metres, rows in the order of the file.

    Rows are parsed here and not by pandas: it would parse 100,000 rows in half the time, but its import takes 0.3 s of
    the 0.9 s in which a small file is scored, and its parser is exact only with an option that pandas 3 deprecates.
    Raises PicoPoseError naming the row when a line is not accepted by the toolkit's loader. That accepts NaN, which
    then matches nothing; such a row is ranked last here.
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
        raise PicoPoseError("the result file has no rows", where=path, fix="write at least one estimate")
    return _without_broken_poses(_table(path, rows, numbers))


def counted_rows(table: ResultTable, targets: Sequence[AnyTarget]) -> ResultTable:
    """Return a table without the rows that the localisation task ranks after the `inst_count` best of its target.

    Rows of other images and objects, and all rows where the targets are those of the detection task, stay.
    """
    left = {(one.scene_id, one.im_id, one.obj_id): one.inst_count for one in targets if isinstance(one, Target)}
    keys = list(zip(table.scene_id.tolist(), table.im_id.tolist(), table.obj_id.tolist(), strict=True))
    kept = np.ones(len(keys), np.bool_)
    for row in np.argsort(-table.score, kind="stable").tolist():
        if keys[row] in left:
            kept[row] = left[keys[row]] > 0
            left[keys[row]] -= 1
    return select_rows(table, kept)


def select_rows(table: ResultTable, chosen: Array) -> ResultTable:
    """Return the rows of a table where `chosen` (N,) is true."""
    columns = ("scene_id", "im_id", "obj_id", "score", "T_cam_from_obj", "time_s", "row")
    kept = replace(table, **{name: getattr(table, name)[chosen] for name in columns})
    return replace(kept, not_finite=tuple(sorted(set(table.not_finite) & set(kept.row.tolist()))))


def _without_broken_poses(table: ResultTable) -> ResultTable:
    broken = ~np.isfinite(table.T_cam_from_obj).all(axis=(1, 2)) | np.isnan(table.score)
    T = np.where(broken[:, None, None], np.nan, table.T_cam_from_obj)
    score = np.where(np.isnan(table.score), -np.inf, table.score)
    return replace(table, T_cam_from_obj=T, score=score, not_finite=tuple(table.row[broken].tolist()))


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
    """Return the numbers of one line, read as the toolkit reads them; NaN is accepted.

    Raises ValueError naming the field that is wrong.
    """
    fields = line.split(",")
    if len(fields) != len(_FIELDS):
        raise ValueError(f"{len(fields)} fields, need {len(_FIELDS)}" if line.strip() else "the line is blank")
    if fields[0].strip() == _FIELDS[0]:
        raise ValueError("this is a header, not a row")
    scene_id, im_id, obj_id, score, R, t, time = fields
    R_numbers, t_numbers = R.split(), t.split()
    if len(R_numbers) != 9 or len(t_numbers) != 3:
        raise ValueError(f"R has {len(R_numbers)} numbers, t {len(t_numbers)}; need 9 and 3, separated by blanks")
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
    """Return whether a line is the header, by the toolkit's rule: it contains the field names."""
    return HEADER in line


def _broken_field(fields: list[str]) -> str:
    """Return which field of a row is not a number of its kind."""
    for index, (name, text) in enumerate(zip(_FIELDS, fields, strict=True)):
        for part in text.split() or [text]:
            try:
                _ = int(part) if index < _ID_FIELDS else float(part)
            except ValueError:
                return f"{name} is {part[:40]!r}, not {'a whole' if index < _ID_FIELDS else 'a'} number"
    return "a field has more than one number"


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
