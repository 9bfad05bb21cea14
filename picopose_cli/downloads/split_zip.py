"""Zip archives in parts (.z01, .z02, ..., .zip), read as one without joining them on disk.

In such an archive the directory says in which part, and where in it, a file begins; Python's zipfile reads archives of
one part only. So the parts are shown to it as one file, behind which the directory is written anew with offsets in the
whole. Source: PKWARE's APPNOTE, sections 4.3.12 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import bisect
import io
import itertools
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from picopose_cli.base.errors import PicoPoseError

_END, _END_64, _LOCATOR_64, _ENTRY = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
_U16, _U32 = 0xFFFF, 0xFFFFFFFF
_LONGEST_END = 22 + _U16
_LARGEST_DIRECTORY = 1 << 30
_ZIP64 = 1
_DISK, _OFFSET = 34, 42
"""Places in an entry of the directory: of the part's number and of the offset in it."""


class JoinedParts(io.RawIOBase):
    """The parts of an archive, and bytes behind them, as one file that can be read from any place."""

    def __init__(self, paths: Sequence[Path], cut: int | None = None, tail: bytes = b"") -> None:
        super().__init__()
        self._streams: list[Any] = [path.open("rb") for path in paths]
        sizes = [path.stat().st_size for path in paths]
        if cut is not None:
            sizes[-1] = cut - sum(sizes[:-1])
        if tail:
            self._streams.append(io.BytesIO(tail))
            sizes.append(len(tail))
        self.starts = [0, *itertools.accumulate(sizes)]
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place in the whole."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the whole."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.starts[-1]}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read from one part; a caller that wants more asks again."""
        if self._at >= self.starts[-1]:
            return 0
        index = bisect.bisect_right(self.starts, self._at) - 1
        self._streams[index].seek(self._at - self.starts[index])
        data = self._streams[index].read(min(len(buffer), self.starts[index + 1] - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Close all parts."""
        for stream in self._streams:
            stream.close()
        super().close()


def open_parts(paths: Sequence[Path]) -> io.BufferedReader:
    """Return an archive in parts, in their order with .zip last, as a file that `zipfile` reads.

    Raises PicoPoseError when the parts do not belong together or the directory is damaged.
    """
    try:
        joined = JoinedParts(paths)
        starts = joined.starts
        with io.BufferedReader(joined) as stream:
            at, directory, count, parts = _read_directory(stream, starts)
        if parts != len(paths):
            raise PicoPoseError(f"{len(paths)} of {parts} parts are here", where=paths[-1], fix="download it again")
        entries = _moved_entries(directory, count, starts)
    except (struct.error, IndexError, ValueError, OSError) as error:
        raise PicoPoseError(
            f"is not a whole zip archive ({error})", where=paths[-1], fix="download it again"
        ) from error
    tail = entries + _ends(at, len(entries), count)
    return io.BufferedReader(JoinedParts(paths, cut=at, tail=tail), 1 << 20)


def _read_directory(stream: IO[bytes], starts: Sequence[int]) -> tuple[int, bytes, int, int]:
    """Return the place of the directory in the whole, its bytes, its number of entries and the number of parts."""
    stream.seek(max(starts[-1] - _LONGEST_END, 0))
    end = stream.read()
    place = end.rfind(_END)
    if place < 0:
        raise ValueError("it has no end record")
    disk, first, _, count, size, offset = struct.unpack_from("<HHHHII", end, place + 4)
    locator = place - 20
    if locator >= 0 and end[locator : locator + 4] == _LOCATOR_64:
        first_64, offset_64, parts = struct.unpack_from("<IQI", end, locator + 4)
        stream.seek(starts[first_64] + offset_64)
        record = stream.read(56)
        if record[:4] != _END_64:
            raise ValueError("its 64-bit end record is missing")
        disk, first, _, count, size, offset = struct.unpack_from("<IIQQQQ", record, 16)
        disk = max(disk, parts - 1)
    if size > _LARGEST_DIRECTORY:
        raise ValueError("its directory is too large")
    at = starts[first] + offset
    stream.seek(at)
    directory = stream.read(size)
    if len(directory) != size:
        raise ValueError("its directory is cut")
    return at, directory, count, disk + 1


def _moved_entries(directory: bytes, count: int, starts: Sequence[int]) -> bytes:
    """Return the directory with the offset of each entry in the whole, in 64 bits."""
    moved, at = [], 0
    for _ in range(count):
        if directory[at : at + 4] != _ENTRY:
            raise ValueError("its directory is damaged")
        head = bytearray(directory[at : at + 46])
        name_len, extra_len, comment_len = struct.unpack_from("<HHH", head, 28)
        name_end = at + 46 + name_len
        extra = directory[name_end : name_end + extra_len]
        sizes, disk, offset, others = _split_extra(head, extra)
        new_extra = struct.pack("<HH", _ZIP64, 8 * len(sizes) + 8) + b"".join(struct.pack("<Q", one) for one in sizes)
        new_extra += struct.pack("<Q", starts[disk] + offset) + others
        struct.pack_into("<H", head, 30, len(new_extra))
        struct.pack_into("<H", head, _DISK, 0)
        struct.pack_into("<I", head, _OFFSET, _U32)
        comment = directory[name_end + extra_len : name_end + extra_len + comment_len]
        moved.append(bytes(head) + directory[at + 46 : name_end] + new_extra + comment)
        at = name_end + extra_len + comment_len
    return b"".join(moved)


def _split_extra(head: bytearray, extra: bytes) -> tuple[list[int], int, int, bytes]:
    """Return the 64-bit sizes that an entry has, its part, its offset there, and its other extra fields."""
    compressed, size = struct.unpack_from("<II", head, 20)
    (disk,), (offset,) = struct.unpack_from("<H", head, _DISK), struct.unpack_from("<I", head, _OFFSET)
    wide, others, at = b"", b"", 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        field = extra[at : at + 4 + length]
        wide, others = (field[4:], others) if kind == _ZIP64 else (wide, others + field)
        at += 4 + length
    place, sizes = 0, []
    for narrow in (size, compressed):
        if narrow == _U32:
            sizes.append(struct.unpack_from("<Q", wide, place)[0])
            place += 8
    if offset == _U32:
        (offset,) = struct.unpack_from("<Q", wide, place)
        place += 8
    if disk == _U16:
        (disk,) = struct.unpack_from("<I", wide, place)
    return sizes, disk, offset, others


def _ends(at: int, size: int, count: int) -> bytes:
    """Return the end records of a directory of `size` bytes at `at`."""
    record = _END_64 + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, at)
    locator = _LOCATOR_64 + struct.pack("<IQI", 0, at + size, 1)
    return record + locator + _END + struct.pack("<HHHHIIH", 0, 0, _U16, _U16, _U32, _U32, 0)
