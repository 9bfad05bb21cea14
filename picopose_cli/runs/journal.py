"""The journal of a run: the results of each finished image, stored on disk so that a killed run can be continued.

The journal is a file of JSON lines beside the result file. The first line is the identity of the run; every further
line is one image, in the order of the tasks, so that the journal always holds the first images of its run. Each line
carries the CRC-32 of its remainder. An image is finished when its line is on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.locks import NO_LOCK_ERRORS
from picopose_cli.base.tasks import ImageResult, ImageTask
from picopose_cli.runs.identity import differences, is_same_run
from picopose_cli.runs.journal_records import image_record, image_result, is_valid_record

ImageKey = tuple[int, int]
"""(scene_id, im_id)."""

_LOG = logging.getLogger(__name__)
_START = b'{"crc32": "'
_PREFIX_BYTES = len(_START) + 8 + len(b'", ')
_DIFFERENCES_SHOWN = 4


def journal_path(output: Path) -> Path:
    """Return where the journal of a result file lies."""
    return output.with_name(output.name + ".journal")


class Journal:
    """An open, locked journal that holds `done` images.

    Opening truncates it after its last intact line. Raises PicoPoseError when another process has it open, when it
    holds images of another run (unless `restart`), or when it cannot be written.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], tasks: Sequence[ImageTask], *, restart: bool = False
    ) -> None:
        self.path = path
        self._tasks = tasks
        self._identity = json.loads(json.dumps(identity))
        self.done = 0
        self._file = _open_locked(path)
        try:
            if restart:
                os.ftruncate(self._file, 0)
            self.done = self._recover()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, *results: ImageResult) -> None:
        """Write the next images to disk; raises PicoPoseError when the disk is full, which loses no earlier image.

        The disk is waited for once: hundreds of images per second from a cluster need that.
        """
        tasks = self._tasks[self.done : self.done + len(results)]
        for task, result in zip(tasks, results, strict=True):
            if (task.scene_id, task.im_id) != (result.task.scene_id, result.task.im_id):
                raise ValueError(f"{result.task.name} is not the next of the journal")
        self._write(b"".join(_line(image_record(result)) for result in results))
        self.done += len(results)

    def results(self) -> Iterator[ImageResult]:
        """Yield the images of the journal, in order, exactly as they were appended."""
        with self.path.open("rb") as stream:
            stream.readline()
            for task in self._tasks[: self.done]:
                record = _payload(stream.readline())
                if record is None or not is_valid_record(record):
                    raise PicoPoseError("was changed by another program", where=self.path, fix="run the command again")
                yield image_result(task, record)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the journal, and delete it if it holds no image."""
        if JournalFollower(self.path).done() == 0:  # `done` may lag by one after an interrupt while appending
            self.delete()
        os.close(self._file)

    def delete(self) -> None:
        """Remove the journal; its images are in the result file by now."""
        self.path.unlink(missing_ok=True)

    def _recover(self) -> int:
        """Keep the intact lines, write the identity where there is none, and return the number of images kept."""
        end, done, lost = 0, 0, 0
        with self.path.open("rb") as stream:
            identity = _payload(stream.readline())
            if identity is not None and identity != self._identity:
                if _payload(stream.readline()) is not None:
                    raise _of_another_run(self.path, differences(self._identity, identity))
                identity = None  # the other run has no image in it: nothing is lost
            if identity is not None:
                end = stream.tell()
                for line in stream:
                    if not self._is_image(_payload(line), done):
                        lost = 1 + sum(1 for _ in stream)
                        break
                    end, done = end + len(line), done + 1
        if lost > 1:
            _LOG.warning("%s: damaged after %d images; the rest is computed again", self.path, done)
        os.ftruncate(self._file, end)
        if identity is None:
            self._write(_line(self._identity))
        return done

    def _is_image(self, record: Mapping[str, Any] | None, index: int) -> bool:
        if record is None or index >= len(self._tasks) or not is_valid_record(record):
            return False
        task = self._tasks[index]
        return (record.get("scene_id"), record.get("im_id")) == (task.scene_id, task.im_id)

    def _write(self, line: bytes) -> None:
        """Append a whole line; a line that a full disk cut short is removed again."""
        end = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, end)
            raise PicoPoseError(
                f"cannot be written ({error.strerror}); the {self.done} images in it are kept",
                where=self.path,
                fix="free disk space there and run the same command again",
            ) from error


def read_identity(path: Path) -> dict[str, Any] | None:
    """Return the identity in a journal that a run may be writing, None where there is none yet."""
    try:
        with path.open("rb") as stream:
            return _payload(stream.readline())
    except OSError:
        return None


def batch_size_in(path: Path) -> int | None:
    """Return the batch size of the run of a journal, None where it has no valid one."""
    size = (read_identity(path) or {}).get("batch_size")
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def finished_images(
    path: Path, identity: Mapping[str, Any], tasks: Mapping[ImageKey, ImageTask]
) -> dict[ImageKey, ImageResult]:
    """Return the results in the journal of another shard of the run with this identity; empty for any other run."""
    found: dict[ImageKey, ImageResult] = {}
    with suppress(OSError), path.open("rb") as stream:
        other = _payload(stream.readline())
        if other is None or not is_same_run(identity, other):
            return {}
        for record in map(_payload, stream):
            if record is None or not is_valid_record(record):
                break
            key = (record["scene_id"], record["im_id"])
            if key in tasks:
                found[key] = image_result(tasks[key], record)
    return found


def is_being_written(path: Path) -> bool:
    """Return whether a run has the journal open."""
    with suppress(OSError), path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class JournalFollower:
    """Counts the images of a journal that another process writes, reading only new lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = 0
        self._lines = 0

    def done(self) -> int:
        """Return the number of images in the journal so far."""
        with suppress(OSError), self._path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size < self._end:
                self._end = self._lines = 0  # started again
            stream.seek(self._end)
            for line in stream:
                if line.endswith(b"\n"):
                    self._end += len(line)
                    self._lines += 1
        return max(self._lines - 1, 0)


def stopped_message(images: int, journals: Sequence[Path]) -> str:
    """Return the message of a stopped run of `images` images: what is kept, and how to continue."""
    done = sum(JournalFollower(journal).done() for journal in journals)
    kept = f"{done} of {images} images are kept in {', '.join(map(str, journals))}" if done else "no image was finished"
    return f"stopped; {kept}; run the same command again to continue"


def _of_another_run(path: Path, found: Sequence[str]) -> PicoPoseError:
    more = f" and {len(found) - _DIFFERENCES_SHOWN} more" if len(found) > _DIFFERENCES_SHOWN else ""
    return PicoPoseError(
        f"is the journal of another run ({'; '.join(found[:_DIFFERENCES_SHOWN])}{more})",
        where=path,
        fix="pass --restart to discard it, or another --output",
    )


def _open_locked(path: Path) -> int:
    """Open a journal, created where it is missing, and lock it; the lock ends with the process."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise PicoPoseError(
                f"cannot be written ({error.strerror})", where=path, fix="choose another --output"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):
                return file
        except OSError as error:
            if error.errno in NO_LOCK_ERRORS:
                _LOG.warning("%s: the file system has no locks; make sure that no other run writes this output", path)
                return file
            os.close(file)
            raise PicoPoseError(
                "another process is writing this output", where=path, fix="wait for it, or choose another --output"
            ) from error
        os.close(file)  # its run finished and removed it between opening and locking


def _is_at(path: Path, file: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file))
    return False


def _line(payload: Mapping[str, Any]) -> bytes:
    rest = json.dumps(payload, separators=(",", ":"))[1:].encode() + b"\n"
    return _START + b'%08x", ' % zlib.crc32(rest) + rest


def _payload(line: bytes) -> dict[str, Any] | None:
    """Return the content of a line, None when it is incomplete or damaged."""
    rest = line[_PREFIX_BYTES:]
    if not line.endswith(b"\n") or line[:_PREFIX_BYTES] != _START + b'%08x", ' % zlib.crc32(rest):
        return None
    try:
        payload: dict[str, Any] = json.loads(b"{" + rest)
    except (ValueError, RecursionError):
        return None
    return payload
