"""COCO run-length masks, column by column, starting with the background; both kinds of `counts`.

Compressed counts are the variable-length code of COCO's mask API: each number in groups of five bits, lowest first, as
characters from "0" on; bit 0x20 means that more groups follow, 0x10 of the last group is the sign; from the fourth
number on the difference to the second to last number is stored. Masks are of unknown origin: everything is checked
before it is used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Array, Rle

MAX_PIXELS = 10**8
_FIRST_CHAR, _LAST_CHAR = 48, 48 + 63
_MORE, _SIGN, _VALUE = 0x20, 0x10, 0x1F
_MAX_GROUPS = 7
"""35 bits: enough for any difference of runs within MAX_PIXELS."""
_FIX = "make the detections again"


def decode_rle(rle: Rle) -> Array:
    """Return the mask (H,W) bool; raises PicoPoseError when the counts do not describe a mask of that size."""
    height, width = _checked_size(rle)
    runs = _runs_of_text(rle.counts) if isinstance(rle.counts, bytes) else _runs_of_numbers(rle.counts)
    if len(runs) and (runs.min() < 0 or runs.max() > MAX_PIXELS):
        raise _broken("a run is negative or too long")
    total = int(runs.sum())
    if total != height * width:
        raise _broken(f"the runs cover {total} px, the mask has {height}x{width} = {height * width}")
    inside = np.arange(len(runs)) % 2 == 1
    columns = np.repeat(inside, runs).reshape(width, height)
    return np.ascontiguousarray(columns.T)  # (H, W)


def encode_rle(mask: Array, *, compressed: bool = True) -> Rle:
    """Return a mask (H,W) bool as run lengths: compressed text, or plain numbers as in CNOS files."""
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask has two dimensions and at least one pixel, not shape {mask.shape}")
    columns = np.asarray(mask, bool).T.ravel()
    edges = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    # the first run is background, of length 0 where the first pixel is inside
    bounds = [0, 0] if columns[0] else [0]
    runs = np.diff(np.concatenate([np.array(bounds), edges, np.array([columns.size])]))
    size = (int(mask.shape[0]), int(mask.shape[1]))
    return Rle(size, _text_of_runs(runs) if compressed else tuple(runs.tolist()))


def _checked_size(rle: Rle) -> tuple[int, int]:
    if len(rle.size) != 2 or not all(isinstance(side, int) and 0 < side <= MAX_PIXELS for side in rle.size):
        raise _broken(f"size {rle.size} is not (height, width)")
    height, width = rle.size
    if height * width > MAX_PIXELS:
        raise _broken(f"a mask of {height}x{width} px is too large")
    return height, width


def _runs_of_numbers(counts: tuple[int, ...]) -> NDArray[np.int64]:
    if len(counts) > 2 * MAX_PIXELS or not set(map(type, counts)) <= {int}:
        raise _broken("counts has values that are not whole numbers")
    try:
        return np.array(counts, np.int64)
    except OverflowError as error:
        raise _broken("a run is negative or too long") from error


def _runs_of_text(counts: bytes) -> NDArray[np.int64]:
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - _FIRST_CHAR
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > _LAST_CHAR - _FIRST_CHAR:
        raise _broken("compressed counts have a character outside of the code")
    last = (codes & _MORE) == 0
    if not last[-1]:
        raise _broken("compressed counts end within a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_GROUPS:
        raise _broken("a run is negative or too long")
    group = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & _VALUE) << (5 * group), starts)
    negative = (codes[ends] & _SIGN) != 0
    values -= np.where(negative, np.int64(1) << (5 * lengths), 0)
    # from the fourth on they are differences to the second to last: two interleaved sums
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _text_of_runs(runs: NDArray[np.int64]) -> bytes:
    values = runs.copy()
    values[3:] -= runs[1:-2]
    shifts = 5 * np.arange(_MAX_GROUPS)
    # a group is the last when the bits above it, its sign bit included, only repeat the sign
    rest = values[:, None] >> (shifts + 4)
    is_last = (rest == 0) | (rest == -1)
    groups = np.argmax(is_last, axis=1)
    used = np.arange(_MAX_GROUPS) <= groups[:, None]
    codes = (values[:, None] >> shifts) & _VALUE
    codes += np.where(np.arange(_MAX_GROUPS) < groups[:, None], _MORE, 0) + _FIRST_CHAR
    return bytes(codes[used].astype(np.uint8))


def _broken(what: str) -> PicoPoseError:
    return PicoPoseError(f"the run-length mask cannot be decoded: {what}", fix=_FIX)
