"""The batching pipeline: images in, poses out, in order.

Threads read and crop images ahead, the calling thread runs the network on groups of whole images, and threads solve and
refine poses meanwhile. On a CPU a group goes through the network in small parts, each in a thread: that keeps more
cores busy than one matrix product with the threads of all of them. A group's batches and parts depend on its images
alone, so its poses are the same to the bit in every run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import DepthUse, ImageResult, ImageTask, LoadedImage, Skip, StageSeconds
from picopose_cli.base.types import PoseEstimate
from picopose_cli.network.devices import sharing_threads
from picopose_cli.pose.depth_refinement import DepthRefiner, Finished
from picopose_cli.pose.duplicates import Pairs, overlapping_detections, without_duplicates
from picopose_cli.pose.finishing import finish_poses
from picopose_cli.pose.image_groups import ImageGroup, plan_groups
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.queries import Query, crop_queries, stack_queries
from picopose_cli.pose.refine import Refiner
from picopose_cli.pose.rules import Hypothesis, RankedPose

DEFAULT_BATCH_SIZE = 16
CPU_PART = 3
"""Detections that go through the network together on a CPU: about as many as its caches hold."""
OPEN_GROUPS = 2
"""Groups whose PnP may run while the network works on later ones."""

LoadImage = Callable[[ImageTask], LoadedImage]
OnProgress = Callable[[int], None]
"""Takes the number of detections that are done since the last call."""
Record = Callable[[str, float, float, str], None]
"""Takes (stage, start, end, subject) of each piece of work, from any thread; seconds of `time.perf_counter`."""


@dataclass(frozen=True)
class PipelineOptions:
    """How images are grouped and worked on.

    `batch_size`: detections that are worked on together. `workers` threads read images, as many solve PnP, and as many
    refine poses and, on a CPU, run the network.
    With `sequential` each group must be one image: it is read, estimated and solved before the next is touched, and its
    time is the wall clock's; otherwise an image's part of a network pass's time is its part of the detections.
    With `drop_duplicates` one estimate of each thing remains (see `duplicates`).
    """

    batch_size: int = DEFAULT_BATCH_SIZE
    workers: int = 2
    sequential: bool = False
    drop_duplicates: bool = False


def estimate_images(
    tasks: Iterable[ImageTask],
    load_image: LoadImage,
    matcher: Matcher,
    options: PipelineOptions,
    *,
    refiner: Refiner | None = None,
    depth_refiner: DepthRefiner | None = None,
) -> Generator[ImageResult, None, None]:
    """Yield the result of each task, in order; see `estimate_groups`."""
    groups = plan_groups(tasks, options.batch_size)
    return estimate_groups(groups, load_image, matcher, options, refiner=refiner, depth_refiner=depth_refiner)


def estimate_groups(
    groups: Sequence[ImageGroup],
    load_image: LoadImage,
    matcher: Matcher,
    options: PipelineOptions,
    *,
    refiner: Refiner | None = None,
    depth_refiner: DepthRefiner | None = None,
    record: Record | None = None,
    on_progress: OnProgress = lambda _: None,
) -> Generator[ImageResult, None, None]:
    """Yield the result of each image of the groups, in order.

    `load_image` raises PicoPoseError for an image that cannot be used, which is reported as a skip. Detections of
    objects that the matcher's store does not have are skipped too. `refiner` refines the poses if it is given, and
    `depth_refiner` finishes them on the depth that images were loaded with.
    `on_progress` is called after each pass of the network; skipped detections count as done.
    """
    sequential, workers = options.sequential, options.workers
    with (
        sharing_threads(workers, "read") as readers,
        sharing_threads(workers, "pnp") as solvers,
        sharing_threads(workers, "compute") as computing,
    ):
        finishers = refiner, depth_refiner
        work = _Work(load_image, matcher, options, *finishers, record or _forget, on_progress, solvers, computing)
        solving: deque[list[_OpenImage]] = deque()
        for images in _read_ahead(groups, work, readers, 0 if sequential else 2 * options.workers):
            _run_network(images, work)
            solving.append(images)
            while solving and (sequential or len(solving) > OPEN_GROUPS or _is_done(solving[0])):
                yield from _finish(solving.popleft(), work)
        while solving:
            yield from _finish(solving.popleft(), work)


def _forget(stage: str, start: float, end: float, subject: str) -> None:
    """Record nothing."""


@dataclass(frozen=True)
class _Work:
    """What is the same for all images."""

    load_image: LoadImage
    matcher: Matcher
    options: PipelineOptions
    refiner: Refiner | None
    depth_refiner: DepthRefiner | None
    record: Record
    on_progress: OnProgress
    solvers: ThreadPoolExecutor
    computing: ThreadPoolExecutor
    """Threads that the calling thread and solvers wait for: one pool would wait for itself."""


@dataclass(frozen=True)
class Solution:
    """The candidate poses of a query, best first, the query's seconds of PnP and of refinement, and what depth did."""

    poses: Sequence[RankedPose]
    pnp_s: float
    refine_s: float
    finished: Finished | None = None


@dataclass(frozen=True)
class _Solving:
    """A query's solution, which may still be computed: the `index`-th of the queries that are solved together."""

    together: Future[list[Solution]]
    index: int

    def result(self) -> Solution:
        """Wait for the solution."""
        return self.together.result()[self.index]


@dataclass
class _OpenImage:
    """An image in progress: its queries, its time so far, the time at which it had been read, and its solutions.

    `duplicates`: the pairs of detections of one thing, of which one estimate remains.
    """

    task: ImageTask
    queries: tuple[Query, ...]
    skips: tuple[Skip, ...]
    seconds: StageSeconds
    read_at: float
    depth_problem: str | None = None
    duplicates: Pairs = frozenset()
    solutions: dict[int, _Solving] = field(default_factory=dict)

    def finish(self, *, sequential: bool) -> ImageResult:
        """Wait for the image's poses and assign the image's time to each."""
        solutions = {position: solving.result() for position, solving in self.solutions.items()}
        ended = time.perf_counter()
        self.seconds.pnp += sum(solution.pnp_s for solution in solutions.values())
        self.seconds.refine += sum(solution.refine_s for solution in solutions.values())
        parts = self.seconds.crop + self.seconds.network + self.seconds.pnp + self.seconds.refine
        detector = max((detection.time_s for detection in self.task.detections), default=0.0)
        time_s = max(detector, 0.0) + (ended - self.read_at if sequential else parts)
        estimates, places, finished, skips = [], [], [], list(self.skips)
        for query in self.queries:
            pose = solutions[query.position].poses[0]
            T, obj_id = query.pose_in_camera(pose.T_cam_from_obj), query.detection.obj_id
            if np.isfinite(T).all():
                score = weighted_score(query.detection.score, pose.confidence)
                estimates.append(PoseEstimate(self.task.scene_id, self.task.im_id, obj_id, score, T, time_s))
                places.append(query.position)
                finished.append(solutions[query.position].finished)
            else:
                skips.append(Skip(self.task.scene_id, self.task.im_id, obj_id, "the network gave no finite pose"))
        depth = self._depth_use([one for one in finished if one is not None])
        kept = without_duplicates(places, [one.score for one in estimates], self.duplicates)
        return ImageResult(
            self.task, tuple(estimates[index] for index in kept), tuple(skips), self.seconds, time_s, depth
        )

    def _depth_use(self, finished: Sequence[Finished]) -> DepthUse | None:
        """Return what came of the image's depth, None for an image without."""
        if self.depth_problem is not None:
            return DepthUse(problem=self.depth_problem)
        ratios = tuple(one.ratio for one in finished if one.ratio is not None)
        return DepthUse(tuple(one.problem for one in finished), ratios) if finished else None


def weighted_score(score: float, confidence: float) -> float:
    """Return the detector's score times the confidence in [0, 1] of a pose.

    A negative score is multiplied by 2 - confidence instead: here too a higher confidence gives a higher score, and of
    two poses of equal confidence that of the better detection keeps the higher one.
    """
    return score * (confidence if score >= 0 else 2 - confidence)


def _read_ahead(
    groups: Iterable[ImageGroup], work: _Work, readers: ThreadPoolExecutor, ahead: int
) -> Iterator[list[_OpenImage]]:
    """Yield the groups' images, read and cropped; whole groups of at least `ahead` more images are in progress."""
    begun: deque[list[Future[_OpenImage]]] = deque()
    for group in groups:
        begun.append([readers.submit(_open, task, work) for task in group])
        while begun and sum(map(len, begun)) - len(begun[0]) >= ahead:
            yield [future.result() for future in begun.popleft()]
    while begun:
        yield [future.result() for future in begun.popleft()]


def _open(task: ImageTask, work: _Work) -> _OpenImage:
    """Read and crop one image; for one that cannot be used return the reason and no queries."""
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
    queries, skips = crop_queries(
        task,
        image,
        work.matcher.store.obj_ids,
        perspective_crops=work.matcher.rules.perspective_crops,
        close_ups=work.refiner is not None or work.depth_refiner is not None,
    )
    cropped_at = time.perf_counter()
    work.record("read", started, read_at, task.name)
    work.record("crop", read_at, cropped_at, task.name)
    seconds = StageSeconds(read=read_at - started, crop=cropped_at - read_at)
    depth_problem = str(image.depth_m) if isinstance(image.depth_m, PicoPoseError) else None
    pairs = overlapping_detections(task.detections, image.masks) if work.options.drop_duplicates else frozenset()
    return _OpenImage(task, queries, skips, seconds, read_at, depth_problem, pairs)


def _run_network(images: list[_OpenImage], work: _Work) -> None:
    """Run the network on a group's queries, at most a batch at a time, and begin PnP on each."""
    members = [(image, query) for image in images for query in image.queries]
    work.on_progress(sum(len(image.task.detections) for image in images) - len(members))
    for start in range(0, len(members), work.options.batch_size):
        _run_batch(members[start : start + work.options.batch_size], work)


def _run_batch(members: list[tuple[_OpenImage, Query]], work: _Work) -> None:
    started = time.perf_counter()
    hypotheses = _match([query for _, query in members], work)
    ended = time.perf_counter()
    work.record("network", started, ended, f"{len(members)} detections")
    for image, _ in members:
        image.seconds.network += (ended - started) / len(members)
    together = len(members) if work.matcher.rules.solves_batches else 1
    for first in range(0, len(members), together):
        part = slice(first, first + together)
        future = work.solvers.submit(_solve, work, hypotheses[part], members[part])
        for index, (image, query) in enumerate(members[part]):
            image.solutions[query.position] = _Solving(future, index)
    work.on_progress(len(members))


def _match(queries: Sequence[Query], work: _Work) -> list[Sequence[Hypothesis]]:
    """Run the network on queries; one part has all of PyTorch's threads, several parts share them."""
    most = CPU_PART if work.matcher.device.type == "cpu" else len(queries)
    parts = np.array_split(np.arange(len(queries)), -(-len(queries) // most))
    run = map if len(parts) == 1 else work.computing.map
    found = run(lambda part: work.matcher.match(stack_queries([queries[i] for i in part])), parts)
    return [hypotheses for of_part in found for hypotheses in of_part]


def _solve(
    work: _Work, hypotheses: Sequence[Sequence[Hypothesis]], members: Sequence[tuple[_OpenImage, Query]]
) -> list[Solution]:
    """Solve some queries together, refine and finish the poses; each has the same part of the time."""
    started, queries = time.perf_counter(), [query for _, query in members]
    poses = work.matcher.rules.solve(hypotheses, np.stack([query.K for query in queries]), work.matcher.device)
    solved = time.perf_counter()
    (image, query), count = members[0], len(members)
    name = f"{image.task.name}, object {query.detection.obj_id}" if count == 1 else f"{count} detections"
    work.record("PnP", started, solved, name)
    pnp_s = (solved - started) / count
    if work.refiner is None and work.depth_refiner is None:
        return [Solution(of_query, pnp_s, 0.0) for of_query in poses]
    found = finish_poses(queries, poses, work.refiner, work.depth_refiner, work.computing)
    ended = time.perf_counter()
    work.record("refine", solved, ended, name)
    return [Solution(of_query, pnp_s, (ended - solved) / count, on_depth) for of_query, on_depth in found]


def _is_done(images: list[_OpenImage]) -> bool:
    return all(solving.together.done() for image in images for solving in image.solutions.values())


def _finish(images: list[_OpenImage], work: _Work) -> Iterator[ImageResult]:
    for image in images:
        yield image.finish(sequential=work.options.sequential)
