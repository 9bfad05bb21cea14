"""Downloads that continue where they were cut and are checked when they are complete."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256, unwritable_error
from picopose_cli.downloads.http import ConnectionLostError, open_url, unreachable_error

T = TypeVar("T")
TRIES = 6
"""Failures in a row, without any progress, after which a download is given up."""
FIRST_PAUSE_S = 1.0
"""Pause after the first failure; it doubles with each further one."""
_BLOCK_BYTES = 1 << 20
_PARTIAL = 206
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: `path` in it, size in bytes, and SHA-256 in hexadecimal where the hub knows it."""

    url: str
    path: str
    size: int
    sha256: str | None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


def part_path(path: Path) -> Path:
    """Return where the part of a file that is already here is kept."""
    return path.with_name(f"{path.name}.part")


def present_bytes(path: Path) -> int:
    """Return how many bytes of a file are already here."""
    return next((one.stat().st_size for one in (path, part_path(path)) if one.is_file()), 0)


def fetch(file: RemoteFile, path: Path, on_progress: Callable[[int], None] = lambda _: None) -> None:
    """Download a file to `path`, which appears when it is complete and its size and hash are right.

    What an earlier try has left is continued. `on_progress(n)` is called with the bytes that are here now. Raises
    PicoPoseError when the file does not exist, may not be read, is damaged, or the network or the disk fails.
    """
    if path.is_file() and path.stat().st_size == file.size:
        on_progress(file.size)
        return
    part = part_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        retried(lambda: _receive(file, part, on_progress), file.url, lambda: _size(part))
        _check(file, part)
        part.replace(path)
    except OSError as error:
        raise unwritable_error(part, error) from error


def retried(work: Callable[[], T], url: str, progress: Callable[[], int] = lambda: 0) -> T:
    """Return what `work` returns, trying again after a lost connection; tries that got further are not counted."""
    failures, reached, pause_s = 0, progress(), FIRST_PAUSE_S
    while True:
        try:
            return work()
        except ConnectionLostError as error:
            if progress() > reached:
                failures, reached, pause_s = 0, progress(), FIRST_PAUSE_S
            failures += 1
            if failures >= TRIES:
                raise unreachable_error(url, str(error)) from error
            _LOG.info("%s: %s; trying again in %.0f s", url, error, pause_s)
            time.sleep(pause_s)
            pause_s *= 2


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _receive(file: RemoteFile, part: Path, on_progress: Callable[[int], None]) -> None:
    """Add what the server sends to the part that is here; a server that knows no ranges sends all again."""
    begun = _size(part)
    if begun > file.size:
        part.unlink()
        begun = 0
    if begun == file.size:
        return
    headers = {"Range": f"bytes={begun}-"} if begun else {}
    with open_url(file.url, headers) as answer:
        continues = begun > 0 and answer.status == _PARTIAL and _starts_at(answer, begun)
        done = begun if continues else 0
        with _opened(part, "ab" if continues else "wb") as stream:
            while block := answer.read(min(_BLOCK_BYTES, file.size - done + 1)):
                done += len(block)
                if done > file.size:
                    raise PicoPoseError(f"the server sends more than {file.size} bytes", where=file.url)
                _write(stream, block)
                on_progress(done)
        if done < file.size:
            raise ConnectionLostError("the connection was cut")


def _opened(part: Path, mode: str) -> Any:
    try:
        return part.open(mode)
    except OSError as error:
        raise unwritable_error(part, error) from error


def _write(stream: Any, block: bytes) -> None:
    """Write a block; a full disk is no lost connection."""
    try:
        stream.write(block)
        stream.flush()
    except OSError as error:
        raise unwritable_error(Path(stream.name), error) from error


def _starts_at(answer: Any, begun: int) -> bool:
    return str(answer.headers.get("Content-Range", "")).startswith(f"bytes {begun}-")


def _check(file: RemoteFile, part: Path) -> None:
    """Compare the hash of a complete download; a damaged one is removed."""
    if file.sha256 is not None and file_sha256(part) != file.sha256:
        part.unlink()
        raise PicoPoseError("the download is damaged (its SHA-256 is another)", where=file.url, fix="run it again")
