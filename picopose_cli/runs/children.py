"""Several runs of this program side by side, none of which outlives the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from picopose_cli.base.errors import PicoPoseError

_PR_SET_PDEATHSIG = 1
_STOP_S = 20.0
"""A child that is asked to end is killed after this time."""


class Children:
    """Child processes of `picopose`; leaving the context ends those that still run.

    Each is the leader of its own process group, so that Ctrl-C reaches the parent alone, and is killed by the kernel
    when the parent dies.
    """

    def __init__(self) -> None:
        self._started: list[tuple[str, subprocess.Popen[bytes], IO[bytes]]] = []

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start `picopose ARGUMENTS` with some environment variables of its own."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the child has ended
        process = subprocess.Popen(
            [sys.executable, "-m", "picopose_cli", *arguments],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        self._started.append((name, process, errors))

    def running(self) -> bool:
        """Say whether any still runs; raises PicoPoseError with the message of one that failed."""
        codes = [process.poll() for _, process, _ in self._started]
        for (name, _, errors), code in zip(self._started, codes, strict=True):
            if code not in (None, 0, 1):
                raise PicoPoseError(f"the process on {name} failed: {_last_line(errors, code)}")
        return None in codes

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *reason: object) -> None:
        processes = [(process, errors) for _name, process, errors in self._started]
        for process, _ in processes:
            process.terminate()
        for process, errors in processes:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            errors.close()


def _die_with_parent() -> Callable[[], None] | None:
    """Return what a child runs before the program: it asks the kernel to kill it when the parent dies."""
    if sys.platform != "linux":
        return None
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it died meanwhile

    return ask


def _last_line(errors: IO[bytes], code: int | None) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    text = lines[-1].removeprefix("picopose: ") if lines else ""
    if code is not None and code < 0:
        text = f"killed by signal {-code} {text}"
    return text.strip() or f"exit code {code}"
