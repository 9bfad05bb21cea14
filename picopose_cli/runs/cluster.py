"""The only module that knows Ray: a connection to a cluster, and workers on its nodes for the `Dispatcher`.

Ray starts processes on nodes, carries calls and results, and knows which nodes live. What to do when one dies is
decided by the dispatcher, so Ray's own restarts and retries are off.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from picopose_cli.base.environment import available_cores, prepare_process
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.runs.backend import Answered, Event, Lost, NoMemory, Place, Ready, Unusable
from picopose_cli.runs.dispatch import JOBS_AHEAD, Dispatcher, Status
from picopose_cli.runs.node_files import NodeFiles, read_block
from picopose_cli.runs.node_worker import Bug, MakeWork, MemoryTooSmall, NodeContext, outcome_of

AUTO = "auto"
_INSTALL = "run pip install 'picopose-cli[ray]' (or pip install ray) here and on every node"
_OBJECT_STORE_BYTES = 1 << 29
"""Of a cluster that is started here: what is sent is small, or sent in blocks."""
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning about a future version
    "RAY_worker_niceness": "0",  # Ray's 15 would let any other program have the cores
}
"""Environment variables that are read when Ray is imported or started here."""
_READERS = 8
"""Blocks of files that the driver's node reads at a time."""
_CONNECT_S = 5.0
_IDS_SHOWN = 6
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerShare:
    """How much of a node a worker gets: a share of a GPU, of a node, or one core (`per_core`); `most` units of it."""

    workers: int = 1
    most: int | None = None
    per_core: bool = False
    on_gpu: bool = False


@dataclass(frozen=True)
class _Node:
    node_id: str
    name: str
    cpus: int
    gpus: int

    def count(self, share: WorkerShare) -> int:
        """Return the number of workers that fit."""
        if share.per_core:
            return self.cpus
        return self.gpus * share.workers if share.on_gpu else min(self.cpus, share.workers)


class Cluster:
    """A connected Ray cluster; made by `open_cluster`."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._names: dict[str, str] = {}
        server = ray.remote(num_cpus=0, max_concurrency=_READERS)(_FileServer)
        self._server = server.options(scheduling_strategy=self._on(ray.get_runtime_context().get_node_id())).remote()

    @property
    def has_gpus(self) -> bool:
        """Whether any node has a GPU."""
        return any(node.gpus for node in self.nodes())

    def nodes(self) -> list[_Node]:
        """Return the nodes that live, those seen first before others; each keeps its name."""
        alive = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        for node_id, node in alive.items():
            host = node["NodeManagerHostname"]
            name = f"{host} ({node_id[:_IDS_SHOWN]})" if host in self._names.values() else host
            self._names.setdefault(node_id, name)
        return [
            _Node(node_id, name, *(int(alive[node_id]["Resources"].get(one, 0)) for one in ("CPU", "GPU")))
            for node_id, name in self._names.items()
            if node_id in alive
        ]

    @contextmanager
    def dispatcher(
        self,
        make_work: MakeWork,
        jobs: Sequence[Any],
        share: WorkerShare,
        on_change: Callable[[Status], None] = lambda _: None,
    ) -> Iterator[Dispatcher]:
        """Yield a dispatcher of jobs to workers of this cluster, which end with the context.

        An exception of a worker other than PicoPoseError is a bug: RuntimeError with its traceback.
        """
        backend = _RayBackend(self._ray, self, make_work, jobs, share, self._server)
        try:
            yield Dispatcher(len(jobs), backend, on_change)
        finally:
            backend.close()

    def _on(self, node_id: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node_id, soft=False)


@contextmanager
def open_cluster(address: str) -> Iterator[Cluster]:
    """Connect to the cluster at an address; `auto` is the one that this machine is a node of, else a new one here.

    Raises PicoPoseError when Ray is not installed or the cluster cannot be reached.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        from ray._private import worker as ray_worker
    except ImportError as error:
        raise PicoPoseError("--ray needs the package ray, which is not installed", fix=_INSTALL) from error
    _require_reachable(address)
    # Raylets' own reports of lost workers and nodes are printed whatever log_to_driver says; ours are one line each.
    ray_worker._worker_logs_enabled = False
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _connect(ray, address)
        if is_main:
            signal.signal(signal.SIGTERM, handler)  # Ray's own ends the process without a word
        yield Cluster(ray)
    finally:
        ray.shutdown()


def _require_reachable(address: str) -> None:
    """Raise PicoPoseError when nothing answers at an address: Ray itself would try for minutes."""
    if "://" in address:
        what = f"--ray {address} is Ray's client, which cannot read the files of this machine"
        raise PicoPoseError(what, fix="run the command on a node of the cluster, with --ray auto")
    if address == AUTO:
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise PicoPoseError(f"--ray {address} is invalid", fix="use auto or HOST:PORT, like 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> PicoPoseError:
    fix = "run the command on a node of the cluster with its HOST:PORT, or with --ray auto"
    return PicoPoseError(f"--ray {address}: no Ray cluster answers there ({reason})", fix=fix)


def _connect(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address != AUTO:
            raise _unreachable(address, str(error).splitlines()[0]) from error
        ray.init(
            "local",
            num_cpus=available_cores(),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )


class _FileServer:
    """Runs on the driver's node and reads its files for others."""

    def read(self, path: str, offset: int) -> bytes | None:
        return read_block(Path(path), offset)


class _Worker:
    """Runs on a node, in a process of its own. Nothing heavy is imported before `prepare` has set up the process."""

    def prepare(self, make_work: Sequence[Any], server: Any, threads: int, index: int) -> PicoPoseError | Bug | None:
        """Get ready to work; `make_work` is a reference in a list, since Ray would load a plain one before the call."""
        import ray

        prepare_process()

        def read(path: Path, offset: int) -> bytes | None:
            block: bytes | None = ray.get(server.read.remote(str(path), offset))
            return block

        def make() -> None:
            from picopose_cli.pose.object_cache import default_cache_dir

            files = NodeFiles(default_cache_dir() / "ray", read)
            self._work = ray.get(make_work[0])(NodeContext(files, threads, index))

        return outcome_of(make)  # type: ignore[no-any-return]

    def work(self, job: Any, halvings: int) -> Any:
        """Return the result of a job, its PicoPoseError, a `Bug` or `MemoryTooSmall`."""
        return outcome_of(partial(self._work, job, halvings))


class _RayBackend:
    """Workers as Ray actors. Answers arrive in Ray's threads and wait in a queue for the dispatcher."""

    def __init__(
        self, ray: Any, cluster: Cluster, make_work: MakeWork, jobs: Sequence[Any], share: WorkerShare, server: Any
    ) -> None:
        self._ray, self._cluster, self._jobs, self._share, self._server = ray, cluster, jobs, share, server
        self._make_work = ray.put(make_work)
        self._class = ray.remote(max_concurrency=JOBS_AHEAD, max_restarts=0, max_task_retries=0)(_Worker)
        self._events: queue.SimpleQueue[Event | RuntimeError] = queue.SimpleQueue()
        self._actors: dict[int, tuple[Place, Any]] = {}
        self._started = 0

    def now(self) -> float:
        return time.monotonic()

    def places(self) -> list[Place]:
        """Return a place for each worker that fits on the nodes that live; with a limit, on the first of them."""
        places: list[Place] = []
        left = math.inf if self._share.most is None else self._share.most * self._share.workers
        for node in self._cluster.nodes():
            count = int(min(node.count(self._share), left))
            places += [Place(node.node_id, node.name, index) for index in range(count)]
            left -= count
        return places

    def start(self, place: Place) -> int:
        node = next((one for one in self._cluster.nodes() if one.node_id == place.node_id), None)
        self._started += 1
        number = self._started
        if node is None:
            self._events.put(Lost(number, "the node has left the cluster", node_left=True))
            return number
        threads = max(node.cpus // node.count(self._share), 1)
        needs = {"num_gpus": 1 / self._share.workers} if self._share.on_gpu else {"num_cpus": min(threads, node.cpus)}
        actor = self._class.options(scheduling_strategy=self._cluster._on(place.node_id), **needs).remote()
        self._actors[number] = place, actor
        ref = actor.prepare.remote([self._make_work], self._server, threads, place.index)
        ref.future().add_done_callback(partial(self._prepared, number))
        return number

    def give(self, worker: int, job: int, halvings: int) -> None:
        ref = self._actors[worker][1].work.remote(self._jobs[job], halvings)
        ref.future().add_done_callback(partial(self._answered, worker, job))

    def wait(self, timeout_s: float) -> list[Event]:
        events: list[Event] = []
        try:
            event = self._events.get(timeout=timeout_s)
            while True:
                if isinstance(event, RuntimeError):
                    raise event
                events.append(event)
                event = self._events.get_nowait()
        except queue.Empty:
            return events

    def end(self, worker: int) -> None:
        _, actor = self._actors.pop(worker, (None, None))
        if actor is not None:
            self._ray.kill(actor)

    def close(self) -> None:
        for worker in list(self._actors):
            self.end(worker)

    def _prepared(self, worker: int, future: Any) -> None:
        self._put(worker, future, lambda answer: Unusable(worker, str(answer)) if answer is not None else Ready(worker))

    def _answered(self, worker: int, job: int, future: Any) -> None:
        self._put(worker, future, lambda outcome: Answered(worker, job, outcome), NoMemory(worker, job))

    def _put(self, worker: int, future: Any, event: Callable[[Any], Event], no_memory: NoMemory | None = None) -> None:
        """Put what came of a call into the queue, from a thread of Ray."""
        error = future.exception()
        answer = None if error is not None else future.result()
        if error is not None:
            self._events.put(self._lost(worker, error))
        elif isinstance(answer, Bug):
            place = self._actors.get(worker, (None, None))[0]
            on = "a lost node" if place is None else place.node
            self._events.put(RuntimeError(f"a worker on {on} failed:\n{answer.trace}"))
        elif isinstance(answer, MemoryTooSmall):
            self._events.put(no_memory or Lost(worker, "memory ran out while it started"))
        else:
            self._events.put(event(answer))

    def _lost(self, worker: int, error: BaseException) -> Event:
        """Return what an error of Ray means; its own text, of many lines, goes to the log."""
        errors, text = self._ray.exceptions, str(error)
        _LOG.info("worker %d: %s", worker, text)
        if isinstance(error, errors.OutOfMemoryError) or "NODE_OUT_OF_MEMORY" in text:
            return Lost(worker, "memory ran out, and the worker was ended", no_memory=True)
        if isinstance(error, errors.ActorUnavailableError) or "node has died" in text:
            return Lost(worker, "the node has left the cluster, or does not answer", node_left=True)
        if getattr(error, "actor_init_failed", False) or isinstance(error, errors.RaySystemError):
            return Unusable(worker, f"picopose cannot be loaded there ({text.strip().splitlines()[-1]}); install it")
        return Lost(worker, "its process was killed, or crashed")
