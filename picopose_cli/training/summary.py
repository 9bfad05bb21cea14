"""The summary of a training run, and `summary.json`: the history of a network over several runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from picopose_cli.base.environment import machine, package_versions
from picopose_cli.base.files import atomic_write_bytes, file_sha256
from picopose_cli.base.option_fields import options_record
from picopose_cli.base.train_options import TrainOptions
from picopose_cli.network.devices import device_name
from picopose_cli.training.distributed import TrainingProcess
from picopose_cli.training.recipes import choose_recipe

SUMMARY_NAME = "summary.json"


@dataclass
class TrainSummary:
    """Steps before and after a run, its duration and speed, the last losses and the last validation."""

    first_step: int = 0
    step: int = 0
    seconds: float = 0.0
    pairs_per_s: float = 0.0
    waiting_share: float = 0.0
    """Share of the time in which the device waited for data."""
    losses: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    finished: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    """Entries of the source that could not be used since step 0, by reason."""

    def text(self) -> str:
        """Return the summary for the terminal: a line, and one for each reason why entries were skipped."""
        state = "finished" if self.finished else "not finished: run the same command again to continue"
        skipped = "".join(f"\nskipped: {reason} ({times}x)" for reason, times in self.skipped.items())
        return (
            f"steps {self.first_step} to {self.step} in {self.seconds / 60:.1f} min, "
            f"{self.pairs_per_s:.1f} pairs/s, {self.waiting_share:.0%} of the time waiting for data; {state}{skipped}"
        )


def write_summary(options: TrainOptions, process: TrainingProcess, summary: TrainSummary, network: Path) -> None:
    """Write the run into `summary.json` of the output folder, after the earlier runs that it continues.

    Raises PicoPoseError when the folder cannot be written.
    """
    path = options.output / SUMMARY_NAME
    run = {
        "options": options_record(options),
        "recipe": asdict(choose_recipe(options)),
        "device": device_name(str(process.device)),
        "precision": process.precision,
        "processes": process.world,
        "machine": machine(),
        "versions": package_versions(),
        **asdict(summary),
    }
    content = {
        "network": {"file": network.name, "bytes": network.stat().st_size, "sha256": file_sha256(network)},
        "runs": [*_earlier_runs(path, summary.first_step), run],
    }
    atomic_write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def _earlier_runs(path: Path, first_step: int) -> list[dict[str, Any]]:
    """Return the runs of the file up to a step; none when there is no readable file."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return [run for run in runs if run["step"] <= first_step]
    except (OSError, ValueError, LookupError, TypeError):
        return []
