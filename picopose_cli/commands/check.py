"""`picopose check`: what would make an upload fail or score less than it should, each with its row."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import DATA_DIR_VARIABLE, CheckOptions, resolve_data_dir
from picopose_cli.base.types import AnyTarget
from picopose_cli.bop.check import ERROR, Finding, check_results, grouped_lines
from picopose_cli.bop.datasets import Dataset, open_dataset
from picopose_cli.bop.results import parse_result_name
from picopose_cli.bop.targets import choose_targets, read_target_file, targets_text


@dataclass(frozen=True)
class CheckReport:
    """All faults of a result file, and what it was compared with."""

    path: Path
    findings: tuple[Finding, ...]
    compared_with: str

    @property
    def exit_code(self) -> int:
        """0 for a clean file, 1 for one with warnings, 2 for one that the toolkit rejects."""
        if any(finding.severity == ERROR for finding in self.findings):
            return 2
        return 1 if self.findings else 0


def run(options: CheckOptions) -> CheckReport:
    """Check a result file and print what is wrong with it; see `picopose check --help`.

    Raises PicoPoseError when the file, or a data set or target file that was asked for, cannot be read.
    """
    dataset, why_not = _find_dataset(options)
    targets, compared_with = _find_targets(options, dataset, why_not)
    report = CheckReport(options.results, tuple(check_results(options.results, dataset, targets)), compared_with)
    _print(Console(markup=False, highlight=False, soft_wrap=True), report)
    return report


def _find_dataset(options: CheckOptions) -> tuple[Dataset | None, str]:
    """Return the data set of the result file, or None with the reason; one that was asked for must be there."""
    if options.data_dir is None and not os.environ.get(DATA_DIR_VARIABLE) and options.dataset is None:
        return None, f"no data folder is given with --data-dir or {DATA_DIR_VARIABLE}"
    try:
        name = parse_result_name(options.results)
    except PicoPoseError:
        name = None  # reported by the check itself
    if name is None and options.dataset is None:
        return None, "the file's name does not say the data set"
    dataset = options.dataset or (name.dataset if name else "")
    split = options.split or (name.split_folder if name else None)
    try:
        need_images = options.split is not None  # a target file is enough to compare with
        return open_dataset(dataset, resolve_data_dir(options.data_dir), split=split, need_images=need_images), ""
    except PicoPoseError as error:
        if options.dataset is not None or options.split is not None:
            raise
        return None, str(error)


def _find_targets(
    options: CheckOptions, dataset: Dataset | None, why_not: str
) -> tuple[Sequence[AnyTarget] | None, str]:
    if options.targets is not None:
        targets = read_target_file(options.targets, _dataset_name(options, dataset))
        return targets, f"the targets {targets_text(targets, options.targets)}"
    if dataset is None:
        return None, f"nothing but itself: images, objects and counts are not checked ({why_not})"
    try:
        targets, source = choose_targets(dataset)
        return targets, f"the targets {source}"
    except PicoPoseError as error:
        return None, f"nothing but itself: images, objects and counts are not checked ({error})"


def _dataset_name(options: CheckOptions, dataset: Dataset | None) -> str:
    """Return the name of the data set, which need not be here, or an empty one."""
    if dataset is not None:
        return dataset.name
    try:
        return parse_result_name(options.results).dataset
    except PicoPoseError:
        return ""


def _print(console: Console, report: CheckReport) -> None:
    console.print(f"{report.path}: compared with {report.compared_with}")
    for line in grouped_lines(report.findings):
        console.print(line)
    verdict = ("clean", "the toolkit takes it, with the warnings above", "the toolkit would reject it")
    console.print(f"{report.path.name}: {verdict[report.exit_code]}")
