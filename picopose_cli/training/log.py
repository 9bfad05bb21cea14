"""The log of a training run: `log.jsonl`, TensorBoard where it is installed, and lines on the terminal."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from picopose_cli.base.files import atomic_write_bytes

_PRINTED_LOSSES = ("total", "matching", "inplane", "scale", "translation", "flow_64", "certainty_64")
_PRINT_EVERY_S = 10


class TrainingLog:
    """Records numbers by step; without effect unless `is_leader`.

    A resumed run removes the lines that the interrupted one wrote after its last checkpoint.
    """

    def __init__(self, folder: Path, step: int, steps: int, *, is_leader: bool) -> None:
        self._is_leader = is_leader
        if not is_leader:
            return
        path = folder / "log.jsonl"
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= step]
        atomic_write_bytes(path, "".join(line + "\n" for line in kept).encode())
        self._stream = path.open("a", encoding="utf-8")
        self._board = _open_tensorboard(folder / "tensorboard", step)
        self._console = Console(markup=False, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=self._console, disable=not sys.stdout.isatty(),
        )  # fmt: skip
        self._task = self._progress.add_task("training", total=steps, completed=step)
        self._progress.start()
        self._printed_s = 0.0

    def add(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of a step; `kind` is `loss` or `validation`."""
        if not self._is_leader:
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
        """Close the files and the progress bar."""
        if not self._is_leader:
            return
        self._progress.stop()
        self._stream.close()
        if self._board is not None:
            self._board.close()

    def _print(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Print every validation in full, and selected losses at most every ten seconds."""
        if kind == "loss" and time.monotonic() - self._printed_s < _PRINT_EVERY_S:
            return
        names = list(values) if kind == "validation" else [name for name in _PRINTED_LOSSES if name in values]
        text = " ".join(f"{name} {values[name]:.3g}" for name in names)
        speed = f" {values['pairs_per_s']:.0f} pairs/s" if "pairs_per_s" in values else ""
        self._console.print(f"step {step} {kind}: {text}{speed}")
        self._printed_s = time.monotonic()


class RunningMeans:
    """Means of losses over steps, accumulated on the device: reading them makes the host wait for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts = Counter[str]()  # not every step has every loss

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the losses of a step."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._counts.update(terms.keys())

    def pop(self) -> dict[str, float]:
        """Return the means since the last call."""
        sums = torch.stack(list(self._sums.values())).tolist()
        means = {name: value / self._counts[name] for name, value in zip(self._sums, sums, strict=True)}
        self._sums, self._counts = {}, Counter()
        return means


def _complete_lines(path: Path) -> list[str]:
    """Return the complete lines of a log: an interrupted run may have left part of one."""
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line.endswith("}")]


def _open_tensorboard(folder: Path, step: int) -> Any:
    """Return a writer that drops what an interrupted run wrote after `step`, or None without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
