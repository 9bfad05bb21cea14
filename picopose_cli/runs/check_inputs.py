"""What a result file or detections are checked against: data set and targets, as far as they can be found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.option_texts import DATA_DIR_VARIABLE
from picopose_cli.base.options import TARGET_KINDS, CheckOptions, resolve_dataset
from picopose_cli.base.types import AnyTarget
from picopose_cli.bop.check import WARNING, Finding
from picopose_cli.bop.datasets import Dataset, open_dataset
from picopose_cli.bop.result_names import ResultName, parse_result_name
from picopose_cli.bop.targets import (
    choose_targets,
    find_image_targets,
    find_targets,
    read_target_file,
    targets_text,
)

NOT_COMPARED = "not compared"
"""Kind of the finding that there are no targets."""


@dataclass(frozen=True)
class CheckInputs:
    """The data set and the targets of a checked file, None where there are none; `compared_with` describes them.

    `findings` is a warning where there are no targets.
    """

    dataset: Dataset | None
    targets: Sequence[AnyTarget] | None
    compared_with: str
    findings: tuple[Finding, ...] = ()


def read_check_inputs(options: CheckOptions) -> CheckInputs:
    """Find the data set and the targets of a result file or of detections.

    Raises PicoPoseError when a data set or split that the options name, or a target file, cannot be read.
    """
    name = _name_or_none(options)
    dataset, problem = _find_dataset(options, name)
    if dataset is not None:
        try:
            chosen = choose_targets(dataset, options.targets)
            return CheckInputs(dataset, chosen.targets, f"the targets {chosen.source}")
        except PicoPoseError as error:
            if options.targets is not None or _has_targets(dataset):
                raise
            problem = str(error)
    elif options.targets in TARGET_KINDS:
        raise PicoPoseError(problem, fix="name a target file with --targets, or --dataset and --data-dir")
    elif options.targets is not None:
        targets = read_target_file(Path(options.targets), name.dataset if name else "")
        return CheckInputs(dataset, targets, f"the targets {targets_text(targets, options.targets)}")
    text = f"images, objects and counts are not checked: {problem}"
    return CheckInputs(dataset, None, "no targets", (Finding(WARNING, None, text, NOT_COMPARED),))


def _has_targets(dataset: Dataset) -> bool:
    return dataset.has_public_gt or (find_targets(dataset) or find_image_targets(dataset)) is not None


def _name_or_none(options: CheckOptions) -> ResultName | None:
    try:
        return parse_result_name(options.file)
    except PicoPoseError:
        return None  # reported by the check itself


def _find_dataset(options: CheckOptions, name: ResultName | None) -> tuple[Dataset | None, str]:
    """Return the data set of the file, or None with the reason; one that the options name must exist."""
    if options.data_dir is None and not os.environ.get(DATA_DIR_VARIABLE) and options.dataset is None:
        return None, f"no data folder is given; pass --data-dir or set {DATA_DIR_VARIABLE}, or pass --targets FILE"
    if name is None and options.dataset is None:
        return None, "the file's name has no data set; pass --dataset NAME, or --targets FILE"
    dataset = options.dataset or (name.dataset if name else "")
    split = options.split or (name.split_folder if name else None)
    try:
        need_images = options.split is not None  # a target file is enough to compare with
        dataset, data_dir = resolve_dataset(dataset, options.data_dir)
        return open_dataset(dataset, data_dir, split=split, need_images=need_images), ""
    except PicoPoseError as error:
        if options.dataset is not None or options.split is not None:
            raise
        return None, str(error)
