"""`picopose doctor`: what works on this machine and with a data set, and what mends the rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.text import Text

from picopose_cli.base.guide_options import DoctorOptions
from picopose_cli.runs.doctor_dataset import dataset_rows
from picopose_cli.runs.doctor_machine import RED, DoctorRow, machine_rows
from picopose_cli.runs.progress import add_bar, progress_bar

_TOPIC_WIDTH = 13


@dataclass(frozen=True)
class DoctorReport:
    """All rows of the table."""

    rows: tuple[DoctorRow, ...]

    @property
    def exit_code(self) -> int:
        """1 when anything is red."""
        return 1 if any(row.level == RED for row in self.rows) else 0


def run(options: DoctorOptions) -> DoctorReport:
    """Look at the machine and a data set and print what is found; see `picopose doctor --help`.

    Raises PicoPoseError when there is no data folder.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    rows = []
    for row in _rows(options):
        rows.append(row)
        if not options.json:
            _print(console, row)
    report = DoctorReport(tuple(rows))
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "exit_code": report.exit_code}, indent=1))
    else:
        red = sum(row.level == RED for row in rows)
        console.print(f"{red} of {len(rows)} lines are red" if red else "nothing is red")
    return report


def _rows(options: DoctorOptions) -> Iterator[DoctorRow]:
    yield from machine_rows(options.weights)
    if options.dataset is None:
        return
    with progress_bar(Console(stderr=True, quiet=not (sys.stdout.isatty() and sys.stderr.isatty()))) as progress:
        bar = add_bar(progress, "meshes", 0, "meshes")
        rows = list(dataset_rows(options, lambda done, total: progress.update(bar, completed=done, total=total)))
    yield from rows


def _print(console: Console, row: DoctorRow) -> None:
    console.print(Text.assemble((f"{row.level:7}", row.level), f"{row.topic:{_TOPIC_WIDTH}} {row.text}"))
    if row.fix:
        console.print(f"{'':7}{'':{_TOPIC_WIDTH}} -> {row.fix}")
