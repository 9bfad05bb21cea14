"""Jobs for workers that may die, join late, or be of different speed: who works on what, and what came of it, in order.

Which job is given when depends on the workers; the results come in the order of the jobs, each once. Nothing here knows
what a worker is: `Backend` starts and ends them, on a Ray cluster (`cluster`) or simulated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.workers import WorkerDiedError

MOST_TRIES = 3
"""Workers that a job may end, and places that one may fail to start on, before it is given up."""
MOST_LOST_NODES = 10
"""Nodes that may leave while they work on a job: not its fault, unless it happens all the time."""
JOBS_AHEAD = 2
"""Jobs that a worker has at a time: it reads the next while it computes."""
WINDOW = 32
"""Jobs a worker that may be done or in progress after the first unfinished one, so that memory is bounded."""
_RESTART_S = (0.0, 5.0, 30.0)
"""Pause before the next start on a place whose last starts failed."""
_PLACES_S = 1.0
_POLL_S = 0.5

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where one worker can run: a node, by its id and its name for people, and the worker's index there."""

    node_id: str
    node: str
    index: int


@dataclass(frozen=True)
class Ready:
    """A worker has started and takes jobs."""

    worker: int


@dataclass(frozen=True)
class Answered:
    """A worker has finished a job; `outcome` is its result, or the PicoPoseError that it raised."""

    worker: int
    job: int
    outcome: Any


@dataclass(frozen=True)
class NoMemory:
    """A worker lives, but its memory is too small for a job."""

    worker: int
    job: int


@dataclass(frozen=True)
class Lost:
    """A worker is gone: it died, or its node left (`node_left`), or its memory ran out (`no_memory`)."""

    worker: int
    reason: str
    node_left: bool = False
    no_memory: bool = False


@dataclass(frozen=True)
class Unusable:
    """A worker cannot start on this node at all."""

    worker: int
    reason: str


Event = Ready | Answered | NoMemory | Lost | Unusable


class Backend(Protocol):
    """Starts workers, gives them jobs, and tells what happens to them."""

    def now(self) -> float:
        """Return a time in seconds that only grows."""

    def places(self) -> Sequence[Place]:
        """Return the places for workers that there are now."""

    def start(self, place: Place) -> int:
        """Begin to start a worker; return its number, which no other has."""

    def give(self, worker: int, job: int, halvings: int) -> None:
        """Give a job to a worker that is ready; its batches are to be halved that often."""

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what has happened since the last call; wait for it, at most for a time."""

    def end(self, worker: int) -> None:
        """End a worker, if it still runs."""


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

    * A worker has up to `JOBS_AHEAD` jobs, near the end one: a slow worker delays the others by one job at most.
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
        self.warnings: list[str] = []
        """Workers that were lost and nodes that are not used."""

    def run(self) -> Iterator[Done]:
        """Yield the outcome of each job, in order; when the caller stops, workers go on until the backend ends them."""
        while self._head < self._count:
            self._look_for_places()
            self._give_new(self._give_again())
            self._on_change(self.status())
            for event in self._backend.wait(_POLL_S):
                self._take(event)
            while self._head in self._finished:
                self._head += 1
                yield self._finished.pop(self._head - 1)

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
                if worker.ready and not worker.alone and number not in held and len(worker.jobs) == having:
                    self._next += 1
                    self._give(number, self._next - 1)

    def _give(self, number: int, job: int) -> None:
        worker = self._workers[number]
        worker.jobs.add(job)
        tally = self._tally(worker)
        if tally.began is None:
            tally.began = self._backend.now()
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
            self._failed_starts[worker.place] = (MOST_TRIES, 0.0)
        elif isinstance(event, NoMemory):
            worker.jobs.discard(event.job)
            self._try_again(event.job, worker.place.node, "memory ran out", no_memory=True)
        else:
            worker.jobs.discard(event.job)
            self._finish(event.job, event.outcome, worker.place.node)
            tally = self._tally(worker)
            tally.jobs += 1
            tally.seconds = self._backend.now() - (tally.began or 0.0)

    def _lose(self, event: Lost) -> None:
        """Give up a worker; its jobs are tried again."""
        worker = self._workers[event.worker]
        self._drop(event.worker, event.reason)
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
        self.warnings.append(f"a worker on {worker.place.node} was lost: {reason}")
        _LOG.warning(self.warnings[-1])

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
