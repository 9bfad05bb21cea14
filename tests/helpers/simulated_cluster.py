"""A cluster in a simulation of time: nodes that come and go, workers that take their time, and jobs that kill them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from picopose_cli.runs.backend import Answered, Event, Lost, Place, Ready


@dataclass
class SimulatedCluster:
    """The `Backend` of a `Dispatcher`; its clock jumps to the next event.

    `nodes` maps names to numbers of workers. A worker starts in `start_s` and does a job in `seconds(place, job)`, the
    next when it is done with the last. `answer(place, job, halvings)` is a job's result, or the event that it is in
    place of `Answered`, made from the worker's number. `at(seconds, change)` changes the cluster at a time.
    """

    nodes: dict[str, int]
    seconds: Callable[[Place, int], float] = lambda _place, _job: 1.0
    answer: Callable[[Place, int, int], Any] = lambda _place, job, _halvings: job
    start_s: float = 0.0
    starts: Callable[[Place, int], Event] = lambda _place, worker: Ready(worker)
    given: list[tuple[str, int, int]] = field(default_factory=list)
    """(node, job, halvings) of each job that a worker was given."""

    def __post_init__(self) -> None:
        self._time = 0.0
        self._events: list[tuple[float, int, Any]] = []
        self._count = 0
        self._running: dict[int, Place] = {}
        self._free_at: dict[int, float] = {}
        self._numbers = 0

    def at(self, seconds: float, change: Callable[[], None]) -> None:
        self._push(seconds, change)

    def workers_on(self, node: str) -> list[int]:
        return [number for number, place in self._running.items() if place.node == node]

    def now(self) -> float:
        return self._time

    def places(self) -> Sequence[Place]:
        return [Place(node, node, index) for node, count in self.nodes.items() for index in range(count)]

    def start(self, place: Place) -> int:
        self._numbers += 1
        self._running[self._numbers] = place
        self._free_at[self._numbers] = self.now() + self.start_s
        self._push(self.now() + self.start_s, self.starts(place, self._numbers))
        return self._numbers

    def give(self, worker: int, job: int, halvings: int) -> None:
        place = self._running[worker]
        self.given.append((place.node, job, halvings))
        done_at = max(self._free_at[worker], self.now()) + self.seconds(place, job)
        self._free_at[worker] = done_at
        outcome = self.answer(place, job, halvings)
        self._push(done_at, outcome(worker) if callable(outcome) else Answered(worker, job, outcome))

    def wait(self, timeout_s: float) -> list[Event]:
        """Jump to the next event."""
        self._time = min(self._time + timeout_s, self._events[0][0] if self._events else 1e9)
        return self._due()

    def _due(self) -> list[Event]:
        """Return the events until now, also those of workers that have ended, as Ray does."""
        events = []
        while self._events and self._events[0][0] <= self._time:
            event = heapq.heappop(self._events)[2]
            if callable(event):
                event()
            else:
                events.append(event)
                if isinstance(event, Lost):
                    self._running.pop(event.worker, None)
        return events

    def kill(self, worker: int, **how: bool) -> None:
        self._push(self._time, Lost(worker, "killed", **how))

    def end(self, worker: int) -> None:
        self._running.pop(worker, None)

    def _push(self, seconds: float, event: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (seconds, self._count, event))
