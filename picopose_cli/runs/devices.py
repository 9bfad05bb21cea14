"""A run on several devices: a shard and a process for each, merged at the end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from rich.console import Console

from picopose_cli.base.errors import BUG_EXIT_CODE, PicoPoseError
from picopose_cli.base.interrupts import stoppable
from picopose_cli.base.option_fields import command_line, options_record
from picopose_cli.base.options import InferOptions
from picopose_cli.bop.check import check_results, grouped_lines
from picopose_cli.network.devices import thread_count
from picopose_cli.runs.inputs import RunInputs
from picopose_cli.runs.journal import JournalFollower, journal_path, stopped_message
from picopose_cli.runs.merge import merge_shards
from picopose_cli.runs.progress import add_bar, progress_bar
from picopose_cli.runs.report import InferReport, raise_on_errors, write_report
from picopose_cli.runs.shards import remove_other_shards, remove_shard, shard_path, shard_paths

_PR_SET_PDEATHSIG = 1
_STOP_S = 20.0
"""A child that does not end this long after it was terminated is killed."""
_POLL_S = 0.2


def run_on_devices(inputs: RunInputs, console: Console, started: float) -> InferReport:
    """Run a shard on each device of the inputs, each in a process, and merge them into one result file and report.

    `started` as for `open_run`.

    Raises PicoPoseError with the message of a process that failed; StoppedError when Ctrl-C or SIGTERM ends the run.
    """
    shards = shard_paths(inputs.output, len(inputs.devices))
    journals = [journal_path(shard) for shard in shards]
    with stoppable(lambda: stopped_message(len(inputs.tasks), journals)), Children() as children:
        threads = {"OMP_NUM_THREADS": str(max(1, thread_count() // len(shards)))}
        for device, shard, index in zip(inputs.devices, shards, range(1, len(shards) + 1), strict=True):
            arguments = command_line(_shard_options(inputs, device, shard, index))
            children.start(device, ["infer", *arguments], threads)
        _wait(children, journals, len(inputs.tasks), console)
    report = merge_shards(inputs.output, shards)
    report.options, report.total_s = options_record(inputs.options), time.perf_counter() - started
    findings = check_results(inputs.output, inputs.dataset, inputs.targets)
    report.findings = grouped_lines(findings)
    write_report(inputs.output, report)
    raise_on_errors(inputs.output, findings)
    for shard in shards:
        remove_shard(shard)
    remove_other_shards(inputs.output, report.identity)
    return report


def _wait(children: Children, journals: Sequence[Path], images: int, console: Console) -> None:
    """Show the progress of all children until they have ended."""
    followers = [JournalFollower(journal) for journal in journals]

    def done() -> int:
        return sum(follower.done() for follower in followers)

    with progress_bar(console) as progress:
        bar = add_bar(progress, "images", images, "images", done())
        while children.running():
            time.sleep(_POLL_S)
            progress.update(bar, completed=done())
        progress.update(bar, completed=done())


def _shard_options(inputs: RunInputs, device: str, output: Path, index: int) -> InferOptions:
    count, profile = len(inputs.devices), inputs.options.profile
    return replace(
        inputs.options,
        device=device,
        shard=f"{index}/{count}",
        output=output,
        overlays=0,  # they are drawn when the shards are merged
        batch_size=inputs.batch_size,
        profile=profile and shard_path(profile, index, count),
    )


class Children:
    """Child processes that run `picopose`; those still running when the context ends are terminated.

    Each child leads its own process group, so that Ctrl-C reaches the parent only, and is killed by the kernel when the
    parent dies.
    """

    def __init__(self) -> None:
        self._started: list[tuple[str, subprocess.Popen[bytes], IO[bytes]]] = []

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start `picopose ARGUMENTS` with additional environment variables."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the child has ended
        process = subprocess.Popen(
            [sys.executable, "-m", "picopose_cli", *arguments],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        self._started.append((name, process, errors))

    def running(self) -> bool:
        """Return whether any child is running.

        Raises PicoPoseError with the message of one that failed, and RuntimeError with the traceback of a bug.
        """
        codes = [process.poll() for _, process, _ in self._started]
        for (name, _, errors), code in zip(self._started, codes, strict=True):
            if code == BUG_EXIT_CODE:
                raise RuntimeError(f"the process on {name} failed:\n{_text(errors)}")
            if code not in (None, 0, 1):
                raise PicoPoseError(f"the process on {name} failed: {_last_line(errors, code)}")
        return None in codes

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *reason: object) -> None:
        processes = [(process, errors) for _name, process, errors in self._started]
        for process, _ in processes:
            process.terminate()
        for process, errors in processes:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            errors.close()


def _die_with_parent() -> Callable[[], None] | None:
    """Return a function for the child to call first: it asks the kernel to kill the child when the parent dies."""
    if sys.platform != "linux":
        return None
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # the parent has died already

    return ask


def _text(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode(errors="replace").strip()


def _last_line(errors: IO[bytes], code: int | None) -> str:
    lines = _text(errors).splitlines()
    text = lines[-1].removeprefix("picopose: ") if lines else ""
    if code is not None and code < 0:
        text = f"killed by signal {-code} {text}"
    return text.strip() or f"exit code {code}"
