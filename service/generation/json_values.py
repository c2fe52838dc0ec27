"""What JSON and our contract have room for."""

import math
from typing import Any

# A protobuf parser takes messages that are nested 100 deep (C++, Java, Python). In a Struct an object costs three of
# them, a list two, and around it are up to six more: request, message, part, call, Struct, and the value itself.
_MOST_NESTED = 94


def finite(value: Any) -> bool:
    """Whether JSON has a word for it: NaN and the infinities have none."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return all(map(finite, value)) if isinstance(value, list) else True


def count(value: object) -> int | None:
    """The number, if it is a whole one that our contract has room for (uint32); else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32 else None


def unfit(value: Any, *, nested: int = 0) -> str:
    """What it holds that a Struct has no place for, in words; empty where it has a place for all of it, unchanged."""
    if isinstance(value, dict | list):
        if nested > _MOST_NESTED:
            return "values nested too deep"
        inner, cost = ([*value, *value.values()], 3) if isinstance(value, dict) else (value, 2)
        return next(filter(None, (unfit(one, nested=nested + cost) for one in inner)), "")
    if isinstance(value, str):
        return "" if _sound(value) else "half of a character"
    return "" if value is None or _exact(value) else "a number that is no double"


def _sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a surrogate without its other half
        return False
    return True


def _exact(number: Any) -> bool:
    try:
        return math.isfinite(number) and (isinstance(number, float) or int(float(number)) == number)
    except OverflowError:
        return False
