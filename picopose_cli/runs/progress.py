"""Progress bars of long commands: done and total, units per second, elapsed and remaining time."""

from __future__ import annotations

from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


class _SpeedAndTimeLeft(ProgressColumn):
    """Mean speed since the start: work arrives in bursts, which would mislead rich's own estimate."""

    def render(self, task: Task) -> Text:
        unit, done = task.fields["unit"], task.completed - task.fields["begun"]
        if done <= 0 or not task.elapsed:
            return Text(f"- {unit}/s")
        if task.total is None:
            return Text(f"{done / task.elapsed:.3g} {unit}/s")
        left = timedelta(seconds=round((task.total - task.completed) * task.elapsed / done))
        return Text(f"{done / task.elapsed:.3g} {unit}/s, {left} left")


def progress_bar(console: Console) -> Progress:
    """Return a progress display for the bars of `add_bar`."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        _SpeedAndTimeLeft(),
        console=console,
    )


def byte_bar(console: Console) -> Progress:
    """Return a progress display for bytes: the bars of `add_task`."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def add_bar(progress: Progress, what: str, total: int, unit: str, begun: int = 0) -> TaskID:
    """Add a bar of `total` units, of which `begun` were done by an earlier run."""
    return progress.add_task(what, total=total, completed=begun, unit=unit, begun=begun)
