"""The workers of a `Dispatcher` as it sees them: places for them, what happens to them, and how they are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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
