"""JPEGs with their damage: the decoder fills lost parts with grey and only writes a line to stderr."""

from __future__ import annotations

import os
import re
import tempfile
import threading

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.bop.image_headers import jpeg_segments

_SCAN, _END = 0xDA, b"\xff\xd9"
_STDERR = 2
_COMPLAINT = re.compile(rb"(?:Corrupt|Premature end of) JPEG[^\n]*\n?")
_PADDING = re.compile(rb"(\d+) extraneous bytes before marker 0xd9")
_ONE_DECODER = threading.Lock()
"""Stderr belongs to the process: one JPEG is decoded at a time."""


def is_truncated_jpeg(data: bytes) -> bool:
    """Return whether a JPEG has no compressed data or no end mark after it."""
    segments = jpeg_segments(data)
    return not segments or segments[-1][0] != _SCAN or data.find(_END, segments[-1][1]) < 0


def decode_jpeg(data: bytes) -> tuple[Array | None, str | None]:
    """Return a JPEG's pixels in the file's order, None when it cannot be decoded, and the damage that was found.

    Damage that leaves the code valid, such as a few changed bits, cannot be found. Raises cv2.error.
    """
    encoded = np.frombuffer(data, np.uint8)
    with _ONE_DECODER, tempfile.TemporaryFile() as written:
        try:
            stderr = os.dup(_STDERR)
        except OSError:  # a process without stderr
            return cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED), None
        try:
            os.dup2(written.fileno(), _STDERR)
            pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)
        written.seek(0)
        text = written.read()
    _write_through(_COMPLAINT.sub(b"", text))
    complaint = _COMPLAINT.search(text)
    if complaint is None or _is_padding(complaint[0], data):
        return pixels, None
    return pixels, complaint[0].decode("ascii", "replace").partition(":")[2].strip() or "the data end early"


def _write_through(text: bytes) -> None:
    """Write what other threads wrote to stderr meanwhile."""
    if text:
        os.write(_STDERR, text)


def _is_padding(complaint: bytes, data: bytes) -> bool:
    """Return whether the decoder complains only of equal bytes before the end mark, as some encoders write them."""
    found = _PADDING.search(complaint)
    if found is None:
        return False
    end = data.rfind(_END)
    return len(set(data[max(end - int(found[1]), 0) : end])) == 1
