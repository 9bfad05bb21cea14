"""What is done with the poses of queries after PnP: refinement by the picture, then by depth."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

from picopose_cli.pose.depth_placement import DepthSubject
from picopose_cli.pose.depth_refinement import DepthRefiner, Finished
from picopose_cli.pose.queries import Query
from picopose_cli.pose.refine import Refiner, Subject
from picopose_cli.pose.rules import RankedPose

Poses = Sequence[RankedPose]
"""The candidate poses of a query, best first."""


def finish_poses(
    queries: Sequence[Query],
    poses: Sequence[Poses],
    refiner: Refiner | None,
    depth_refiner: DepthRefiner | None,
    threads: Executor,
) -> list[tuple[Poses, Finished | None]]:
    """Return the poses of each query after what is given of both, and what depth did where there is any."""
    if refiner is not None:
        poses = refiner.refine(
            [
                Subject(query.detection.obj_id, query.close_up, of_query)
                for query, of_query in zip(queries, poses, strict=True)
                if query.close_up is not None
            ],
            threads,
        )
    finished: dict[int, Finished] = {}
    if depth_refiner is not None:
        subjects = {
            i: DepthSubject(query.detection.obj_id, query.close_up, query.depth, of_query)
            for i, (query, of_query) in enumerate(zip(queries, poses, strict=True))
            if query.depth is not None and query.close_up is not None
        }
        finished = dict(zip(subjects, depth_refiner.finish(list(subjects.values()), threads), strict=True))
    return [(finished[i].poses if i in finished else of_query, finished.get(i)) for i, of_query in enumerate(poses)]
