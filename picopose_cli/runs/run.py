"""One run on one device: finished images go to the journal, at the end to the result file and its report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from picopose_cli.base.environment import peak_memory_mb
from picopose_cli.base.files import file_sha256, remove_leftovers
from picopose_cli.base.interrupts import stoppable
from picopose_cli.base.tasks import ImageResult, ImageTask
from picopose_cli.bop.check import Finding, check_results, grouped_lines
from picopose_cli.bop.results import write_results
from picopose_cli.network.devices import peak_device_memory_mb
from picopose_cli.pose.image_groups import ImageGroup, groups_after
from picopose_cli.runs.depth_inputs import DepthScaleCheck
from picopose_cli.runs.identity import run_identity
from picopose_cli.runs.inputs import RunInputs
from picopose_cli.runs.journal import ImageKey, Journal, journal_path, stopped_message
from picopose_cli.runs.report import (
    InferReport,
    new_report,
    no_estimate_error,
    raise_on_errors,
    report_path,
    write_report,
)
from picopose_cli.runs.shards import finished_elsewhere, remove_other_shards

_LOG = logging.getLogger(__name__)


class Run:
    """A run whose journal is open; made by `open_run`.

    `groups` are the groups of images that are still to be estimated: one of which only a part is finished is computed
    again whole, since all its images go through the network together. `finished` are results of the same run that were
    computed when it was sharded in another way.
    """

    def __init__(
        self,
        inputs: RunInputs,
        journal: Journal,
        report: InferReport,
        finished: Mapping[ImageKey, ImageResult],
        started: float,
    ) -> None:
        self.inputs = inputs
        self.report = report
        self._journal = journal
        self._finished = finished
        self._started = started
        self._estimating_since: float | None = None
        self._depth_scale = DepthScaleCheck()
        self._tasks = inputs.tasks
        self._index = {_key(task): index for index, task in enumerate(self._tasks)}
        remaining, _ = groups_after(inputs.groups, journal.done)
        self.groups = [group for group in remaining if not all(_key(task) in finished for task in group)]
        report.kept_images = len(self._tasks) - sum(len(self._unfinished(group)) for group in self.groups)

    def _unfinished(self, group: ImageGroup) -> list[ImageTask]:
        """Return the images of a group that the journal does not have."""
        return [task for task in group if self._index[_key(task)] >= self._journal.done]

    def begin_estimating(self) -> None:
        """Start the clock of the images, when the objects are onboarded."""
        self._estimating_since = time.perf_counter()

    def keep(self, *results: ImageResult) -> None:
        """Write images of `groups`, in order, to the journal, except those that are there already."""
        kept: list[ImageResult] = []
        for result in results:
            index, next_index = self._index[_key(result.task)], self._journal.done + len(kept)
            if index >= next_index:
                kept += [*self._finished_between(next_index, index), result]
                self._depth_scale.add(result)
        if kept:
            self._journal.append(*kept)
        for result in kept:
            for skip in result.skips:
                _LOG.info("skipped %s", skip)

    def _finished_between(self, first: int, end: int) -> list[ImageResult]:
        """Return the images from index `first` up to `end`, which an earlier run has finished."""
        return [self._finished[_key(task)] for task in self._tasks[first:end]]

    def finish(self) -> InferReport:
        """Write the result file and the report of all images, check the file, and delete the journal.

        The journal of a shard is kept until the shards are merged, so that a finished shard is not computed again.
        Raises PicoPoseError when there are no estimates or the file has an error, after writing the report.
        """
        report, output = self.report, self.inputs.output
        is_shard = self.inputs.options.part is not None
        for result in self._finished_between(self._journal.done, len(self._tasks)):
            self._journal.append(result)
        self._depth_scale.finish()
        self._measure()
        for result in self._journal.results():
            report.add(result)
        findings: list[Finding] = []
        if report.estimates or is_shard:
            write_results(output, (one for result in self._journal.results() for one in result.estimates))
            report.output_sha256 = file_sha256(output)
            findings = check_results(output, self.inputs.dataset, self.inputs.shard_targets) if report.estimates else []
        report.findings = grouped_lines(findings)
        write_report(output, report)
        raise_on_errors(output, findings)
        if not is_shard:
            self._journal.delete()
            remove_other_shards(output, report.identity)
            if not report.estimates:
                raise no_estimate_error(output, report)
        return report

    def _measure(self) -> None:
        ended, report = time.perf_counter(), self.report
        report.total_s, report.peak_memory_mb = ended - self._started, peak_memory_mb()
        if self._estimating_since is not None:
            report.estimating_s = ended - self._estimating_since
            report.images_per_second = (len(self._tasks) - report.kept_images) / report.estimating_s
            report.peak_device_memory_mb = peak_device_memory_mb(self.inputs.devices[0])


@contextmanager
def open_run(inputs: RunInputs, started: float) -> Iterator[Run]:
    """Open the journal of a run, which keeps the finished images of an earlier one, for the time of the context.

    `started` is when the command began, in seconds of `time.perf_counter`; the report's total counts from then.

    Raises PicoPoseError when the journal is of another run or cannot be written; StoppedError, which says what is kept,
    when Ctrl-C or SIGTERM ends the run.
    """
    identity, tasks = run_identity(inputs), inputs.tasks
    path = journal_path(inputs.output)
    with (
        Journal(path, identity, tasks, restart=inputs.options.restart) as journal,
        stoppable(lambda: stopped_message(len(tasks), [path])),
    ):
        for path_written in (inputs.output, report_path(inputs.output)):
            remove_leftovers(path_written)
        finished = {} if inputs.options.restart else finished_elsewhere(inputs.output, identity, tasks)
        yield Run(inputs, journal, new_report(inputs, identity), finished, started)


def _key(task: ImageTask) -> ImageKey:
    return task.scene_id, task.im_id
