"""The errors of a whole data set, image by image, in as many processes as wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.processes import WorkerDiedError, run_jobs
from picopose_cli.base.types import Array
from picopose_cli.scoring.pair_errors import (
    Candidates,
    DepthView,
    PairErrors,
    RenderDepth,
    ScoredObject,
    compute_pair_errors,
)

ReadDepth = Callable[[Path, float], Array]
"""Reads a depth image (H,W) in metres from its path and scale."""


@dataclass(frozen=True)
class ImageJob:
    """One image: what to compare in it, its camera `K` (3,3), and its depth image (None: no VSD)."""

    scene_id: int
    im_id: int
    K: Array
    candidates: tuple[Candidates, ...]
    depth_path: Path | None = None
    depth_scale: float = 1.0

    def __str__(self) -> str:
        return f"scene {self.scene_id}, image {self.im_id}"


@dataclass(frozen=True)
class ImageScorer:
    """Computes the errors of an image; carries what the images share, and goes to each worker process once.

    `objects` by id; `width_px` of the images, which scales MSPD; `tolerance_m` of VSD's visibility; `with_averages`
    adds ADD and ADD-S. Depth comes from `read_depth` and `render`, so nothing here knows of files or meshes.
    """

    objects: Mapping[int, ScoredObject]
    width_px: int
    tolerance_m: float
    read_depth: ReadDepth
    render: RenderDepth
    with_averages: bool = False

    def __call__(self, job: ImageJob, _share: int = 1) -> list[PairErrors]:
        """Return the errors of each object in the image; the depth image is read once."""
        view = None
        if job.depth_path is not None:
            measured_m = self.read_depth(job.depth_path, job.depth_scale)
            view = DepthView(measured_m, job.K, self.tolerance_m, self.render)
        return [
            compute_pair_errors(
                one, self.objects[one.obj_id], job.K, self.width_px, view=view, with_averages=self.with_averages
            )
            for one in job.candidates
        ]


def score_images(scorer: ImageScorer, jobs: Sequence[ImageJob], workers: int) -> Iterator[tuple[int, list[PairErrors]]]:
    """Yield the index of each image with its errors as it is done, in any order.

    Raises the PicoPoseError of any image; one whose process died names the image.
    """
    alone = min(workers, len(jobs)) == 1
    for index, outcome in run_jobs(scorer, jobs, workers, in_process=alone, fork=True):
        if isinstance(outcome, WorkerDiedError):
            fix = "try fewer --workers, which need less memory"
            raise PicoPoseError(f"{outcome.what} on {jobs[index]}", fix=fix)
        if isinstance(outcome, PicoPoseError):
            raise outcome
        yield index, outcome
