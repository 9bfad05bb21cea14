"""Locks of writers, and what killed writers leave behind."""

from __future__ import annotations

import fcntl
import os

import pytest

from picopose_cli.base import locks
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.locks import remove_stale_lock, writer_lock


@pytest.fixture
def left(tmp_path):
    """A file, and the lock and half a file of a writer that was killed."""
    paths = [tmp_path / name for name in ("bank.h5", "bank.h5.lock", ".bank.h5.abc123.tmp.h5")]
    for path in paths:
        path.write_text("half")
    return paths


def test_a_writer_removes_what_a_killed_one_has_left(left):
    with writer_lock(left[0]):
        assert left[1].exists()
        assert not left[2].exists()
    assert [path.exists() for path in left] == [True, False, False]


def test_a_finished_file_is_freed_of_what_a_killed_writer_has_left(left):
    remove_stale_lock(left[0])
    assert [path.exists() for path in left] == [True, False, False]
    remove_stale_lock(left[0])


def test_a_writer_at_work_is_left_alone(left):
    with left[1].open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        remove_stale_lock(left[0])
        assert all(path.exists() for path in left)
    with writer_lock(left[0]):
        left[2].touch()
        remove_stale_lock(left[0])
        assert all(path.exists() for path in left)


def test_without_locks_nothing_is_removed(left, monkeypatch):
    def flock(*_):
        raise OSError(37, os.strerror(37))  # ENOLCK

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    remove_stale_lock(left[0])
    with writer_lock(left[0]):
        pass
    assert all(path.exists() for path in left)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(PicoPoseError, match=r"cannot be written.*choose"),
        writer_lock(tmp_path / "file/a"),
    ):
        pass
