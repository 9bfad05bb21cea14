"""Numbers from JSON files of unknown origin: finite and of the right kind, or None."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def finite_numbers(value: object, count: int) -> NDArray[np.float64] | None:
    """Return `count` finite numbers as (count,) f64 from a flat or nested JSON list, or None when it is anything else.

    Strings, booleans, null, NaN and infinities are not numbers.
    """
    numbers: list[float] = []
    pending = [value]
    while pending and len(numbers) <= count:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(reversed(item))
            continue
        number = finite_number(item)
        if number is None:
            return None
        numbers.append(number)
    return np.array(numbers, np.float64) if len(numbers) == count and not pending else None


def finite_number(value: object) -> float | None:
    """Return a JSON number as a float, or None when it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def whole_number(value: object, minimum: int = 0) -> int | None:
    """Return a JSON number without fraction (3 or 3.0) as an int of at least `minimum`, or None when it is no such."""
    number = finite_number(value)
    if number is None or not number.is_integer() or number < minimum or number > 2**53:
        return None
    return int(number)
