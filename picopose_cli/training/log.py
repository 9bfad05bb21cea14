"""The record of a run: `log.jsonl` always, TensorBoard where it is installed, and a line on the terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from picopose_cli.base.files import atomic_write_bytes

_SHOWN = ("total", "matching", "inplane", "scale", "translation", "flow_64", "certainty_64")


class Journal:
    """Takes numbers by step. A resumed run drops what a killed one wrote after its last checkpoint."""

    def __init__(self, folder: Path, step: int, steps: int, *, leads: bool) -> None:
        self._leads = leads
        if not leads:
            return
        self._path = folder / "log.jsonl"
        kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= step]
        atomic_write_bytes(self._path, "".join(line + "\n" for line in kept).encode())
        self._stream = self._path.open("a", encoding="utf-8")
        self._board = _open_board(folder / "tensorboard", step)
        self._console = Console(markup=False, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=self._console, disable=not sys.stdout.isatty(),
        )  # fmt: skip
        self._task = self._progress.add_task("training", total=steps, completed=step)
        self._progress.start()
        self._printed = 0.0

    def add(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Record the numbers of a step; `kind` is `loss` or `validation`."""
        if not self._leads:
            return
        line = {"step": step, "kind": kind, "time": round(time.time(), 1)}
        self._stream.write(json.dumps(line | {name: float(f"{value:.6g}") for name, value in values.items()}) + "\n")
        self._stream.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
        self._progress.update(self._task, completed=step)
        self._print(kind, step, values)

    def close(self) -> None:
        """Write what is left."""
        if not self._leads:
            return
        self._progress.stop()
        self._stream.close()
        if self._board is not None:
            self._board.close()

    def _print(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Print a validation in full and losses every ten seconds."""
        if kind == "loss" and time.monotonic() - self._printed < 10:
            return
        names = values if kind == "validation" else [name for name in _SHOWN if name in values]
        text = " ".join(f"{name} {values[name]:.3g}" for name in names)
        speed = f" {values['pairs_per_s']:.0f} pairs/s" if "pairs_per_s" in values else ""
        self._console.print(f"step {step} {kind}: {text}{speed}")
        self._printed = time.monotonic()


def _lines(path: Path) -> list[str]:
    """Return the whole lines of a log; a line that a killed run left unfinished is none."""
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line.endswith("}")]


def _open_board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
