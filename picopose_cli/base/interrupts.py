"""Ctrl-C and SIGTERM end a run cleanly, with one line about what is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from picopose_cli.base.errors import PicoPoseError


class StoppedError(PicoPoseError):
    """The user or the system stopped the run; the exit code is the shell's: 128 plus the number of the signal."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(what)
        self.exit_code = 128 + number


@contextmanager
def stoppable(describe: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM inside the context into a StoppedError with the text that `describe` returns afterwards.

    Both are raised as KeyboardInterrupt, which no `except` for errors catches. Outside the main thread, where Python
    delivers no signals, nothing changes.
    """
    received: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise StoppedError(describe(), received[0] if received else signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
