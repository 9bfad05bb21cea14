"""Images, masks and depth maps from disk; truncated, damaged and oversized files are errors."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.types import MM_PER_M, Array, MaskSource, Polygons, Rle
from picopose_cli.bop.image_headers import parse_image_header, tiff_in_stored_order
from picopose_cli.bop.jpeg import decode_jpeg, is_truncated_jpeg
from picopose_cli.bop.polygons import polygon_mask
from picopose_cli.bop.rle import MAX_PIXELS, decode_rle

_JPEG_START = b"\xff\xd8"
_PNG_START, _PNG_LAST = b"\x89PNG\r\n\x1a\n", b"IEND"
_SENSOR_BITS = (8, 10, 12, 14, 16)
"""Bits per value of the sensors whose images are stored in 16 bits."""
_NAMES_SHOWN = 3
_REPLACE = "replace the file with a complete copy"


def read_image_rgb(path: Path) -> Array:
    """Return an image (H,W,3) u8 RGB in the pixel order of the file; EXIF rotation tags are ignored.

    Grey images get three equal channels, alpha is dropped, 16 bits are scaled to 8 by what the image uses of them (see
    `used_bits`). Raises PicoPoseError when the file is missing, truncated, damaged, too large, or not an image of 8 or
    16 bits.
    """
    pixels = _colour_channels(path)
    if pixels.dtype == np.uint16:
        pixels = _to_8_bits(pixels)
    if pixels.shape[2] == 1:
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    return np.ascontiguousarray(pixels[..., ::-1])  # BGR -> RGB


def read_used_bits(path: Path) -> int | None:
    """Return the bits that a 16-bit image uses (see `used_bits`), None for an image of 8 bits.

    Raises PicoPoseError as `read_image_rgb` does.
    """
    pixels = _colour_channels(path)
    return used_bits(pixels) if pixels.dtype == np.uint16 else None


def used_bits(pixels: Array) -> int:
    """Return the smallest of 8, 10, 12, 14 and 16 bits that holds the largest value of an image."""
    largest = int(pixels.max())
    return next(bits for bits in _SENSOR_BITS if largest < 1 << bits)


def _to_8_bits(pixels: Array) -> Array:
    full = (1 << used_bits(pixels)) - 1
    values = np.arange(full + 1, dtype=np.int64)
    return np.asarray(((values * 255 + full // 2) // full).astype(np.uint8)[pixels])


def _colour_channels(path: Path) -> Array:
    """Return the pixels (H,W,1) or (H,W,3) in the order of OpenCV, u8 or u16, without an alpha channel."""
    pixels = _decode(path)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise PicoPoseError(f"has {pixels.dtype} values, must have 8 or 16 bits", where=path, fix="convert the image")
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels not in (1, 3, 4):
        raise PicoPoseError(f"has {channels} channels, must have 1, 3 or 4", where=path, fix="convert the image")
    return pixels.reshape(*pixels.shape[:2], channels)[..., :3]


def read_mask(source: MaskSource, size_hw: tuple[int, int]) -> Array:
    """Return a mask (H,W) bool from run lengths, polygons or an image file (any value above 0 is inside).

    Raises PicoPoseError when it cannot be read, or its size is not the image's `size_hw`.
    """
    if isinstance(source, Polygons):
        return polygon_mask(source, size_hw)
    mask = decode_rle(source) if isinstance(source, Rle) else read_mask_image(source)
    if mask.shape != size_hw:
        raise PicoPoseError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]} px, its image {size_hw[1]}x{size_hw[0]}",
            where=source if isinstance(source, Path) else None,
            fix="use masks made on images of this size",
        )
    return mask


def read_mask_image(path: Path) -> Array:
    """Return a mask image as (H,W) bool, any value above 0 inside; raises PicoPoseError when it cannot be read."""
    pixels = _decode(path)
    colour = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]  # without an alpha channel
    return np.asarray((colour > 0).any(axis=2))


def read_alpha(path: Path) -> Array:
    """Return the mask (H,W) bool of an image's alpha channel, inside where it is at least half opaque.

    Raises PicoPoseError when the image cannot be read or has no such channel.
    """
    pixels = _decode(path)
    if pixels.ndim != 3 or pixels.shape[2] != 4:
        raise PicoPoseError("has no alpha channel", where=path, fix="give masks, or images with alpha (PNG)")
    return np.asarray(pixels[..., 3] > np.iinfo(pixels.dtype).max // 2)


def read_depth_m(path: Path, depth_scale: float) -> Array:
    """Return a depth map (H,W) f32 in metres, 0 where nothing was measured; file value * `depth_scale` = mm.

    Raises PicoPoseError when the file cannot be read or has several channels.
    """
    pixels = _decode(path)
    if pixels.ndim != 2:
        raise PicoPoseError("has several channels, a depth map has one channel", where=path, fix="check the file")
    depth_m = pixels.astype(np.float32) * np.float32(depth_scale / MM_PER_M)
    usable = (depth_m >= 0) & (depth_m < np.inf)
    if not usable.all():
        depth_m[~usable] = 0
    return depth_m


def _decode(path: Path) -> Array:
    """Return the pixels of a file: (H,W) or (H,W,C) in OpenCV's channel order, any bit depth."""
    data = _read_bytes(path)
    if _is_truncated(data):
        raise PicoPoseError("the image is truncated or damaged", where=path, fix=_REPLACE)
    header = parse_image_header(data)
    if header is None:
        raise PicoPoseError("is not an image (PNG, JPEG, TIFF, BMP or WebP), or is truncated", where=path, fix=_REPLACE)
    height, width = header.size_hw
    if height * width > MAX_PIXELS:
        largest = f"{MAX_PIXELS / 1e6:g} million"
        raise PicoPoseError(f"has {width}x{height} px, more than {largest}", where=path, fix="use smaller images")
    try:
        pixels, damage = _decoded(data)
    except cv2.error as error:
        raise PicoPoseError(f"cannot be decoded ({error.err})", where=path, fix=_REPLACE) from error
    if damage is not None:
        raise PicoPoseError(f"the image is damaged ({damage})", where=path, fix=_REPLACE)
    if pixels is None:
        raise PicoPoseError("is not an image, or is truncated", where=path, fix=_REPLACE)
    return pixels


def _decoded(data: bytes) -> tuple[Array | None, str | None]:
    """Return the pixels, None when they cannot be decoded, and the damage that the decoder found."""
    if data.startswith(_JPEG_START):
        return decode_jpeg(data)
    encoded = np.frombuffer(tiff_in_stored_order(data), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED), None


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        what = f"the image does not exist ({_content_text(path.parent)})"
        raise PicoPoseError(what, where=path, fix="check the download of the images") from error
    except OSError as error:
        raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=path, fix="check the file") from error
    if not data:
        raise PicoPoseError("the image is empty (0 bytes)", where=path, fix=_REPLACE)
    return data


def _content_text(folder: Path) -> str:
    """Say what a folder contains instead of a missing file."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return "neither does its folder"
    if not names:
        return "its folder is empty"
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f"its folder contains {', '.join(names[:_NAMES_SHOWN])}{more}"


def _is_truncated(data: bytes) -> bool:
    """Return whether a JPEG or PNG lacks its end; decoders may fill the missing part with grey without an error."""
    if data.startswith(_JPEG_START):
        return is_truncated_jpeg(data)
    return data.startswith(_PNG_START) and not _is_whole_png(data)


def _is_whole_png(data: bytes) -> bool:
    """Return whether all chunks are complete, with the right checksums."""
    position = len(_PNG_START)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            return False
        body = data[position + 4 : end - 4]
        if zlib.crc32(body) != int.from_bytes(data[end - 4 : end], "big"):
            return False
        if body.startswith(_PNG_LAST):
            return True
        position = end
    return False


def write_png(path: Path, image_rgb: Array) -> None:
    """Write an image (h,w,3) u8 RGB whole or not at all; raises PicoPoseError when it cannot be written."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(image_rgb[..., ::-1]))
    if not done:
        raise RuntimeError("the picture could not be encoded")
    atomic_write_bytes(path, bytes(data))
