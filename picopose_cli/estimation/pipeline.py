"""The batching pipeline: images in, poses out, in order.

Threads read and crop images ahead, the calling thread fills batches across images and objects and runs the network, and
threads solve PnP meanwhile. Images leave in the order in which they came, each when its last pose is there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from picopose_cli.errors import PicoPoseError
from picopose_cli.estimation.estimator import Estimator, Hypothesis
from picopose_cli.estimation.queries import Query, Skip, crop_queries, stack_queries
from picopose_cli.geometry import Floats
from picopose_cli.structs import ImageTask, LoadedImage, PoseEstimate

OPEN_BATCHES = 3
"""Images kept open while their PnP runs, in batches of one detection an image."""

LoadImage = Callable[[ImageTask], LoadedImage]


@dataclass
class StageSeconds:
    """Seconds spent by stage: read and decode, crop, network (device synchronised), PnP (summed over threads)."""

    read: float = 0.0
    crop: float = 0.0
    network: float = 0.0
    pnp: float = 0.0

    def add(self, other: StageSeconds) -> None:
        """Add another count to this one."""
        self.read += other.read
        self.crop += other.crop
        self.network += other.network
        self.pnp += other.pnp


@dataclass(frozen=True)
class ImageResult:
    """What came of one image: its estimates (possibly none), what was skipped, and where its time went."""

    task: ImageTask
    estimates: tuple[PoseEstimate, ...]
    skips: tuple[Skip, ...]
    seconds: StageSeconds


@dataclass
class _OpenImage:
    """An image on its way: its queries, the solutions still running, its time so far."""

    task: ImageTask
    queries: tuple[Query, ...]
    skips: tuple[Skip, ...]
    seconds: StageSeconds
    solutions: dict[int, Future[tuple[Floats, float]]] = field(default_factory=dict)

    def is_submitted(self) -> bool:
        return len(self.solutions) == len(self.queries)

    def is_done(self) -> bool:
        return self.is_submitted() and all(future.done() for future in self.solutions.values())

    def finish(self) -> ImageResult:
        """Wait for the image's poses and give each the image's time."""
        poses = {position: future.result() for position, future in self.solutions.items()}
        self.seconds.pnp += sum(seconds for _, seconds in poses.values())
        time_s = self._image_seconds()
        estimates, skips = [], list(self.skips)
        for query in self.queries:
            T = poses[query.position][0]
            if np.isfinite(T).all():
                score = query.detection.score
                estimates.append(
                    PoseEstimate(self.task.scene_id, self.task.im_id, query.detection.obj_id, score, T, time_s)
                )
            else:
                reason = "no finite pose came out of the network"
                skips.append(Skip(self.task.scene_id, self.task.im_id, query.detection.obj_id, reason))
        return ImageResult(self.task, tuple(estimates), tuple(skips), self.seconds)

    def _image_seconds(self) -> float:
        """BOP's time of an image: from loaded data to its last pose, with the detector's time where it is known."""
        detector = max((detection.time_s for detection in self.task.detections), default=0.0)
        return max(detector, 0.0) + self.seconds.crop + self.seconds.network + self.seconds.pnp


def estimate_images(
    tasks: Sequence[ImageTask],
    load_image: LoadImage,
    estimator: Estimator,
    known_objects: Collection[int],
    *,
    batch_size: int,
    workers: int,
) -> Iterator[ImageResult]:
    """Yield the result of each task, in order.

    `batch_size` detections of one or several images go through the network at once; an image's share of a batch's time
    is its share of the batch's detections. `workers` threads read, as many solve PnP.
    """
    with ThreadPoolExecutor(workers, "read") as readers, ThreadPoolExecutor(workers, "pnp") as solvers:
        open_images: deque[_OpenImage] = deque()
        waiting: deque[tuple[_OpenImage, Query]] = deque()
        for image in _ahead(readers, lambda task: _open(task, load_image, known_objects), tasks, 2 * workers):
            open_images.append(image)
            waiting.extend((image, query) for query in image.queries)
            while len(waiting) >= batch_size:
                _run_batch([waiting.popleft() for _ in range(batch_size)], estimator, solvers)
            while open_images and (open_images[0].is_done() or _must_wait(open_images, batch_size)):
                yield open_images.popleft().finish()
        if waiting:
            _run_batch(list(waiting), estimator, solvers)
        while open_images:
            yield open_images.popleft().finish()


def _must_wait(open_images: deque[_OpenImage], batch_size: int) -> bool:
    """Say whether PnP lags so far behind the network that its results must be waited for."""
    return len(open_images) > OPEN_BATCHES * batch_size and open_images[0].is_submitted()


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[ImageTask], _OpenImage], tasks: Iterable[ImageTask], count: int
) -> Iterator[_OpenImage]:
    """Yield the work's results in order, with at most `count` of them begun ahead."""
    futures: deque[Future[_OpenImage]] = deque()
    try:
        for task in tasks:
            futures.append(pool.submit(work, task))
            if len(futures) >= count:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()


def _open(task: ImageTask, load_image: LoadImage, known_objects: Collection[int]) -> _OpenImage:
    """Read and crop one image; one that cannot be used comes back with the reason and without queries."""
    seconds = StageSeconds()
    problem = task.problem
    if problem is None and not task.detections:
        problem = "the image has no detections for its targets"
    if problem is not None:
        return _OpenImage(task, (), (Skip(task.scene_id, task.im_id, None, problem),), seconds)
    started = time.perf_counter()
    try:
        image = load_image(task)
    except PicoPoseError as error:
        return _OpenImage(task, (), (Skip(task.scene_id, task.im_id, None, str(error)),), seconds)
    read = time.perf_counter()
    queries, skips = crop_queries(task, image, known_objects)
    seconds.read, seconds.crop = read - started, time.perf_counter() - read
    return _OpenImage(task, queries, skips, seconds)


def _run_batch(members: list[tuple[_OpenImage, Query]], estimator: Estimator, solvers: ThreadPoolExecutor) -> None:
    started = time.perf_counter()
    hypotheses = estimator.hypotheses(stack_queries([query for _, query in members]))
    share = (time.perf_counter() - started) / len(members)
    for (image, query), of_query in zip(members, hypotheses, strict=True):
        image.seconds.network += share
        image.solutions[query.position] = solvers.submit(_solve, estimator, of_query, query.K)


def _solve(estimator: Estimator, hypotheses: Sequence[Hypothesis], K: Floats) -> tuple[Floats, float]:
    started = time.perf_counter()
    T = estimator.solve(hypotheses, K)
    return T, time.perf_counter() - started
