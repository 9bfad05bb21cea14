"""Runs that are killed at random moments and started again: what they end with, and what they leave behind."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from faults.children import Child, Outcome
from faults.folder import RESULT
from faults.kinds import COMMANDS

_POLL_S = 0.005
_TIMEOUT_S = 600.0
_WRITES = ("os.rename", "os.remove", "tempfile.mkstemp", "os.truncate")


@dataclass(frozen=True)
class Scenario:
    """A command that is killed; `missing` are patterns of files that do not exist before it."""

    name: str
    arguments: Sequence[str]
    missing: Sequence[str]
    output: str = f"out/{RESULT}"
    """The result file that is compared, or a folder of banks."""
    has_children: bool = False
    """Whether it starts processes of its own, which may be killed instead of it."""


_FEATURES = "bop/toy/templates/*.features-*.h5"
SCENARIOS = (
    Scenario("rendering", COMMANDS["render"], ("bop/shapes/templates/*",), "bop/shapes/templates"),
    Scenario("onboarding", COMMANDS["infer"], (_FEATURES,)),
    Scenario("estimation", COMMANDS["infer"], ()),
    Scenario("merging", COMMANDS["merge"], ()),
    Scenario("two devices", [*COMMANDS["infer"], "--device", "cpu,cpu"], (_FEATURES,), has_children=True),
)


@dataclass(frozen=True)
class Killed:
    """One run that was killed `kills` times and then left alone."""

    scenario: str
    kills: int
    moments: str
    exit: int | str
    same_result: bool
    left_behind: str
    message: str

    @property
    def is_fault(self) -> bool:
        """Whether a run differs from one that was never killed."""
        return self.exit != 0 or not self.same_result or bool(self.left_behind)


class Writes:
    """Counts a child's operations on files, and kills it before one of them."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)

    @property
    def count(self) -> int:
        """The operations so far."""
        return int(struct.unpack("<q", self._shared[:8])[0])

    def hook(self, last: int | None) -> Callable[[], None]:
        """Return a function for the child that makes it kill itself before operation `last`."""
        self._shared[:8] = struct.pack("<q", 0)

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event in _WRITES or (event == "open" and _writes(arguments)):
                if self.count == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                self._shared[:8] = struct.pack("<q", self.count + 1)

        return lambda: sys.addaudithook(watch)


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2] if len(arguments) > 2 else 0
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


class KillBench:
    """The scenarios in copies of a prepared folder, compared with runs that are left alone."""

    def __init__(self, root: Path, work: Path, scenarios: Sequence[Scenario]) -> None:
        self._root, self._work, self._writes = root, work, Writes()
        self._alone: dict[str, tuple[dict[str, bytes], set[str], float, int]] = {}
        for scenario in scenarios:
            folder, started = self._copy(scenario), time.perf_counter()
            outcome = _ended(Child(list(scenario.arguments), folder, self._writes.hook(None)))
            if outcome.exit != 0:
                raise SystemExit(f"{scenario.name}: exit {outcome.exit}: {outcome.stderr}")
            seconds, count = time.perf_counter() - started, self._writes.count
            self._alone[scenario.name] = (_result(folder, scenario), _names(folder), seconds, count)

    def run(self, scenario: Scenario, kills: int, rng: Random) -> Killed:
        """Kill a run up to `kills` times, each time after the same command was started again; then let it end."""
        result, names, seconds, count = self._alone[scenario.name]
        folder, moments = self._copy(scenario), list[str]()
        for _ in range(kills):
            moment, child = self._start(scenario, folder, rng, seconds, count)
            outcome = _ended(child)
            if outcome.exit == 0:
                break  # it was faster than the moment
            moments.append(moment)
        outcome = _ended(Child(list(scenario.arguments), folder))
        left = sorted(_names(folder) ^ names)
        same = _result(folder, scenario) == result
        return Killed(
            scenario.name, len(moments), ", ".join(moments), outcome.exit, same, ", ".join(left), outcome.stderr[-300:]
        )

    def _start(self, scenario: Scenario, folder: Path, rng: Random, seconds: float, count: int) -> tuple[str, Child]:
        """Start a command that is killed before an operation on a file, or after a time."""
        if not scenario.has_children and rng.random() < 0.5:
            last = rng.randrange(count)
            return f"file operation {last}", Child(list(scenario.arguments), folder, self._writes.hook(last))
        after_s, started = rng.uniform(0, seconds), time.perf_counter()
        child = Child(list(scenario.arguments), folder)
        while time.perf_counter() < started + after_s:
            time.sleep(_POLL_S)
        victim = rng.choice([child.pid, *_children(child.pid)])
        os.kill(victim, signal.SIGKILL)
        return f"{after_s:.2f} s{'' if victim == child.pid else ', a child'}", child

    def _copy(self, scenario: Scenario) -> Path:
        folder = self._work / scenario.name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._root, folder)
        shutil.rmtree(folder / "begun", ignore_errors=True)
        for pattern in scenario.missing:
            for path in folder.glob(pattern):
                path.unlink()
        return folder


def _ended(child: Child) -> Outcome:
    while (outcome := child.poll(_TIMEOUT_S)) is None:
        time.sleep(_POLL_S)
    return outcome


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _result(folder: Path, scenario: Scenario) -> dict[str, bytes]:
    """Return the banks of a folder, or the rows of a result file without their times."""
    output = folder / scenario.output
    if output.is_dir():
        return {path.name: path.read_bytes() for path in output.iterdir()}
    lines = output.read_bytes().splitlines() if output.is_file() else []
    return {output.name: b"\n".join(line.rpartition(b",")[0] for line in lines)}


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
