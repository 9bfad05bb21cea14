"""Ctrl-C and SIGTERM end a run cleanly, with one line that says what is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from picopose_cli.base.errors import PicoPoseError


class StoppedError(PicoPoseError):
    """The user or the system asked the run to end; the exit code is the shell's, 128 and the signal's number."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(what)
        self.exit_code = 128 + number


@contextmanager
def stoppable(describe: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM inside into a StoppedError with the text that `describe` gives once all has ended.

    Both arrive as KeyboardInterrupt, which no `except` for errors takes for one. Outside the main thread, where Python
    hears no signals, nothing changes.
    """
    heard: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise StoppedError(describe(), heard[0] if heard else signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
