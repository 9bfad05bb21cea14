"""Locks between processes that want to write the same file."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from picopose_cli.base.files import remove_leftovers, unwritable_error

_LOG = logging.getLogger(__name__)
NO_LOCK_ERRORS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""Error numbers of a file system without locks."""


@contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """Hold the lock `<name>.lock` of the writers of a file, and first remove what killed ones have left.

    Where the file system has no locks, nothing is locked or removed. Raises PicoPoseError when the folder cannot be
    written.
    """
    lock = _lock_path(path)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle, is_locked = _open_lock(lock)
    except OSError as error:
        raise unwritable_error(path, error) from error
    try:
        if is_locked:
            remove_leftovers(path)
        yield
    finally:
        if is_locked:
            with suppress(OSError):
                lock.unlink()
        os.close(handle)


def remove_stale_lock(path: Path) -> None:
    """Remove the lock and the temporary files that killed writers of `path` have left; nothing if one is at work."""
    lock = _lock_path(path)
    try:
        handle = os.open(lock, os.O_RDWR)
    except OSError:
        return  # there is none, or the folder is read-only
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, handle):
                remove_leftovers(path)
                lock.unlink()
    finally:
        os.close(handle)


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _open_lock(lock: Path) -> tuple[int, bool]:
    """Return the handle of a lock file and whether it is locked, after waiting for other processes."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(handle, lock):
                return handle, False
            if _is_at(lock, handle):
                return handle, True
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # another process finished with this file and has deleted it


def _is_at(lock: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int, lock: Path) -> bool:
    """Wait for the lock; return False where the file system has no locks."""
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("waiting for the process that holds %s", lock)
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCK_ERRORS:
            raise
        _LOG.info("the file system has no locks (%s): %s", error.strerror, lock)
        return False
    return True
