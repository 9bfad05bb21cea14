"""`picopose check`: the faults of a result file before its upload, or of detections before a run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from picopose_cli.base.options import CheckOptions
from picopose_cli.bop.check import ERROR, Finding, check_results, grouped_lines
from picopose_cli.bop.targets import targets_by_image
from picopose_cli.runs.check_detections import check_detections, is_detections
from picopose_cli.runs.check_inputs import NOT_COMPARED, CheckInputs, read_check_inputs
from picopose_cli.runs.progress import add_bar, progress_bar

_RESULT_VERDICTS = ("no faults", "accepted by the toolkit, with the warnings above", "rejected by the toolkit")
_DETECTION_VERDICTS = ("no faults", "can be used, with the warnings above", "infer cannot use it")
"""By exit code."""


@dataclass(frozen=True)
class CheckReport:
    """All faults of a file, and what it was compared with."""

    path: Path
    findings: tuple[Finding, ...]
    compared_with: str
    lines: tuple[str, ...] = ()
    """Of detections: what `infer` would do with them."""

    @property
    def exit_code(self) -> int:
        """0 without faults, 1 with warnings, 2 for a file that the toolkit, or `infer`, rejects."""
        if any(finding.severity == ERROR for finding in self.findings):
            return 2
        return 1 if self.findings else 0

    @property
    def verdict(self) -> str:
        """One line about the whole file."""
        if self.exit_code == 1 and all(finding.kind == NOT_COMPARED for finding in self.findings):
            return "no faults in the file by itself, but it was not compared with targets"
        return (_DETECTION_VERDICTS if is_detections(self.path) else _RESULT_VERDICTS)[self.exit_code]


def run(options: CheckOptions) -> CheckReport:
    """Check a file and print its faults; see `picopose check --help`.

    Raises PicoPoseError when the file, or a data set or target file of the options, cannot be read.
    """
    inputs = read_check_inputs(options)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    report = (_check_detections if is_detections(options.file) else _check_results)(options.file, inputs)
    console.print(f"{report.path}: compared with {report.compared_with}")
    for line in (*report.lines, *grouped_lines(report.findings)):
        console.print(line)
    console.print(f"{report.path.name}: {report.verdict}")
    return report


def _check_results(path: Path, inputs: CheckInputs) -> CheckReport:
    findings = [*inputs.findings, *check_results(path, inputs.dataset, inputs.targets)]
    return CheckReport(path, tuple(findings), inputs.compared_with)


def _check_detections(path: Path, inputs: CheckInputs) -> CheckReport:
    with progress_bar(Console(stderr=True, quiet=not (sys.stdout.isatty() and sys.stderr.isatty()))) as progress:
        bar = add_bar(progress, "images", len(targets_by_image(inputs.targets or ())), "images")
        review = check_detections(path, inputs, lambda count: progress.advance(bar, count))
    return CheckReport(path, (*inputs.findings, *review.findings), inputs.compared_with, tuple(review.lines))
