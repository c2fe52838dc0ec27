"""Keeps what was measured: build/faults.json, which `python -m tests.faults.report` makes docs/faults.md of.

On a busy machine a figure says little, so an ordinary run only keeps it. With TOKENWIRE_STRICT=1 (`make soak`) a figure
beyond its bound fails the test that measured it.
"""

import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.rows import ROWS

FILE = Path(__file__).parents[2] / "build" / "faults.json"

STRICT = os.environ.get("TOKENWIRE_STRICT", "") == "1"

_measured: dict[str, list[float]] = defaultdict(list)


def record(key: str, *new: float) -> None:
    """Keep what was measured for a row of the matrix; more tests than one may add to it."""
    row = ROWS[key]
    values = _measured[key]
    values.extend(new)
    figures: dict[str, Any] = {
        "count": len(values),
        "p50": statistics.median(values),
        "max": max(values),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "strict": STRICT,
    }
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({**known, key: figures}, indent=1, sort_keys=True) + "\n")
    if STRICT and row.bound is not None:
        assert max(new) <= row.bound, f"{key}: {figures}; at most {row.bound:g} {row.unit} is wanted"


def milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1000 * value for value in seconds]


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]
