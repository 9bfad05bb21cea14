"""`picopose check`: the faults of a result file that make an upload fail or score less, each with its row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from picopose_cli.base.options import CheckOptions
from picopose_cli.bop.check import ERROR, Finding, check_results, grouped_lines
from picopose_cli.runs.check_inputs import read_check_inputs

_VERDICTS = ("no faults", "accepted by the toolkit, with the warnings above", "rejected by the toolkit")
"""By exit code."""


@dataclass(frozen=True)
class CheckReport:
    """All faults of a result file, and what it was compared with."""

    path: Path
    findings: tuple[Finding, ...]
    compared_with: str
    has_targets: bool
    """Whether there were targets to compare it with."""

    @property
    def exit_code(self) -> int:
        """0 without faults, 1 with warnings, 2 for a file that the toolkit rejects."""
        if any(finding.severity == ERROR for finding in self.findings):
            return 2
        return 1 if self.findings else 0

    @property
    def verdict(self) -> str:
        """One line about the whole file."""
        if self.exit_code == 0 and not self.has_targets:
            return "no faults in the file by itself; it was not compared with targets"
        return _VERDICTS[self.exit_code]


def run(options: CheckOptions) -> CheckReport:
    """Check a result file and print its faults; see `picopose check --help`.

    Raises PicoPoseError when the file, or a data set or target file of the options, cannot be read.
    """
    inputs = read_check_inputs(options)
    findings = check_results(options.results, inputs.dataset, inputs.targets)
    report = CheckReport(options.results, tuple(findings), inputs.compared_with, inputs.targets is not None)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"{report.path}: compared with {report.compared_with}")
    for line in grouped_lines(report.findings):
        console.print(line)
    console.print(f"{report.path.name}: {report.verdict}")
    return report
