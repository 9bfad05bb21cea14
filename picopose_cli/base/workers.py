"""Jobs in worker processes: the crash of a worker is the error of its job, and the other jobs go on.

Not concurrent.futures: there, one worker that dies breaks the whole pool (BrokenProcessPool), and every other job's
result is lost with it. Rendering needs better: an OpenGL driver or a damaged mesh can kill the process that uses it.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from picopose_cli.base.errors import PicoPoseError

Job = TypeVar("Job")
Result = TypeVar("Result")


class WorkerDiedError(PicoPoseError):
    """The worker process of a job ended, was killed, or did not answer in time."""


@dataclass(frozen=True)
class _Bug:
    """The traceback of an exception other than PicoPoseError."""

    trace: str


@dataclass
class _Worker(Generic[Job]):
    process: BaseProcess
    connection: Connection
    index: int
    """Index of the job it works on."""


def run_jobs(
    function: Callable[[Job, int], Result],
    jobs: Sequence[Job],
    workers: int,
    *,
    in_process: bool = False,
    timeout_s: float | None = None,
) -> Iterator[tuple[int, Result | PicoPoseError]]:
    """Yield (index, result or error) of every job as it ends, in any order.

    `function(job, share)` runs in up to `workers` processes; `share` is the number of workers' cores that the job may
    use: 1 while there are jobs for all workers, more when there are fewer. `in_process` runs all jobs in the calling
    process, one after the other. A worker that dies, or does not answer within `timeout_s` of the last answer, gives a
    WorkerDiedError for its job. Raises RuntimeError with the traceback of any exception except PicoPoseError.
    """
    if in_process:
        yield from ((index, _attempt(function, job, workers)) for index, job in enumerate(jobs))
        return
    # a spawned process inherits neither the caller's threads nor the state of its libraries
    context = multiprocessing.get_context("spawn")
    waiting = deque(range(len(jobs)))
    busy: dict[Connection, _Worker[Job]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                _give(_start(context, function), waiting, jobs, busy, workers)
            for connection in wait(list(busy), timeout_s) or list(busy):
                worker = busy.pop(connection)  # type: ignore[call-overload]
                outcome, alive = _receive(worker, timeout_s, str(jobs[worker.index]))
                index = worker.index
                if alive and waiting:
                    _give(worker, waiting, jobs, busy, workers)
                else:
                    _end(worker)
                yield index, outcome
    finally:
        for worker in busy.values():
            _end(worker)


def _attempt(function: Callable[[Job, int], Result], job: Job, share: int) -> Result | PicoPoseError:
    try:
        return function(job, share)
    except PicoPoseError as error:
        return error


def _start(context: SpawnContext, function: Callable[[Job, int], Any]) -> _Worker[Job]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()  # held by the worker alone, so that its death closes the pipe
    return _Worker(process, ours, -1)


def _give(
    worker: _Worker[Job], waiting: deque[int], jobs: Sequence[Job], busy: dict[Connection, _Worker[Job]], workers: int
) -> None:
    share = max(1, workers // (len(waiting) + len(busy)))
    worker.index = waiting.popleft()
    busy[worker.connection] = worker
    with suppress(OSError):  # the worker has died, which is noticed when its answer is read
        worker.connection.send((jobs[worker.index], share))


def _work(connection: Connection, function: Callable[[Any, int], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives Ctrl-C and ends this process
    with suppress(EOFError, OSError):  # the parent is done or dead
        while True:
            connection.send(_answer(function, *connection.recv()))


def _answer(function: Callable[[Any, int], Any], job: Any, share: int) -> Any:
    try:
        return _attempt(function, job, share)
    except Exception:  # noqa: BLE001 - raised again in the parent
        return _Bug(traceback.format_exc())


def _receive(worker: _Worker[Job], timeout_s: float | None, job: str) -> tuple[Any, bool]:
    """Return the worker's answer, or an error if it died or timed out, and whether it can take another job."""
    if not worker.connection.poll(0):
        return WorkerDiedError(f"the worker process did not answer within {timeout_s:.0f} s"), False
    try:
        answer = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return WorkerDiedError(f"the worker process {how}"), False
    if isinstance(answer, _Bug):
        raise RuntimeError(f"a worker process failed on {job}:\n{answer.trace}")
    return answer, True


def _end(worker: _Worker[Job]) -> None:
    worker.connection.close()
    worker.process.terminate()
    worker.process.join()
