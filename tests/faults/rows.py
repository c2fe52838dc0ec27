"""The fault matrix: every row, in the order in which docs/faults.md tells it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One fault and the figure to hold."""

    key: str
    fault: str
    gets: str
    """What the caller gets."""
    figure: str
    """What is measured."""
    bound: float | None
    """At most; None: a matter of yes or no."""
    unit: str = "ms"


CANCEL = "nothing: it has gone"
SEEN = "from the caller's cancel until upstream sees it"

SECTIONS: dict[str, tuple[Row, ...]] = {
    "The caller goes": (
        Row("cancel before the first chunk", "cancel before the first chunk", CANCEL, SEEN, 50),
        Row("cancel while reading", "cancel while reading (20 ms chunks)", CANCEL, SEEN, 50),
        Row("cancel at 2 ms chunks", "cancel at 2 ms chunks", CANCEL, SEEN, 50),
        Row(
            "cancel during a retry wait",
            "cancel during a retry wait",
            CANCEL,
            "until the server has left the call; upstream is never asked again",
            50,
        ),
        Row("cancel without reading", "cancel by a caller that isn't reading", CANCEL, SEEN, 150),
        *(
            Row(f"{key} (garbage collection off)", f"the same, {key}, with garbage collection off", CANCEL, SEEN, bound)
            for key, bound in (
                ("cancel before the first chunk", 50),
                ("cancel while reading", 50),
                ("cancel at 2 ms chunks", 50),
                ("cancel during a retry wait", 50),
                ("cancel without reading", 150),
            )
        ),
        Row("caller killed", "caller killed (SIGKILL)", CANCEL, "from the kill until upstream sees it", 100),
        Row(
            "caller stopped",
            "caller stopped (SIGSTOP); keepalive 1 s, ping timeout 1 s",
            CANCEL,
            "from the stop until upstream sees it",
            3000,
        ),
        Row(
            "upstream of ten streams",
            "upstream allows 10 streams, 100 cancels went before",
            "the next answer",
            "its first chunk",
            200,
        ),
        *(
            Row(
                f"{count} cancels",
                f"{count} cancels at any moment: open upstream calls 0, tasks and sockets at baseline",
                CANCEL,
                "growth of the server's memory",
                10,
                "MB",
            )
            for count in ("1,000", "10,000")
        ),
    ),
}

ROWS = {row.key: row for rows in SECTIONS.values() for row in rows}
