"""The errors of a whole data set, image by image, in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from picopose_cli.base.cameras import CameraModel, Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Array
from picopose_cli.scoring.pair_errors import (
    DepthView,
    ObjectInImage,
    ObjectModel,
    PairErrors,
    RenderDepth,
    compute_pair_errors,
)

_PARENT_CHECK_S = 1.0


@dataclass(frozen=True)
class ImageJob:
    """One image: the objects to compare in it, its camera, and its depth image (None: no VSD), which needs a pinhole.

    `size_hw` (height, width) px of the sensor, whose width scales MSPD.
    """

    scene_id: int
    im_id: int
    camera: CameraModel
    size_hw: tuple[int, int]
    objects: tuple[ObjectInImage, ...]
    depth_path: Path | None = None
    depth_scale: float = 1.0


ReadDepth = Callable[[ImageJob, Path], Array]
"""Reads the depth image (H,W) of a job in metres from its path."""


@dataclass(frozen=True)
class ImageScorer:
    """Computes the errors of an image; has what all images share.

    `models` by object id; `tolerance_m` of VSD's visibility;
    `with_averages` adds ADD and ADD-S. `read_depth` and `render` are given, so that scoring knows no files.
    """

    models: Mapping[int, ObjectModel]
    tolerance_m: float
    read_depth: ReadDepth
    render: RenderDepth
    with_averages: bool = False

    def __call__(self, job: ImageJob) -> list[PairErrors]:
        """Return the errors of each object in the image; the depth image is read once."""
        view, camera = None, job.camera
        if job.depth_path is not None and isinstance(camera, Pinhole):
            measured_m = self.read_depth(job, job.depth_path)
            view = DepthView(measured_m, camera.K, self.tolerance_m, self.render)
        with np.errstate(all="ignore"):  # numbers of estimates may be too large to compute with: infinite errors
            return [
                compute_pair_errors(
                    item, self.models[item.obj_id], camera, job.size_hw[1], view=view, with_averages=self.with_averages
                )
                for item in job.objects
            ]


def score_images(scorer: ImageScorer, jobs: Sequence[ImageJob], workers: int) -> Iterator[tuple[int, list[PairErrors]]]:
    """Yield the index of each image with its errors when it is finished, in any order.

    With one worker everything is computed here, else in processes. The caller must not have threads of its own: where
    the system can, processes are forked, so that they share the meshes without a copy.
    Raises PicoPoseError when an image cannot be scored or a process died.
    """
    workers = min(workers, len(jobs))
    if workers == 1:
        yield from ((index, scorer(job)) for index, job in enumerate(jobs))
        return
    executor = ProcessPoolExecutor(workers, _context(), initializer=_start_worker, initargs=(scorer, os.getpid()))
    try:
        futures = {executor.submit(_score_image, job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise PicoPoseError(
            "a worker process was killed, most likely because memory ran out", fix="use fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _context() -> Any:
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


_worker_scorer: ImageScorer
"""Of a worker process: set once when it starts."""


def _start_worker(scorer: ImageScorer, parent_pid: int) -> None:
    global _worker_scorer  # the only way to hand an executor's processes what all jobs share
    _worker_scorer = scorer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which cancels the jobs
    threading.Thread(target=_exit_with_parent, args=(parent_pid,), daemon=True).start()


def _exit_with_parent(parent_pid: int) -> None:
    """End this process when its parent is gone: workers of a killed parent would wait for jobs forever."""
    while os.getppid() == parent_pid:
        time.sleep(_PARENT_CHECK_S)
    os._exit(1)


def _score_image(job: ImageJob) -> list[PairErrors]:
    return _worker_scorer(job)
