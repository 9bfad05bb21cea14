"""Workers of `infer --ray` to which something happens."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from picopose_cli.pose.image_groups import ImageGroup
from picopose_cli.runs.cluster_estimates import EstimateOnNode, GroupAnswer
from picopose_cli.runs.node_files import FileBundle, NodeFiles
from picopose_cli.runs.node_worker import NodeContext


@dataclass(frozen=True)
class BlindFiles(NodeFiles):
    """A node that sees no file of the driver."""

    def has(self, bundle: FileBundle) -> bool:
        return not bundle.files


@dataclass(frozen=True)
class FaultyNode(EstimateOnNode):
    """Each group takes `sleep_s` longer; the groups of some images kill the worker, or fit only into a smaller batch.

    `pids`: a folder in which each worker that is ready leaves a file with its process's number as name. `waits_from`:
    groups of images from this one on wait until that folder has a file `go`, a minute at most. `blind`: the node has
    none of the driver's files, and keeps its copies there.
    """

    sleep_s: float = 0.0
    kills: tuple[int, ...] = ()
    too_large: tuple[int, ...] = ()
    pids: Path | None = None
    waits_from: int | None = None
    blind: Path | None = None

    def __call__(self, context: NodeContext) -> Callable[[ImageGroup, int], GroupAnswer]:
        if self.blind is not None:
            context = replace(context, files=BlindFiles(self.blind, context.files.read))
        work = super().__call__(context)
        if self.pids is not None:
            (self.pids / str(os.getpid())).touch()

        def faulty(group: ImageGroup, halvings: int) -> GroupAnswer:
            ids = {task.im_id for task in group}
            if ids & set(self.kills):
                os.kill(os.getpid(), signal.SIGKILL)
            if ids & set(self.too_large) and not halvings:
                raise MemoryError
            time.sleep(self.sleep_s)
            if self.waits_from is not None and max(ids) >= self.waits_from:
                self._wait()
            return work(group, halvings)

        return faulty

    def _wait(self) -> None:
        end = time.monotonic() + 60
        while self.pids is not None and not (self.pids / "go").exists() and time.monotonic() < end:
            time.sleep(0.05)


def with_faults(recipe: EstimateOnNode, **faults: object) -> FaultyNode:
    """Return a recipe with faults."""
    return FaultyNode(**{one.name: getattr(recipe, one.name) for one in fields(recipe)}, **faults)


@dataclass(frozen=True)
class Sleep:
    """Workers that only sleep, and answer with a record of each image of a group."""

    seconds: float
    record: dict[str, Any]

    def __call__(self, _context: NodeContext) -> Callable[[ImageGroup, int], GroupAnswer]:
        return self.answer

    def answer(self, group: ImageGroup, _halvings: int) -> GroupAnswer:
        time.sleep(self.seconds)
        records = tuple(self.record | {"scene_id": task.scene_id, "im_id": task.im_id} for task in group)
        return GroupAnswer(records, ())
