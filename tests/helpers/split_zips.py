"""Zip archives in parts, written as APPNOTE describes them."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from pathlib import Path

CONTENTS = {f"test/{index:06d}/rgb/{index}.png": random.Random(index).randbytes(3000 * index) for index in range(12)}


def whole_archive(contents: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return stream.getvalue()


def write_parts(folder: Path, stem: str, size: int) -> list[Path]:
    """Split an archive as APPNOTE describes: a mark before the first part, and part and offset of each entry."""
    data = bytearray(b"PK\7\10" + whole_archive(CONTENTS))
    end = data.rfind(b"PK\5\6")
    count, _, at = struct.unpack_from("<HII", data, end + 10)
    at += 4
    entry = at
    for _ in range(count):
        lengths = struct.unpack_from("<HHH", data, entry + 28)
        (offset,) = struct.unpack_from("<I", data, entry + 42)
        struct.pack_into("<H", data, entry + 34, (offset + 4) // size)
        struct.pack_into("<I", data, entry + 42, (offset + 4) % size)
        entry += 46 + sum(lengths)
    last = (len(data) - 1) // size
    struct.pack_into("<HH", data, end + 4, last, at // size)
    struct.pack_into("<I", data, end + 16, at % size)
    paths = []
    for index in range(last + 1):
        paths.append(folder / (f"{stem}.zip" if index == last else f"{stem}.z{index + 1:02d}"))
        paths[-1].write_bytes(data[index * size : (index + 1) * size])
    return paths
