"""Commands of picopose in forked children of a process that has imported everything: one thread, 4 GB, 60 s."""

from __future__ import annotations

import importlib
import os
import pkgutil
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import picopose_cli
from picopose_cli import cli

TIMEOUT_S = 60.0
MEMORY_BYTES = 4 << 30
"""Address space that a child may take beyond that of the process it is forked from."""
HANG = "hang"


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit code, the negative number of the signal that killed it, or `HANG`."""

    exit: int | str
    seconds: float
    peak_mb: float
    """Largest resident memory of the child, that of the imported modules included."""
    stdout: str
    stderr: str


def import_everything() -> None:
    """Import all of picopose, and let this process and those forked from it use one thread."""
    import cv2
    import torch

    for module in pkgutil.walk_packages(picopose_cli.__path__, "picopose_cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


class Child:
    """One command in a forked child, with its output in two files of its folder; `prepare` is called in the child."""

    def __init__(self, arguments: list[str], folder: Path, prepare: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._started = time.perf_counter()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _run(arguments, folder, prepare)

    @property
    def pid(self) -> int:
        """The process."""
        return self._pid

    def poll(self, timeout_s: float = TIMEOUT_S) -> Outcome | None:
        """Return how the command ended, None while it runs; a command that takes too long is killed."""
        seconds = time.perf_counter() - self._started
        pid, status, usage = os.wait4(self._pid, os.WNOHANG)
        late = not pid and seconds > timeout_s
        if late:
            os.kill(self._pid, signal.SIGKILL)
            pid, status, usage = os.wait4(self._pid, 0)
        if not pid:
            return None
        ended = HANG if late else os.waitstatus_to_exitcode(status)
        out, err = ((self._folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        return Outcome(ended, round(seconds, 2), round(usage.ru_maxrss / 1000), out, err)


def run_alone(arguments: list[str], folder: Path) -> Outcome:
    """Run one command to its end."""
    child = Child(arguments, folder)
    while (outcome := child.poll()) is None:
        time.sleep(0.01)
    return outcome


def _run(arguments: list[str], folder: Path, prepare: Callable[[], None]) -> None:
    """Become the command; does not return."""
    code = cli.BUG_EXIT_CODE
    try:
        os.chdir(folder)
        for name, number in (("stdout", 1), ("stderr", 2)):
            Path(name).unlink(missing_ok=True)  # it may be a link to another folder's
            file = os.open(name, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, number)
        limit = _address_space() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.argv = ["picopose", *arguments]
        os.environ["BOP_PATH"] = str(folder / "bop")
        prepare()
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - such as KeyboardInterrupt, which the command line does not let through
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
