"""A timeline of what each thread did, for chrome://tracing and https://ui.perfetto.dev."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.pose.pipeline import Record

_LOG = logging.getLogger(__name__)


@contextmanager
def recording(path: Path | None) -> Iterator[Record]:
    """Yield a function that records pieces of work in a trace at `path`; without a path it does nothing."""
    if path is None:
        yield lambda *_: None
    else:
        with closing(Trace(path)) as trace:
            yield trace.record


class Trace:
    """Writes pieces of work when they end, from any thread; the file of a killed run can be opened too.

    The format is Chrome's trace event format: complete events `X`, in microseconds since the start of the trace, and
    the names of the threads. torch.profiler would not do: it records the thread that starts it alone, while images are
    read and poses are solved by others.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("w", encoding="ascii")
        except OSError as error:
            raise PicoPoseError(
                f"cannot be written ({error.strerror})", where=path, fix="choose another --profile"
            ) from error
        self._stream.write('{"traceEvents": [')
        self._started = time.perf_counter()
        self._lock = threading.Lock()
        self._named: set[int] = set()
        self._between = "\n"

    def record(self, stage: str, start: float, end: float, what: str) -> None:
        """Record a piece of work of the calling thread; `start` and `end` are seconds of `time.perf_counter`."""
        thread = threading.get_native_id()
        with self._lock:
            if thread not in self._named:
                self._named.add(thread)
                self._write({"name": "thread_name", "ph": "M", "args": {"name": threading.current_thread().name}})
            times = {"ts": round((start - self._started) * 1e6, 3), "dur": round((end - start) * 1e6, 3)}
            self._write({"name": stage, "ph": "X", **times, "args": {"of": what}})

    def close(self) -> None:
        """Finish the file."""
        with self._lock:
            try:
                self._stream.write("\n]}\n")
                self._stream.close()
            except OSError as error:  # no reason to lose poses
                _LOG.warning("%s: cannot be written (%s)", self._path, error.strerror)

    def _write(self, event: dict[str, Any]) -> None:
        place = {"pid": os.getpid(), "tid": threading.get_native_id()}
        try:
            self._stream.write(self._between + json.dumps(event | place))
        except OSError:
            return  # a full disk: reported when the file is closed
        self._between = ",\n"
