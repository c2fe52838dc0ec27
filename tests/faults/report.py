"""`python -m tests.faults.report`: writes docs/faults.md anew from what build/faults.json holds."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.faults.recorder import FILE
from tests.faults.rows import ROWS, SECTIONS, Row

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"

HEAD = """\
# Faults, and what becomes of them

Each row is a test in [`tests/faults`](../tests/faults), that of bad bytes in [`tests/hostile`](../tests/hostile): the
real server process on uvloop, the real ChatVertexAI, and a [local Vertex](emulator.md) that plays the fault, over real
sockets. Three are less than that: for the bugs the server runs within the test, which plants them; for the order over
workers it is admission alone, in two processes without gRPC or a model; for the credentials the server, which wants
them for Google only, is led to the local Vertex under Google's address. What a word means here is told in
[the life of a request](life-of-a-request.md).

The server runs as one worker, which can be watched from outside, except where the table says two.

Measured on {machine}, on {dates}; figures are the median and the largest of so many tries.
`make soak` measures them anew and fails if one is beyond its bound. `make test` and `make thorough` assert the same
with looser bounds (ten times as long in the median), because a machine that is busy with something else makes figures
say little.
"""

TAIL = """\
## Without a figure

What a server meets on its machine, most of it with one worker and with two, in
[`tests/faults/test_surroundings.py`](../tests/faults/test_surroundings.py); a test passes or fails.

| surroundings | what becomes of it |
|---|---|
| nothing can be written anywhere; `/dev/shm`, `/tmp` and `/var/tmp` are not there | it serves, and ends with exit code 0 |
| IPv6 only | the same |
| the wall clock jumps a day ahead or back under running calls | deadlines and limits are kept as they were given; the log has the new date |
| too few processes, threads or files (`ulimit -u`, `-n`) | exit code 2 at the start, naming the limit |
| a worker dies and no process is to be had for another | the other one serves, its streams run on; the dead one is replaced once that is possible |
| more callers than files | running streams are whole, those beyond wait or are refused; once they have gone it serves as before |

Of upstream, in [`tests/service/providers`](../tests/service/providers) and [`tests/providers`](../tests/providers): a name
that is slow to be found ends the call that waits for it in time, and holds up nobody else; of a name with a dead address
and a live one, the live one is reached; an upstream that allows no stream on a connection
(`SETTINGS_MAX_CONCURRENT_STREAMS` 0) is waited for as long as the call's limits say.
"""  # noqa: E501 - a row is one line

MACHINE = "2 cores, Debian, Python 3.11"


class NotStrict(ValueError):
    """Figures of an ordinary run are none to publish; the message names their rows."""


def page(figures: dict[str, Any]) -> str:
    """The page. Raises NotStrict."""
    figures = {key: one for key, one in figures.items() if key in ROWS}
    if loose := sorted(key for key, one in figures.items() if not one["strict"]):
        raise NotStrict(f"not measured strictly: {', '.join(loose)}; run: make soak")
    dates = sorted({one["date"] for one in figures.values()})
    head = HEAD.format(machine=MACHINE, dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))))
    parts = [head]
    for title, rows in SECTIONS.items():
        lines = ["| fault | the caller gets | figure | bound | measured |", "|---|---|---|---|---|"]
        parts.append("\n".join((f"## {title}\n", *lines, *(line(row, figures.get(row.key)) for row in rows))) + "\n")
    return "\n".join((*parts, TAIL))


def line(row: Row, measured: dict[str, Any] | None) -> str:
    bound = "" if row.bound is None else quantity(row.bound, row.unit)
    return f"| {row.fault} | {row.gets} | {row.figure} | {bound} | {told(row, measured)} |"


def told(row: Row, measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "not yet"
    count, most = measured["count"], quantity(measured["max"], row.unit)
    return most if count == 1 else f"{quantity(measured['p50'], row.unit)}, at most {most} ({count} tries)"


def quantity(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:.3g}"
    return f"{number} {unit}".strip()


if __name__ == "__main__":
    if not FILE.exists():
        sys.exit("nothing is measured yet; run: make soak")
    try:
        PAGE.write_text(page(json.loads(FILE.read_text())))
    except NotStrict as error:
        sys.exit(str(error))
