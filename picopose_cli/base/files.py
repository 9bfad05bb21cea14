"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError

MESH_SUFFIXES = (".ply", ".obj", ".glb")
"""Mesh files that can be read, preferred first."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed, on any failure removed.

    Raises PicoPoseError when the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise unwritable_error(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        _publish(temporary, path)
    except OSError as error:
        raise unwritable_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` have left; no other writer may be at work."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp{path.suffix}"):
        temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def require_writable(path: Path) -> None:
    """Find out before hours of work whether `path` can be written; raises PicoPoseError when it cannot."""
    if path.is_dir():
        raise PicoPoseError("is a folder", where=path, fix="name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # without a name where possible: a kill leaves nothing
            pass
    except OSError as error:
        raise unwritable_error(path, error) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; raises PicoPoseError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=path, fix="check the file") from error
    return digest.hexdigest()


def _publish(temporary: Path, path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)  # mkstemp makes private files; results are to be shared like any other file
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)


def unwritable_error(path: Path, error: OSError) -> PicoPoseError:
    """Return the error of a file that cannot be written."""
    reason = error.strerror or str(error)
    full, forbidden = (
        error.errno in (errno.ENOSPC, errno.EDQUOT),
        error.errno in (errno.EROFS, errno.EACCES, errno.EPERM),
    )
    fix = "free space there or choose another place" if full else "choose another place"
    fix = "choose a folder that you may write to" if forbidden else fix
    return PicoPoseError(f"cannot be written ({reason})", where=path, fix=fix)
