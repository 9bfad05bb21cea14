"""One run on one device: finished images go to the journal, at the end to the result file and its report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from picopose_cli.base.environment import peak_memory_mb
from picopose_cli.base.files import file_sha256
from picopose_cli.base.tasks import ImageResult
from picopose_cli.bop.results import write_results
from picopose_cli.network.devices import peak_device_memory_mb
from picopose_cli.pose.pipeline import ImageGroup, groups_after
from picopose_cli.runs.identity import run_identity
from picopose_cli.runs.inputs import RunInputs
from picopose_cli.runs.interrupts import stoppable
from picopose_cli.runs.journal import Journal, journal_path, stopped_message
from picopose_cli.runs.report import InferReport, new_report, no_estimate_error, write_report

_LOG = logging.getLogger(__name__)


class Run:
    """A run whose journal is open; made by `open_run`.

    `groups` are the groups of images that are still to be estimated: the first one is computed again whole if a killed
    run has finished a part of it.
    """

    def __init__(self, inputs: RunInputs, journal: Journal, report: InferReport, started: float) -> None:
        self.inputs = inputs
        self.report = report
        self.groups: list[ImageGroup]
        self.groups, self._repeated = groups_after(inputs.groups, journal.done)
        self._journal = journal
        self._started = started
        self._estimating_since: float | None = None
        report.kept_images = journal.done

    @property
    def done(self) -> int:
        """The number of finished images."""
        return self._journal.done

    def begin_estimating(self) -> None:
        """Start the clock of the images, when the objects are onboarded."""
        self._estimating_since = time.perf_counter()

    def keep(self, result: ImageResult) -> bool:
        """Write the next image of `groups` to the journal; return False for one that the journal has already."""
        if self._repeated:
            self._repeated -= 1
            return False
        self._journal.append(result)
        for skip in result.skips:
            _LOG.info("skipped %s", skip)
        return True

    def finish(self) -> InferReport:
        """Write the result file and the report of all images in the journal, and delete the journal.

        The journal of a shard is kept until the shards are merged, so that a finished shard is not computed again.
        Raises PicoPoseError when there are no estimates, after writing the report.
        """
        report, output = self.report, self.inputs.output
        is_shard = self.inputs.options.part is not None
        self._measure()
        for result in self._journal.results():
            report.add(result)
        if report.estimates or is_shard:
            write_results(output, (one for result in self._journal.results() for one in result.estimates))
            report.output_sha256 = file_sha256(output)
        write_report(output, report)
        if not is_shard:
            self._journal.delete()
        if not report.estimates and not is_shard:
            raise no_estimate_error(output, report)
        return report

    def _measure(self) -> None:
        ended, report = time.perf_counter(), self.report
        report.total_s, report.peak_memory_mb = ended - self._started, peak_memory_mb()
        if self._estimating_since is not None:
            report.estimating_s = ended - self._estimating_since
            report.images_per_second = (self.done - report.kept_images) / report.estimating_s
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
        yield Run(inputs, journal, new_report(inputs, identity), started)
