"""The batching pipeline: images in, poses out, in order.

Threads read and crop images ahead, the calling thread runs the network on groups of whole images, and threads solve PnP
meanwhile. A group's batches depend on its images alone, so its poses are the same bits in whichever run it is computed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import ImageResult, ImageTask, LoadedImage, Skip, StageSeconds
from picopose_cli.base.types import Array, PoseEstimate, QueryBatch
from picopose_cli.pose.matcher import Estimator, Hypothesis
from picopose_cli.pose.queries import Query, crop_queries, stack_queries
from picopose_cli.pose.refine import Refiner

DEFAULT_BATCH_SIZE = 16
"""Detections a network pass where nothing better is known."""
OPEN_GROUPS = 2
"""Groups whose PnP may run while the network goes on."""

Solution = TypeVar("Solution")
LoadImage = Callable[[ImageTask], LoadedImage]
Record = Callable[[str, float, float, str], None]
"""Takes (stage, start, end, what it worked on) of a piece of work; seconds of `time.perf_counter`."""
ImageGroup = tuple[ImageTask, ...]
"""Consecutive whole images that go through the network together."""


def plan_groups(tasks: Iterable[ImageTask], batch_size: int) -> list[ImageGroup]:
    """Return the images in groups of at most `batch_size` listed detections; an image with more is a group of its own.

    The groups depend on the tasks and the batch size alone.
    """
    groups: list[list[ImageTask]] = []
    size = 0
    for task in tasks:
        size += len(task.detections)
        if not groups or size > batch_size:
            groups.append([])
            size = len(task.detections)
        groups[-1].append(task)
    return [tuple(group) for group in groups]


def shard_of_groups(groups: Sequence[ImageGroup], index: int, count: int) -> list[ImageGroup]:
    """Return the share `index` (from 0) of `count`: consecutive groups, each in the share that its middle falls into.

    The shares have about the same number of detections (an image without any counts as one) and together are all.
    """
    sizes = np.array([sum(max(len(task.detections), 1) for task in group) for group in groups])
    middles = np.cumsum(sizes) - sizes / 2
    shares = np.floor(middles / sizes.sum() * count) if len(groups) else middles
    return [group for group, share in zip(groups, shares, strict=True) if share == index]


def groups_after(groups: Sequence[ImageGroup], done: int) -> tuple[list[ImageGroup], int]:
    """Return the groups that are not whole among the first `done` images, and how many images of the first one are."""
    for index, group in enumerate(groups):
        if len(group) > done:
            return list(groups[index:]), done
        done -= len(group)
    return [], 0


def estimate_images(
    tasks: Iterable[ImageTask],
    load_image: LoadImage,
    estimator: Estimator,
    known_objects: Collection[int],
    *,
    batch_size: int | None,
    workers: int,
    refiner: Refiner | None = None,
) -> Generator[ImageResult, None, None]:
    """Yield the result of each task, in order; `batch_size` None is the default."""
    size = batch_size or DEFAULT_BATCH_SIZE
    groups = plan_groups(tasks, size)
    return estimate_groups(
        groups, load_image, estimator, known_objects, batch_size=size, workers=workers, refiner=refiner
    )


def estimate_groups(
    groups: Sequence[ImageGroup],
    load_image: LoadImage,
    estimator: Estimator,
    known_objects: Collection[int],
    *,
    batch_size: int,
    workers: int,
    refiner: Refiner | None = None,
    sequential: bool = False,
    record: Record | None = None,
) -> Generator[ImageResult, None, None]:
    """Yield the result of each image of the groups, in order.

    `workers` threads read, as many solve PnP. An image's share of a network pass's time is its share of the
    detections. With `sequential` each group must be one image: it is read, estimated and solved before the next is
    touched, and its time is the wall clock's. `refiner`, if any, goes over the poses. `record` hears of each piece of
    work, from any thread.
    """
    work = _Work(load_image, estimator, known_objects, batch_size, refiner, sequential, record or _forget)
    with _threads(workers, "read") as readers, _threads(workers, "pnp") as solvers:
        solving: deque[list[_OpenImage]] = deque()
        for images in _read_ahead(groups, work, readers, 0 if sequential else 2 * workers):
            _run_network(images, work, solvers)
            solving.append(images)
            while solving and (sequential or len(solving) > OPEN_GROUPS or _is_done(solving[0])):
                yield from _finish(solving.popleft(), work)
        while solving:
            yield from _finish(solving.popleft(), work)


def _forget(stage: str, start: float, end: float, what: str) -> None:
    """Record nothing."""


@dataclass(frozen=True)
class _Work:
    """What is the same for all images."""

    load_image: LoadImage
    estimator: Estimator
    known_objects: Collection[int]
    batch_size: int
    refiner: Refiner | None
    sequential: bool
    record: Record


@dataclass
class _OpenImage:
    """An image on its way: its queries, their solutions, its time so far, when it had been read.

    A solution, maybe still running, is a pose (4,4) with the confidence in it, and the seconds that it took.
    """

    task: ImageTask
    queries: tuple[Query, ...]
    skips: tuple[Skip, ...]
    seconds: StageSeconds
    read_at: float
    solutions: dict[int, Future[tuple[tuple[Array, float], float]]] = field(default_factory=dict)

    def finish(self, *, sequential: bool) -> ImageResult:
        """Wait for the image's poses and give each the image's time."""
        poses = {position: future.result() for position, future in self.solutions.items()}
        ended = time.perf_counter()
        self.seconds.pnp += sum(seconds for _, seconds in poses.values())
        shares = self.seconds.crop + self.seconds.network + self.seconds.pnp + self.seconds.refine
        detector = max((detection.time_s for detection in self.task.detections), default=0.0)
        time_s = max(detector, 0.0) + (ended - self.read_at if sequential else shares)
        estimates, skips = [], list(self.skips)
        for query in self.queries:
            (T, confidence), _ = poses[query.position]
            obj_id, score = query.detection.obj_id, query.detection.score * confidence
            if np.isfinite(T).all():
                estimates.append(PoseEstimate(self.task.scene_id, self.task.im_id, obj_id, score, T, time_s))
            else:
                reason = "no finite pose came out of the network"
                skips.append(Skip(self.task.scene_id, self.task.im_id, obj_id, reason))
        return ImageResult(self.task, tuple(estimates), tuple(skips), self.seconds, time_s)


@contextmanager
def _threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool that drops what it has not begun when the caller leaves, by an error or an interrupt too."""
    pool = ThreadPoolExecutor(count, name)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _read_ahead(
    groups: Iterable[ImageGroup], work: _Work, readers: ThreadPoolExecutor, ahead: int
) -> Iterator[list[_OpenImage]]:
    """Yield the groups' images read and cropped; beyond a group, whole groups of at least `ahead` images are begun."""
    begun: deque[list[Future[_OpenImage]]] = deque()
    for group in groups:
        begun.append([readers.submit(_open, task, work) for task in group])
        while begun and sum(map(len, begun)) - len(begun[0]) >= ahead:
            yield [future.result() for future in begun.popleft()]
    while begun:
        yield [future.result() for future in begun.popleft()]


def _open(task: ImageTask, work: _Work) -> _OpenImage:
    """Read and crop one image; one that cannot be used comes back with the reason and without queries."""
    started = time.perf_counter()
    problem = task.problem
    if problem is None and not task.detections:
        problem = "the image has no detections to estimate"
    try:
        if problem is not None:
            raise PicoPoseError(problem)
        image = work.load_image(task)
    except PicoPoseError as error:
        skip = Skip(task.scene_id, task.im_id, None, str(error))
        return _OpenImage(task, (), (skip,), StageSeconds(), time.perf_counter())
    read_at = time.perf_counter()
    queries, skips = crop_queries(task, image, work.known_objects)
    cropped_at = time.perf_counter()
    work.record("read", started, read_at, task.name)
    work.record("crop", read_at, cropped_at, task.name)
    return _OpenImage(task, queries, skips, StageSeconds(read=read_at - started, crop=cropped_at - read_at), read_at)


def _run_network(images: list[_OpenImage], work: _Work, solvers: ThreadPoolExecutor) -> None:
    """Run the network on a group's queries, at most a batch at once, and let PnP begin on each."""
    members = [(image, query) for image in images for query in image.queries]
    for start in range(0, len(members), work.batch_size):
        _run_batch(members[start : start + work.batch_size], work, solvers)


def _run_batch(members: list[tuple[_OpenImage, Query]], work: _Work, solvers: ThreadPoolExecutor) -> None:
    started = time.perf_counter()
    batch = stack_queries([query for _, query in members])
    hypotheses = work.estimator.hypotheses(batch)
    ended = time.perf_counter()
    work.record("network", started, ended, f"{len(members)} detections")
    for image, _ in members:
        image.seconds.network += (ended - started) / len(members)
    if work.refiner is not None:
        _refine_batch(members, batch, hypotheses, work, work.refiner, solvers)
        return
    for (image, query), of_query in zip(members, hypotheses, strict=True):
        name = image.task.name
        image.solutions[query.position] = solvers.submit(_solve, work, work.estimator.solve, of_query, query, name)


def _refine_batch(
    members: list[tuple[_OpenImage, Query]],
    batch: QueryBatch,
    hypotheses: Sequence[Sequence[Hypothesis]],
    work: _Work,
    refiner: Refiner,
    solvers: ThreadPoolExecutor,
) -> None:
    """Refine a batch's poses, for which the network must wait for PnP."""
    futures = [
        solvers.submit(_solve, work, work.estimator.candidates, of_query, query, image.task.name)
        for (image, query), of_query in zip(members, hypotheses, strict=True)
    ]
    solved = [future.result() for future in futures]
    started = time.perf_counter()
    refined = refiner.refine(batch, [candidates for candidates, _ in solved], solvers)
    ended = time.perf_counter()
    work.record("refine", started, ended, f"{len(members)} detections")
    for (image, query), (_, pnp_s), poses in zip(members, solved, refined, strict=True):
        image.seconds.refine += (ended - started) / len(members)
        done: Future[tuple[tuple[Array, float], float]] = Future()
        done.set_result(((poses[0].T_cam_from_obj, poses[0].confidence), pnp_s))
        image.solutions[query.position] = done


def _solve(
    work: _Work,
    solve: Callable[[Sequence[Hypothesis], Array], Solution],
    hypotheses: Sequence[Hypothesis],
    query: Query,
    image: str,
) -> tuple[Solution, float]:
    """Return what `solve` makes of a detection's hypotheses, and the seconds that it took."""
    started = time.perf_counter()
    solution = solve(hypotheses, query.K)
    ended = time.perf_counter()
    work.record("PnP", started, ended, f"{image}, object {query.detection.obj_id}")
    return solution, ended - started


def _is_done(images: list[_OpenImage]) -> bool:
    return all(future.done() for image in images for future in image.solutions.values())


def _finish(images: list[_OpenImage], work: _Work) -> Iterator[ImageResult]:
    for image in images:
        yield image.finish(sequential=work.sequential)
