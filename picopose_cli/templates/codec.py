"""Images and point maps as small integers: neighbouring pixels are alike, so their differences compress well.

Everything is exact modulo 2^n: what is decoded equals what was encoded, lengths after rounding to a micrometre.
"""

from __future__ import annotations

import numpy as np

from picopose_cli.base.types import Array

MICROMETRES_PER_M = 1e6
LONGEST_M = 1000.0
"""Longer than any length here; ten times as much would overflow."""


def encode_rgb(images_rgb: Array) -> Array:
    """Return images (V,h,w,3) u8 as (V,3,h,w) u8: R - G, G, B - G, each differenced along rows and columns."""
    planes = np.ascontiguousarray(images_rgb.transpose(0, 3, 1, 2))
    planes[:, 0] -= planes[:, 1]
    planes[:, 2] -= planes[:, 1]
    return _difference(planes)


def decode_rgb(codes: Array) -> Array:
    """Return the images (V,h,w,3) u8 that `encode_rgb` was given."""
    planes = _accumulate(codes)
    planes[:, 0] += planes[:, 1]
    planes[:, 2] += planes[:, 1]
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def encode_lengths(maps_m: Array) -> Array:
    """Return maps (...,h,w) of metres as u32: whole micrometres, differenced, signs folded into the lowest bit.

    Raises ValueError for NaN and for lengths of more than a kilometre.
    """
    if not (np.abs(maps_m) <= LONGEST_M).all():
        raise ValueError("a length is NaN or more than a kilometre")
    steps = _difference(np.rint(np.asarray(maps_m, np.float64) * MICROMETRES_PER_M).astype(np.int32))
    return ((steps << 1) ^ (steps >> 31)).view(np.uint32)


def decode_lengths(codes: Array) -> Array:
    """Return the maps (...,h,w) f32 in metres of `encode_lengths`, to half a micrometre."""
    steps = (codes >> 1).view(np.int32) ^ -(codes & 1).view(np.int32)
    return (_accumulate(steps) / MICROMETRES_PER_M).astype(np.float32)


def _difference(maps: Array) -> Array:
    """Replace each value (...,h,w) by its difference to the one before, first along columns, then along rows."""
    maps = np.diff(maps, axis=-1, prepend=np.zeros_like(maps[..., :1]))
    return np.diff(maps, axis=-2, prepend=np.zeros_like(maps[..., :1, :]))


def _accumulate(steps: Array) -> Array:
    sums = np.add.accumulate(steps, axis=-2, dtype=steps.dtype)
    return np.asarray(np.add.accumulate(sums, axis=-1, dtype=steps.dtype))
