"""Keeps what was measured: build/faults.json, which `python -m tests.faults.report` makes docs/faults.md of.

On a busy machine a figure says little, so in an ordinary run only loose bounds hold: ten times as much in the median,
and two seconds more for each. With TOKENWIRE_STRICT=1 (`make soak`) a figure beyond its bound fails the test that
measured it, and only such figures get on the page. `python -m tests.faults.recorder` forgets the others.
"""

import fcntl
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.rows import ROWS, Row

FILE = Path(__file__).parents[2] / "build" / "faults.json"

STRICT = os.environ.get("TOKENWIRE_STRICT", "") == "1"

SPIKE_MS = 2000  # for which a busy machine may forget one of its processes

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
    FILE.parent.mkdir(exist_ok=True)
    with FILE.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # `make test` runs tests in several processes
        file.seek(0)
        known = json.loads(file.read() or "{}")
        file.truncate(0)
        file.write(json.dumps({**known, key: figures}, indent=1, sort_keys=True) + "\n")
    hold(row, new, strict=STRICT)


def forget_loose() -> None:
    """Forget what ordinary runs have measured: none of it may be published, and `make soak` begins here."""
    if FILE.exists():
        known = json.loads(FILE.read_text())
        strict = {key: figures for key, figures in known.items() if figures["strict"]}
        FILE.write_text(json.dumps(strict, indent=1, sort_keys=True) + "\n")


def hold(row: Row, new: Sequence[float], *, strict: bool) -> None:
    """Fail if a figure is beyond what its row allows."""
    if row.bound is None or row.loosely is None:
        return
    told = f"{row.key}: {statistics.median(new):g}, at most {max(new):g} ({len(new)} tries)"
    if strict:
        assert max(new) <= row.bound, f"{told}; at most {row.bound:g} {row.unit} is wanted"
    else:
        spike = SPIKE_MS if row.unit == "ms" else 0
        assert statistics.median(new) <= row.loosely, f"{told}; even here {row.loosely:g} {row.unit} is wanted"
        assert max(new) <= row.loosely + spike, f"{told}; even here {row.loosely + spike:g} {row.unit} is wanted"


def milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1000 * value for value in seconds]


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]


if __name__ == "__main__":
    forget_loose()
