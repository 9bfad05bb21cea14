"""Jobs for workers that may die, join late, or be of different speed: who works on what, and what came of it, in order.

Which job is given when depends on the workers; the results come in the order of the jobs, each once. Nothing here knows
what a worker is: `Backend` starts and ends them, on a Ray cluster (`cluster`) or simulated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.workers import WorkerDiedError
from picopose_cli.runs.backend import Backend, Event, Lost, NoMemory, Place, Ready, Unusable

MOST_TRIES = 3
"""Workers that a job may end, and places that one may fail to start on, before it is given up."""
MOST_LOST_NODES = 10
"""Nodes that may leave while they work on a job: not its fault, unless it happens all the time."""
JOBS_AHEAD = 2
"""Jobs that a worker has at a time: it reads the next while it computes."""
WINDOW = 32
"""Jobs a worker that may be done or in progress after the first unfinished one, so that memory is bounded."""
_ENDING, _SURELY = 16, 0.999
"""Jobs a worker that are left when it begins to count which worker is slow, and the part of a time that is less."""
_RESTART_S = (0.0, 5.0, 30.0)
"""Pause before the next start on a place whose last starts failed."""
_PLACES_S = 1.0
_POLL_S = 0.5

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """A finished job: its index, its result or PicoPoseError, and the name of the node that it was done on."""

    job: int
    outcome: Any
    node: str


@dataclass
class NodeTally:
    """What a node did: most workers at a time, jobs, workers that were lost, seconds from the first job to the last."""

    workers: int = 0
    jobs: int = 0
    lost: int = 0
    began: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Status:
    """The state of the work: workers, those that start, and jobs in progress, finished out of order, and waiting."""

    workers: int
    starting: int
    in_progress: int
    held: int
    waiting: int


@dataclass
class _Worker:
    place: Place
    ready: bool = False
    alone: bool = False
    """Whether it has a job that ended other workers, beside which no other job may suffer."""
    jobs: set[int] = field(default_factory=set)
    began: float | None = None
    done: int = 0
    pace_s: float = 0.0
    """Mean seconds for a job, from the first that it was given on; 0 until it has finished one."""

    def finish(self, job: int, now: float) -> None:
        """Count a job as finished."""
        self.jobs.discard(job)
        self.done += 1
        self.pace_s = (now - (self.began or 0.0)) / self.done


@dataclass
class _Trouble:
    """What went wrong with a job so far."""

    tries: int = 0
    lost_nodes: int = 0
    halvings: int = 0
    reasons: list[str] = field(default_factory=list)
    avoid: set[str] = field(default_factory=set)
    """Nodes whose memory was too small, which count from the second time on."""


class Dispatcher:
    """Gives `count` jobs to the workers of a backend and yields the outcomes in the order of the jobs.

    * A worker has up to `JOBS_AHEAD` jobs, near the end one, and a slow one none that the others finish before it.
    * A worker that is lost is started again, and its jobs are given to others, each alone on a worker: so the job that
      kills is found, and the jobs beside it are not blamed. After `MOST_TRIES` its outcome is a WorkerDiedError.
    * A node that leaves is not the fault of its jobs; one that joins gets workers.
    * Where memory runs out a job is tried with half the batch, then with a quarter on another node.

    `on_change` is called with the status after each change. Raises PicoPoseError when no place can start a worker.
    """

    def __init__(self, count: int, backend: Backend, on_change: Callable[[Status], None] = lambda _: None) -> None:
        self._count = count
        self._backend = backend
        self._on_change = on_change
        self._workers: dict[int, _Worker] = {}
        self._finished: dict[int, Done] = {}
        self._again: set[int] = set()
        self._troubles: dict[int, _Trouble] = {}
        self._failed_starts: dict[Place, tuple[int, float]] = {}
        self._next = self._head = 0
        self._looked_at = float("-inf")
        self._last_reason = ""
        self._is_waiting = False
        self.nodes: dict[str, NodeTally] = {}
        self.warnings: dict[str, int] = {}
        """Workers that were lost and nodes that are not used, and how often."""

    def run(self) -> Iterator[Done]:
        """Yield the outcome of each job, in order."""
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[Done]]:
        """Yield the outcomes of the jobs, in order, those together that are there: the slower the caller, the more.

        When the caller stops, workers go on until the backend ends them.
        """
        while self._head < self._count:
            self._look_for_places()
            self._give_new(self._give_again())
            self._on_change(self.status())
            for event in self._backend.wait(_POLL_S):
                self._take(event)
            batch = []
            while self._head in self._finished:
                batch.append(self._finished.pop(self._head))
                self._head += 1
            if batch:
                yield batch

    def status(self) -> Status:
        """Return the state of the work."""
        ready = sum(worker.ready for worker in self._workers.values())
        in_progress = sum(len(worker.jobs) for worker in self._workers.values())
        waiting = self._count - self._next + len(self._again)
        return Status(ready, len(self._workers) - ready, in_progress, len(self._finished), waiting)

    def _look_for_places(self) -> None:
        """Give up the workers of nodes that have left, and start workers where there is room for them."""
        now = self._backend.now()
        if now - self._looked_at < _PLACES_S:
            return
        self._looked_at = now
        places = self._backend.places()
        present = set(places)
        for number, worker in list(self._workers.items()):
            if worker.place not in present:
                self._lose(Lost(number, "the node has left the cluster", node_left=True))
        taken = {worker.place for worker in self._workers.values()}
        usable = [place for place in places if self._failed_starts.get(place, (0, 0.0))[0] < MOST_TRIES]
        if not places and not self._workers and not self._is_waiting:
            _LOG.warning("the cluster has no node for a worker: waiting for one")
        self._is_waiting = not places
        if places and not usable and not self._workers:
            what = (
                f"no worker could be started on {len({place.node_id for place in places})} nodes: {self._last_reason}"
            )
            raise PicoPoseError(what, fix="mend it and run the same command again")
        open_jobs = self._count - self._next + len(self._again)
        busy = sum(bool(worker.jobs) for worker in self._workers.values())
        room = max(open_jobs + busy - len(self._workers), 0)
        free = [place for place in usable if place not in taken and now >= self._failed_starts.get(place, (0, 0.0))[1]]
        for place in free[:room]:
            self._workers[self._backend.start(place)] = _Worker(place)

    def _give_again(self) -> set[int]:
        """Give jobs that lost their worker to workers without others; return those that get no new ones until then."""
        held: set[int] = set()
        for worker in self._workers.values():
            worker.alone = worker.alone and bool(worker.jobs)
        for job in sorted(self._again):
            trouble = self._troubles[job]
            able = [
                number for number, one in self._workers.items() if one.ready and not one.alone and number not in held
            ]
            if trouble.halvings > 1 and self._nodes() - trouble.avoid:
                able = [number for number in able if self._workers[number].place.node not in trouble.avoid]
            if not able:
                continue
            number = min(able, key=lambda one: len(self._workers[one].jobs))
            held.add(number)
            if not self._workers[number].jobs:
                self._workers[number].alone = True
                self._again.remove(job)
                self._give(number, job)
        return held

    def _nodes(self) -> set[str]:
        return {worker.place.node for worker in self._workers.values()}

    def _give_new(self, held: Collection[int]) -> None:
        """Fill the workers, those with the fewest jobs first."""
        end = min(self._count, self._head + max(len(self._workers), 1) * WINDOW)
        depth = JOBS_AHEAD if self._count - self._next > len(self._workers) else 1
        for having in range(depth):
            for number, worker in self._workers.items():
                if self._next >= end:
                    return
                free = worker.ready and not worker.alone and number not in held and len(worker.jobs) == having
                if free and not self._would_end_later(worker):
                    self._next += 1
                    self._give(number, self._next - 1)

    def _would_end_later(self, worker: _Worker) -> bool:
        """Return whether the others do all jobs that wait before this worker would finish one of them."""
        waiting = self._count - self._next
        if waiting > _ENDING * len(self._workers):
            return False
        needs_s = _SURELY * (len(worker.jobs) + 1) * worker.pace_s
        others = (one for one in self._workers.values() if one is not worker and one.pace_s and one.ready)
        return sum(max(int(needs_s / one.pace_s) - len(one.jobs), 0) for one in others) >= waiting

    def _give(self, number: int, job: int) -> None:
        worker = self._workers[number]
        worker.jobs.add(job)
        tally, now = self._tally(worker), self._backend.now()
        worker.began = now if worker.began is None else worker.began
        tally.began = now if tally.began is None else tally.began
        trouble = self._troubles.get(job)
        self._backend.give(number, job, 0 if trouble is None else trouble.halvings)

    def _take(self, event: Event) -> None:
        worker = self._workers.get(event.worker)
        if worker is None:
            return  # it has been given up already
        if isinstance(event, Ready):
            worker.ready = True
            self._failed_starts.pop(worker.place, None)
            tally = self._tally(worker)
            there = sum(one.ready and one.place.node == worker.place.node for one in self._workers.values())
            tally.workers = max(tally.workers, there)
        elif isinstance(event, Lost):
            self._lose(event)
        elif isinstance(event, Unusable):
            self._drop(event.worker, event.reason)
            self._warn(f"{worker.place.node} is not used: {event.reason}")
            self._failed_starts[worker.place] = (MOST_TRIES, 0.0)
        elif isinstance(event, NoMemory):
            worker.jobs.discard(event.job)
            self._try_again(event.job, worker.place.node, "memory ran out", no_memory=True)
        else:
            worker.finish(event.job, self._backend.now())
            self._finish(event.job, event.outcome, worker.place.node)
            tally = self._tally(worker)
            tally.jobs += 1
            tally.seconds = self._backend.now() - (tally.began or 0.0)

    def _lose(self, event: Lost) -> None:
        """Give up a worker; its jobs are tried again."""
        worker = self._workers[event.worker]
        self._drop(event.worker, event.reason)
        self._warn(f"a worker on {worker.place.node} was lost: {event.reason}")
        self._tally(worker).lost += 1
        self._looked_at = float("-inf")
        if not worker.ready:
            failed = self._failed_starts.get(worker.place, (0, 0.0))[0] + 1
            pause_s = _RESTART_S[min(failed, len(_RESTART_S)) - 1]
            self._failed_starts[worker.place] = (failed, self._backend.now() + pause_s)
        for job in worker.jobs:
            self._try_again(job, worker.place.node, event.reason, no_memory=event.no_memory, node_left=event.node_left)

    def _drop(self, number: int, reason: str) -> None:
        worker = self._workers.pop(number)
        self._backend.end(number)
        self._last_reason = f"{worker.place.node}: {reason}"

    def _warn(self, text: str) -> None:
        """Say what was lost; the report counts it."""
        _LOG.warning(text)
        self.warnings[text] = self.warnings.get(text, 0) + 1

    def _try_again(self, job: int, node: str, reason: str, *, no_memory: bool = False, node_left: bool = False) -> None:
        trouble = self._troubles.setdefault(job, _Trouble())
        trouble.tries += not node_left
        trouble.lost_nodes += node_left
        trouble.reasons.append(f"{node}: {reason}")
        if no_memory:
            trouble.halvings += 1
            trouble.avoid.add(node)
        if trouble.tries >= MOST_TRIES or trouble.lost_nodes >= MOST_LOST_NODES:
            what = f"{len(trouble.reasons)} workers ended on it ({'; '.join(trouble.reasons)})"
            self._finish(job, WorkerDiedError(what), node)
        else:
            self._again.add(job)

    def _finish(self, job: int, outcome: Any, node: str) -> None:
        self._troubles.pop(job, None)
        self._finished[job] = Done(job, outcome, node)

    def _tally(self, worker: _Worker) -> NodeTally:
        return self.nodes.setdefault(worker.place.node, NodeTally())
