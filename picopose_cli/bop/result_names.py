"""Names of BOP result files: METHOD_DATASET-SPLIT[-SPLITTYPE][_OPTID].csv, read as the toolkit reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError

_SEPARATORS = str.maketrans("", "", "_-.")


@dataclass(frozen=True)
class ResultName:
    """The parts of a result file's name."""

    method: str
    dataset: str
    split: str
    split_type: str | None = None
    opt_id: str | None = None

    @property
    def split_folder(self) -> str:
        """The split as the name of a folder, as `open_dataset` takes it."""
        return self.split if self.split_type is None else f"{self.split}_{self.split_type}"


def parse_result_name(path: Path) -> ResultName:
    """Return the parts of a result file's name as the toolkit reads them: up to the first dot, at `_`, then at `-`.

    Raises PicoPoseError that explains the fault of the name (the toolkit stops with an IndexError).
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


def require_result_path(path: Path) -> None:
    """Raise PicoPoseError unless a result file may be written to `path`: a valid name that ends in .csv.

    Reports and journals have names made from it, so that another suffix could make one overwrite the other.
    """
    if path.suffix != ".csv":
        raise PicoPoseError(f"the result file {path.name!r} does not end in .csv", fix=f"name it {path.stem}.csv")
    parse_result_name(path)


def _name_fault(name: str) -> str:
    stem = name.split(".")[0]
    whole_stem = Path(name).stem
    if whole_stem != stem and "_" in whole_stem and ("_" not in stem or "-" not in stem.split("_", 1)[1]):
        return f"everything after the first dot is ignored, which leaves {stem!r}; METHOD must not have a dot"
    if "_" not in stem:
        return "there is no `_` between METHOD and DATASET"
    method, *rest = stem.split("_")
    if not method:
        return "METHOD is empty"
    if any("-" in part.strip("-") for part in rest[1:]):
        return f"METHOD and DATASET must not have a `_`, so {rest[0]!r} is read as DATASET-SPLIT"
    return f"there is no SPLIT in {rest[0]!r}" if rest[0].split("-")[0] else "DATASET is empty"


def result_file_name(method: str, dataset: str, split: str) -> str:
    """Return the file name required by BOP; `split` may have a type (`test-TYPE`).

    `_`, `-` and `.` separate the parts of a name, so they are dropped from the data set's (`visp_cube` -> `vispcube`;
    `open_dataset` finds it again). Raises PicoPoseError for a method with `_` or `.`.
    """
    if not method or "_" in method or "." in method:
        raise PicoPoseError(f"method name {method!r} must be non-empty without `_` and `.`", fix="choose another name")
    return f"{method}_{drop_separators(dataset)}-{split.replace('_', '-')}.csv"


def drop_separators(dataset: str) -> str:
    """Return a data set's name as result files write it, without `_`, `-` and `.`."""
    return dataset.translate(_SEPARATORS)
