"""A short training run: its options and its samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from helpers.toy_pairs import ToySource
from picopose_cli.base.train_options import TrainOptions

SOURCE = ToySource(kept=12)


def short_run(output: Path, **changes: object) -> TrainOptions:
    """Return options of 20 steps on the CPU, with changes."""
    plain = TrainOptions(output, steps=20, batch_size=2, workers=0, curriculum_steps=10, device="cpu", lr=1e-3)
    return replace(plain, **changes)  # type: ignore[arg-type]
