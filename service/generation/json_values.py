"""What JSON and our contract have room for."""

import math
from typing import Any


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
