"""Images, masks and depth maps from disk; truncated files are errors."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import MM_PER_M, Array, Rle
from picopose_cli.bop.rle import decode_rle

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", 0xDA, b"\xff\xd9"
_PNG_START, _PNG_LAST = b"\x89PNG\r\n\x1a\n", b"IEND"
_U16_PER_U8 = 257
"""65535 / 255: the full 16-bit range maps to the full 8-bit range."""
_REPLACE = "replace the file with a complete copy"


def read_image_rgb(path: Path) -> Array:
    """Return an image (H,W,3) u8 RGB in the pixel order of the file; EXIF rotation tags are ignored.

    Grey images get three equal channels, alpha is dropped, 16 bits are scaled by 1/257 to 8.
    Raises PicoPoseError when the file is missing, truncated, or not an image of 8 or 16 bits.
    """
    pixels = _decode(path)
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + _U16_PER_U8 // 2) // _U16_PER_U8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise PicoPoseError(f"has {pixels.dtype} values, must have 8 or 16 bits", where=path, fix="convert the image")
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 1:
        return np.ascontiguousarray(np.broadcast_to(pixels.reshape(*pixels.shape[:2], 1), (*pixels.shape[:2], 3)))
    if channels not in (3, 4):
        raise PicoPoseError(f"has {channels} channels, must have 1, 3 or 4", where=path, fix="convert the image")
    return np.ascontiguousarray(pixels[..., 2::-1])  # BGR(A) -> RGB


def read_mask(source: Rle | Path, size_hw: tuple[int, int]) -> Array:
    """Return a mask (H,W) bool from run lengths or an image file (any value above 0 is inside).

    Raises PicoPoseError when it cannot be read, or its size is not the image's `size_hw`.
    """
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


def read_depth_m(path: Path, depth_scale: float) -> Array:
    """Return a depth map (H,W) f32 in metres, 0 where nothing was measured; file value * `depth_scale` = mm.

    Raises PicoPoseError when the file cannot be read or has several channels.
    """
    pixels = _decode(path)
    if pixels.ndim != 2:
        raise PicoPoseError("has several channels, a depth map has one channel", where=path, fix="check the file")
    depth_m = pixels.astype(np.float32) * np.float32(depth_scale / MM_PER_M)
    depth_m[~np.isfinite(depth_m) | (depth_m < 0)] = 0
    return depth_m


def _decode(path: Path) -> Array:
    """Return the pixels of a file: (H,W) or (H,W,C) in OpenCV's channel order, any bit depth."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise PicoPoseError("the image does not exist", where=path, fix="check the download of the images") from error
    except OSError as error:
        raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=path, fix="check the file") from error
    if not data:
        raise PicoPoseError("the image is empty (0 bytes)", where=path, fix=_REPLACE)
    if _is_truncated(data):
        raise PicoPoseError("the image is truncated or damaged", where=path, fix=_REPLACE)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise PicoPoseError(f"cannot be decoded ({error.err})", where=path, fix=_REPLACE) from error
    if pixels is None:
        raise PicoPoseError("is not an image, or is truncated", where=path, fix=_REPLACE)
    return np.asarray(pixels)


def _is_truncated(data: bytes) -> bool:
    """Return whether a JPEG or PNG lacks its end; decoders may fill the missing part with grey without an error."""
    if data.startswith(_JPEG_START):
        scan = _jpeg_scan(data)
        return scan is None or data.find(_JPEG_END, scan) < 0
    if data.startswith(_PNG_START):
        return not _is_whole_png(data)
    return False


def _jpeg_scan(data: bytes) -> int | None:
    """Return where the compressed data begins: segments before it, such as a thumbnail, may have end marks too."""
    position = len(_JPEG_START)
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == _JPEG_SCAN:
            return position
        if marker == 0xFF:  # fill byte
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


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
