"""Run-length masks: hand-worked codes, a slow plain decoder as oracle, and malformed input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Rle
from picopose_cli.bop.rle import decode_rle, encode_rle


def plain_numbers(text: bytes) -> list[int]:
    """The compressed code read character by character."""
    numbers: list[int] = []
    value, shift = 0, 0
    for code in text:
        code -= 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value, shift = 0, 0
    return numbers


def plain_decode(counts: list[int], height: int, width: int) -> np.ndarray:
    """Pixel after pixel, column by column."""
    mask = np.zeros((height, width), bool)
    position = 0
    for index, count in enumerate(counts):
        for _ in range(count):
            mask[position % height, position // height] = index % 2 == 1
            position += 1
    assert position == height * width
    return mask


def plain_encode(mask: np.ndarray) -> list[int]:
    counts, inside = [0], False
    for value in mask.T.ravel():
        if value != inside:
            counts.append(0)
            inside = not inside
        counts[-1] += 1
    return counts


@pytest.mark.parametrize(
    ("mask", "numbers", "text"),
    [
        ([[0]], (1,), b"1"),
        ([[1]], (0, 1), b"01"),
        # one column after the other: 0 1 1 | 1 0 0
        ([[0, 1], [1, 0], [1, 0]], (1, 3, 2), b"132"),
        # from the fourth number on differences to the last but one: 1 2 1, then 1-2 = -1, 3-1 = 2; -1 is "O"
        ([[0, 1, 1, 0], [1, 0, 0, 0]], (1, 2, 1, 1, 3), b"121O2"),
        # 16 needs its sign bit clear: low group 16 with "more" = 48 -> "`", then 0
        ([[0] * 16 + [1]], (16, 1), b"`01"),
        # 40 = 8 + 32: low group 8 with "more" = 40 -> "X", then 1
        ([[0] * 40], (40,), b"X1"),
    ],
)
def test_hand_worked_codes(mask, numbers, text):
    mask = np.array(mask, bool)
    assert encode_rle(mask, compressed=False).counts == numbers
    assert encode_rle(mask).counts == text
    for counts in (numbers, text):
        np.testing.assert_array_equal(decode_rle(Rle(mask.shape, counts)), mask)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_agrees_with_the_plain_version(height, width, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    numbers = encode_rle(mask, compressed=False).counts
    assert list(numbers) == plain_encode(mask)
    text = encode_rle(mask).counts
    assert isinstance(text, bytes)
    assert plain_numbers(text) == list(numbers)
    for counts in (numbers, text):
        decoded = decode_rle(Rle((height, width), counts))
        assert decoded.dtype == bool
        assert decoded.flags.c_contiguous
        np.testing.assert_array_equal(decoded, plain_decode(list(numbers), height, width))


def test_long_runs_and_large_differences():
    mask = np.zeros((1000, 900), bool)
    mask[:, 100:700] = True
    mask[500, 800] = True
    for compressed in (True, False):
        np.testing.assert_array_equal(decode_rle(encode_rle(mask, compressed=compressed)), mask)


def test_empty_runs_inside_are_legal():
    np.testing.assert_array_equal(decode_rle(Rle((1, 4), (1, 0, 2, 1))), [[False, False, False, True]])


@pytest.mark.parametrize(
    ("size", "counts", "words"),
    [
        ((2, 2), (1, 2), "the runs cover 3 px, the mask has 2x2"),
        ((2, 2), (5,), "the runs cover 5 px"),
        ((2, 2), (), "the runs cover 0 px"),
        ((2, 2), b"", "the runs cover 0 px"),
        ((2, 2), (-1, 5), "negative or too long"),
        ((2, 2), (2**62, 4), "negative or too long"),
        ((2, 2), (10**30,), "negative or too long"),
        ((2, 2), (1.0, 3.0), "whole numbers"),
        ((2, 2), (True, 3), "whole numbers"),
        ((2, 2), ("1", "3"), "whole numbers"),
        ((0, 4), (0,), "size"),
        ((-2, -2), (4,), "size"),
        ((10**9, 10**9), (4,), "size"),
        ((10**5, 10**5), (10**10,), "too large"),
        ((2, 2), b"\x00\xff", "character outside"),
        ((2, 2), b"4 ", "character outside"),
        ((2, 2), b"4\x7f", "character outside"),
        ((2, 2), b"T", "end within a number"),
        ((2, 2), b"oooooooooooooooo0", "negative or too long"),
        ((2, 2), b"OO", "negative or too long"),
    ],
)
def test_malformed_counts_are_refused(size, counts, words):
    with pytest.raises(PicoPoseError, match=f"cannot be decoded: .*{words}"):
        decode_rle(Rle(size, counts))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(1, 30), st.integers(1, 30))
def test_any_bytes_decode_or_are_refused(text, height, width):
    try:
        mask = decode_rle(Rle((height, width), text))
    except PicoPoseError:
        return
    assert mask.shape == (height, width)
    np.testing.assert_array_equal(mask, plain_decode(plain_numbers(text), height, width))


def test_encoding_needs_a_mask():
    with pytest.raises(ValueError, match="two dimensions"):
        encode_rle(np.zeros((2, 2, 3), bool))
    with pytest.raises(ValueError, match="at least one pixel"):
        encode_rle(np.zeros((0, 3), bool))
