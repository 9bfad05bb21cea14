"""Zip archives unpacked safely: nothing outside of the folder, no links, no more than they promise."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import unwritable_error
from picopose_cli.downloads.split_zip import open_parts

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError, ValueError)
_BLOCK_BYTES = 1 << 20
_LARGEST_RATIO = 200
"""Of unpacked to packed size; images and meshes stay far below."""
_AGAIN = "delete it and run the command again"


def unpack(
    parts: Sequence[Path], folder: Path, name: str, on_progress: Callable[[int], None] = lambda _: None
) -> list[Path]:
    """Unpack an archive of one or several parts into `folder`, or into `folder`/`name` where it has no such root.

    A file that is already there with its size is kept, so that a stopped run continues. `on_progress(n)` is called with
    the bytes that are unpacked. Returns the first and the last file, none of an empty archive. Raises PicoPoseError for
    a damaged or unsafe archive, and when the disk is too small.
    """
    archive = parts[-1]
    try:
        with _opened(parts) as stream, zipfile.ZipFile(stream) as opened:
            infos = [info for info in opened.infolist() if not info.is_dir()]
            targets = [_target(info, archive) for info in infos]
            inside = all(target.parts[0] == name and len(target.parts) > 1 for target in targets)
            root = folder if inside else folder / name
            _require_space(infos, root, parts)
            done = 0
            for info, target in zip(infos, targets, strict=True):
                _extract(opened, info, root / target)
                done += info.file_size
                on_progress(done)
            return [root / targets[index] for index in (0, -1)] if targets else []
    except _DAMAGED as error:
        raise PicoPoseError(f"is damaged ({error})", where=archive, fix=_AGAIN) from error


def _opened(parts: Sequence[Path]) -> IO[bytes]:
    return open_parts(parts) if len(parts) > 1 else parts[0].open("rb")


def unpacked_size(parts: Sequence[Path]) -> int:
    """Return the bytes that an archive takes when it is unpacked; raises PicoPoseError when it is damaged."""
    try:
        with _opened(parts) as stream, zipfile.ZipFile(stream) as opened:
            return sum(info.file_size for info in opened.infolist())
    except _DAMAGED as error:
        raise PicoPoseError(f"is damaged ({error})", where=parts[-1], fix=_AGAIN) from error


def _target(info: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """Return the path of an entry below the folder; raises PicoPoseError for one that could be elsewhere."""
    path = PurePosixPath(info.filename)
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    unsafe = path.is_absolute() or ".." in path.parts or not path.parts or "\\" in info.filename or ":" in info.filename
    if unsafe or kind not in (0, stat.S_IFREG):
        what = "a link or device" if kind not in (0, stat.S_IFREG) else "a path outside of its folder"
        raise PicoPoseError(f"has {what} ({info.filename[:80]!r}), so nothing is unpacked", where=archive)
    return path


def _require_space(infos: Sequence[zipfile.ZipInfo], root: Path, parts: Sequence[Path]) -> None:
    packed, total = sum(path.stat().st_size for path in parts), sum(info.file_size for info in infos)
    if total > _LARGEST_RATIO * packed:
        raise PicoPoseError(f"would unpack to {total / 1e9:.0f} GB, which cannot be right", where=parts[-1])
    present = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    needed = sum(info.file_size for info in infos if not _is_there(root / info.filename, info))
    free = shutil.disk_usage(present).free
    if needed > free:
        fix = f"free {(needed - free) / 1e9:.2f} GB there, or choose another --data-dir; the same command continues"
        raise PicoPoseError(
            f"needs {needed / 1e9:.2f} GB to unpack, {free / 1e9:.2f} GB are free", where=present, fix=fix
        )


def _is_there(path: Path, info: zipfile.ZipInfo) -> bool:
    return path.is_file() and path.stat().st_size == info.file_size


def _extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Write one entry, which appears when it is complete and its checksum is right."""
    if _is_there(path, info):
        return
    temporary = path.with_name(f".{path.name}.unpacking")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as source, temporary.open("wb") as target:
            left = info.file_size
            while block := source.read(_BLOCK_BYTES):
                left -= len(block)
                if left < 0:
                    raise zipfile.BadZipFile(f"{info.filename} is longer than it says")
                target.write(block)
        temporary.replace(path)
    except OSError as error:
        raise unwritable_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
