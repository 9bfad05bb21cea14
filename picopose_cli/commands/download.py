"""`picopose download`: data sets, detections and the released network, where the other commands look for them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes, require_writable
from picopose_cli.base.guide_options import WEIGHTS_NAME, DownloadOptions
from picopose_cli.base.option_texts import DATA_DIR_VARIABLE
from picopose_cli.base.options import resolve_data_dir
from picopose_cli.downloads import released_weights
from picopose_cli.downloads.bop_repository import (
    EXTRA,
    Archive,
    choose_archives,
    choose_detections,
    known_names,
    list_repository,
)
from picopose_cli.downloads.fetch import fetch, present_bytes
from picopose_cli.downloads.unpack import unpack, unpacked_size
from picopose_cli.runs.progress import byte_bar

STORE = ".picopose-downloads"
"""Folder inside the data folder of what is being downloaded, and of notes on what is done."""
_UNPACKED_RATIO = 1.2
"""Of the unpacked size of images and meshes to that of their archive, at most, as an estimate before the download."""


@dataclass
class DownloadReport:
    """What was fetched, what was there already, and why others could not be."""

    fetched: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 when something could not be fetched."""
        return 1 if self.failed else 0


@dataclass(frozen=True)
class _Job:
    """An archive of a data set, below the data folder."""

    dataset: str
    archive: Archive
    data_dir: Path

    @property
    def done_note(self) -> Path:
        """The file that says that the archive was unpacked."""
        return self.data_dir / STORE / f"{self.archive.name}.done"

    def is_done(self) -> bool:
        """Return whether this archive was unpacked: with the same hashes, and what it held is still there."""
        if self.archive.part == "detections":
            path = self.paths()[0]
            return path.is_file() and path.stat().st_size == self.archive.size
        try:
            noted = json.loads(self.done_note.read_text())
        except (OSError, ValueError):
            return False
        if not isinstance(noted, dict) or noted.get("archive") != self._note():
            return False
        return all((self.data_dir / str(name)).is_file() for name in noted.get("unpacked", ["?"]))

    def paths(self) -> list[Path]:
        """Return where the files are put: detections where they stay, archives in the store."""
        if self.archive.part == "detections":
            return [self.data_dir / self.archive.files[0].path]
        return [self.data_dir / STORE / file.name for file in self.archive.files]

    def missing_bytes(self) -> int:
        """Return the bytes that are still to be fetched."""
        return self.archive.size - sum(map(present_bytes, self.paths()))

    def finish(self, on_progress: Callable[[int], None]) -> None:
        """Unpack the archive, note that and remove it."""
        if self.archive.part == "detections":
            return
        ends = unpack(self.paths(), self.data_dir, self.dataset, on_progress)
        unpacked = [str(path.relative_to(self.data_dir)) for path in ends]
        atomic_write_bytes(self.done_note, json.dumps({"archive": self._note(), "unpacked": unpacked}).encode())
        for path in self.paths():
            path.unlink()

    def _note(self) -> list[list[str | int | None]]:
        return [[file.name, file.size, file.sha256] for file in self.archive.files]


def run(options: DownloadOptions) -> DownloadReport:
    """Fetch and unpack what the options name; see `picopose download --help`.

    Raises PicoPoseError when nothing can be fetched: no data folder, no such data set, no space, no network.
    """
    console, report = Console(markup=False, highlight=False, soft_wrap=True), DownloadReport()
    names = [name for name in options.names if name != WEIGHTS_NAME]
    jobs = _plan(names, options, report) if names else []
    for job in jobs:
        parts = f" in {len(job.archive.files)} parts" if len(job.archive.files) > 1 else ""
        state = "is there already" if job.is_done() else f"{job.missing_bytes() / 1e6:.1f} MB to fetch"
        console.print(f"{job.archive.name}: {job.archive.size / 1e6:.1f} MB{parts}, {state}")
    if WEIGHTS_NAME in options.names:
        _weights(options, report, console)
    todo = [job for job in jobs if not job.is_done()]
    report.kept += [job.archive.name for job in jobs if job not in todo]
    if jobs:
        _require_space(todo, jobs[0].data_dir, console)
    if todo and not options.dry_run:
        require_writable(todo[0].done_note)
        with byte_bar(console) as progress:
            for job in todo:
                _try(job, report, progress)
    for line in report.failed:
        console.print(f"failed: {line}")
    if report.failed and not report.fetched and not report.kept:
        raise PicoPoseError(report.failed[0])
    if not options.dry_run:
        console.print(f"{len(report.fetched)} fetched, {len(report.kept)} kept, {len(report.failed)} failed")
        for name in names if not report.failed else ():
            console.print(f"next: picopose doctor {name}{_data_dir_text(options)}")
    return report


def _data_dir_text(options: DownloadOptions) -> str:
    return "" if options.data_dir is None else f" --data-dir {options.data_dir}"


def _plan(names: Sequence[str], options: DownloadOptions, report: DownloadReport) -> list[_Job]:
    """Return the archives of the data sets; a data set that cannot be listed is a failure."""
    data_dir, jobs = resolve_data_dir(options.data_dir), []
    wanted = [part for part in options.what if part != "detections"]
    for name in names:
        try:
            archives = choose_archives(name, wanted, list_repository(name)) if wanted else []
            if "detections" in options.what:
                archives.append(choose_detections(name, list_repository(EXTRA, "default_detections")))
        except PicoPoseError as error:
            known = "" if name in known_names() else f"; known are {', '.join(known_names())}"
            report.failed.append(f"{name}: {error}{known}")
            continue
        jobs += [_Job(name, archive, data_dir) for archive in archives]
    return jobs


def _require_space(todo: Sequence[_Job], data_dir: Path, console: Console) -> None:
    """Compare the free space with the need: all archives unpacked, and the largest one beside what it holds."""
    present = next(path for path in (data_dir, *data_dir.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(present).free
    unpacked = sum(_UNPACKED_RATIO * job.archive.size for job in todo)
    needed = int(unpacked + max((job.archive.size for job in todo), default=0))
    to_fetch = sum(job.missing_bytes() for job in todo)
    to_do, space = f"{to_fetch / 1e9:.2f} GB to fetch", f"about {needed / 1e9:.2f} GB of disk needed"
    console.print(f"{to_do}, {space}, {free / 1e9:.2f} GB free in {data_dir}")
    if needed > free:
        fix = f"free {(needed - free) / 1e9:.2f} GB, or choose another --data-dir or fewer parts with --what"
        raise PicoPoseError("there is not enough space", where=data_dir, fix=fix)


def _try(job: _Job, report: DownloadReport, progress: Progress) -> None:
    """Fetch and unpack one archive; a failure is reported and the next one is tried."""
    bar = progress.add_task(job.archive.name, total=job.archive.size)
    try:
        done = 0
        for file, path in zip(job.archive.files, job.paths(), strict=True):
            fetch(file, path, lambda here, before=done: progress.update(bar, completed=before + here))  # type: ignore[misc]
            done += file.size
        if job.archive.part != "detections":
            total = unpacked_size(job.paths())
            progress.update(bar, description=f"unpacking {job.archive.name}", total=total, completed=0)
        job.finish(lambda bytes_done: progress.update(bar, completed=bytes_done))
        report.fetched.append(job.archive.name)
    except PicoPoseError as error:
        report.failed.append(f"{job.archive.name}: {error}")
    finally:
        progress.remove_task(bar)


def _weights(options: DownloadOptions, report: DownloadReport, console: Console) -> None:
    folder = options.data_dir or Path(os.environ.get(DATA_DIR_VARIABLE) or ".")
    path = folder / released_weights.FILE_NAME
    console.print(f"weights: {released_weights.PAGE}\n  from {released_weights.SOURCE}")
    console.print(f"  SHA-256 {released_weights.SHA256}")
    if released_weights.is_complete(path):
        report.kept.append(path.name)
    elif not options.dry_run:
        try:
            released_weights.fetch_weights(path)
            report.fetched.append(path.name)
        except PicoPoseError as error:
            report.failed.append(f"weights: {error}")
            return
    if path.is_file():
        console.print(f"  checked: {path}; pass --weights {path}")
