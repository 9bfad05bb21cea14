"""What the header of an image file says: size, bits and EXIF rotation, without decoding; PNG, JPEG, TIFF, BMP and WebP.

Headers are of unknown origin: one that cannot be understood is None.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

ImageBytes = bytes | mmap.mmap

ORIENTATION_TEXTS = {
    2: "mirrored",
    3: "rotated by 180 degrees",
    4: "mirrored and rotated by 180 degrees",
    5: "mirrored and rotated by 90 degrees",
    6: "rotated by 90 degrees",
    7: "mirrored and rotated by 270 degrees",
    8: "rotated by 270 degrees",
}
"""How a picture viewer shows an image by the value of its EXIF orientation; 1 is the stored order."""
_STORED_ORDER = 1
_PNG_START, _JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_EXIF_START = b"Exif\0\0"
_JPEG_APP1, _JPEG_SCAN, _JPEG_FILL = 0xE1, 0xDA, 0xFF
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_ORIENTATION = 256, 257, 258, 274
_TIFF_STARTS = {b"II*\0": "<", b"MM\0*": ">"}
_BIG_TIFF_STARTS = {b"II+\0": "<", b"MM\0+": ">"}
_TIFF_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_BMP_CORE_HEADER = 12


@dataclass(frozen=True)
class ImageHeader:
    """The size (height, width) px of an image as it is stored, its EXIF orientation (1: none) and bits per value."""

    size_hw: tuple[int, int]
    orientation: int = _STORED_ORDER
    bits: int = 8


def read_image_header(path: Path) -> ImageHeader | None:
    """Return the header of an image file; None when the file cannot be read or its header is not understood."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse_image_header(data)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return None


def parse_image_header(data: ImageBytes) -> ImageHeader | None:
    """Return the header of an image file's content; None when it is not understood."""
    try:
        header = _parse(data)
    except (struct.error, IndexError):  # the content ends within the header
        return None
    return header if header is not None and min(header.size_hw) > 0 else None


def jpeg_segments(data: ImageBytes) -> list[tuple[int, int]]:
    """Return (marker, position of its 0xFF) of the segments of a JPEG up to the first scan, which is the last of them.

    Segments before the scan, such as a thumbnail, may contain whole JPEGs themselves.
    """
    found, position = [], len(_JPEG_START)
    while position + 4 <= len(data) and data[position] == _JPEG_FILL:
        marker = data[position + 1]
        if marker == _JPEG_FILL:
            position += 1
            continue
        found.append((marker, position))
        if marker == _JPEG_SCAN:
            break
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return found


def tiff_in_stored_order(data: bytes) -> bytes:
    """Return a TIFF without its orientation, which OpenCV would apply; other content is returned as it is."""
    try:
        entry = _tiff_entries(data).get(_TIFF_ORIENTATION)
    except (struct.error, IndexError):
        return data
    if entry is None or entry.value == _STORED_ORDER:
        return data
    return data[: entry.position] + struct.pack(entry.code, _STORED_ORDER) + data[entry.position + entry.size :]


def _parse(data: ImageBytes) -> ImageHeader | None:
    start = data[:4]
    if data[: len(_PNG_START)] == _PNG_START:
        return _png(data)
    if start[:2] == _JPEG_START:
        return _jpeg(data)
    if start in _TIFF_STARTS or start in _BIG_TIFF_STARTS:
        return _tiff(data)
    if start[:2] == b"BM":
        return _bmp(data)
    if start == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    return None


def _png(data: ImageBytes) -> ImageHeader:
    width, height = struct.unpack(">II", data[16:24])
    position, orientation = len(_PNG_START), _STORED_ORDER
    while data[position + 4 : position + 8] not in (b"IDAT", b"IEND", b""):
        length = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : position + 8 + length])
        position += 12 + length
    return ImageHeader((height, width), orientation, data[24])


def _jpeg(data: ImageBytes) -> ImageHeader | None:
    size_hw, orientation = None, _STORED_ORDER
    for marker, position in jpeg_segments(data):
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _JPEG_FRAMES:
            size_hw = struct.unpack(">HH", data[position + 5 : position + 9])
        elif marker == _JPEG_APP1 and data[position + 4 : position + 10] == _EXIF_START:
            orientation = _exif_orientation(data[position + 10 : end])
    return None if size_hw is None else ImageHeader((size_hw[0], size_hw[1]), orientation)


def _bmp(data: ImageBytes) -> ImageHeader:
    if int.from_bytes(data[14:18], "little") == _BMP_CORE_HEADER:
        width, height = struct.unpack("<HH", data[18:22])
    else:
        width, height = struct.unpack("<ii", data[18:26])
    return ImageHeader((abs(height), abs(width)))  # a negative height: rows from top to bottom


def _webp(data: ImageBytes) -> ImageHeader | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return ImageHeader((height & 0x3FFF, width & 0x3FFF))
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", data[21:25])
        return ImageHeader(((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1))
    if kind != b"VP8X":
        return None
    width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    position, orientation = 12, _STORED_ORDER
    while name := data[position : position + 4]:
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if name == b"EXIF":
            exif = data[position + 8 : position + 8 + length]
            orientation = _exif_orientation(exif.removeprefix(_EXIF_START))
        position += 8 + length + length % 2
    return ImageHeader((height, width), orientation)


@dataclass(frozen=True)
class _TiffEntry:
    """The first value of a tag, stored at `position` in `size` bytes of the struct format `code`."""

    value: int
    position: int
    size: int
    code: str


def _tiff(data: ImageBytes) -> ImageHeader | None:
    entries = _tiff_entries(data)
    if _TIFF_WIDTH not in entries or _TIFF_HEIGHT not in entries:
        return None
    size_hw = entries[_TIFF_HEIGHT].value, entries[_TIFF_WIDTH].value
    bits = entries[_TIFF_BITS].value if _TIFF_BITS in entries else 1
    return ImageHeader(size_hw, _orientation(entries), bits)


def _tiff_entries(data: ImageBytes) -> dict[int, _TiffEntry]:
    """Return the tags of the first image of a TIFF whose values are whole numbers."""
    start = data[:4]
    if start in _TIFF_STARTS:
        order, count_code, offset_code, offset_at = _TIFF_STARTS[start], "H", "I", 4
    elif start in _BIG_TIFF_STARTS:
        order, count_code, offset_code, offset_at = _BIG_TIFF_STARTS[start], "Q", "Q", 8
    else:
        return {}
    entry_code, room = f"{order}HH{offset_code}", struct.calcsize(offset_code)  # tag, kind, count; then value or offset
    position = _unpack(order + offset_code, data, offset_at)
    entry_count = _unpack(order + count_code, data, position)
    position += struct.calcsize(count_code)
    entries = {}
    for _ in range(min(entry_count, 1 << 16)):
        value_at = position + struct.calcsize(entry_code)
        tag, kind, count = struct.unpack(entry_code, data[position:value_at])
        position = value_at + room
        if kind in _TIFF_FORMATS:
            code = order + _TIFF_FORMATS[kind]
            size = struct.calcsize(code)
            at = value_at if size * count <= room else _unpack(order + offset_code, data, value_at)
            entries[tag] = _TiffEntry(_unpack(code, data, at), at, size, code)
    return entries


def _unpack(code: str, data: ImageBytes, position: int) -> int:
    (value,) = struct.unpack(code, data[position : position + struct.calcsize(code)])
    return int(value)


def _exif_orientation(data: bytes) -> int:
    try:
        return _orientation(_tiff_entries(data))
    except (struct.error, IndexError):  # broken EXIF data does not make the image unusable
        return _STORED_ORDER


def _orientation(entries: dict[int, _TiffEntry]) -> int:
    entry = entries.get(_TIFF_ORIENTATION)
    return entry.value if entry is not None and entry.value in ORIENTATION_TEXTS else _STORED_ORDER
