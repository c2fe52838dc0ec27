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
    loose: float | None = None
    """At most on a machine that is busy with something else; None: ten times the bound, or the bound of a count."""

    @property
    def loosely(self) -> float | None:
        """The bound that holds anywhere."""
        if self.loose is not None or self.bound is None:
            return self.loose
        return self.bound if not self.unit else 10 * self.bound


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
    "Time runs out": (
        Row(
            "caller deadline",
            "caller deadline 300 ms: upstream silent, silent after headers, silent in mid-stream, still streaming",
            "DEADLINE_EXCEEDED / CALLER_DEADLINE; upstream saw no later deadline",
            "from the call until the caller has it",
            350,
        ),
        Row(
            "caller deadline without a reason",
            "the same",
            "the same",
            "calls of 10 whose own clock came before the typed status",
            0,
            "",
            loose=9,
        ),
        Row(
            "delay beyond the deadline",
            "upstream asks for a longer delay than the deadline has room for",
            "upstream's own code at once, here RESOURCE_EXHAUSTED / UPSTREAM_QUOTA",
            "from the call until the caller has it",
            100,
        ),
        Row(
            "upstream silent",
            "upstream goes silent (open but mute, or packets dropped)",
            "DEADLINE_EXCEEDED / FIRST_CHUNK_TIMEOUT or IDLE_TIMEOUT",
            "beyond the limit the caller gave",
            1000,
        ),
    ),
    "Upstream fails": (
        Row(
            "upstream mute for good",
            "the connection to upstream swallows everything, and the caller sets no limit",
            "UNAVAILABLE / UPSTREAM_UNAVAILABLE; the next call gets its answer",
            "until the server's pings have found out",
            45_000,
        ),
        *(
            Row(
                f"{code} from upstream",
                f"{code}, before or after headers",
                f"{gets}, upstream's plain reason; one attempt",
                "from the call until the caller has it",
                100,
            )
            for code, gets in (
                ("INVALID_ARGUMENT", "INVALID_ARGUMENT / UPSTREAM_REJECTED"),
                ("PERMISSION_DENIED", "FAILED_PRECONDITION / UPSTREAM_CREDENTIALS (`upstream_code` has the code)"),
            )
        ),
        Row(
            "away once",
            "UNAVAILABLE or RESOURCE_EXHAUSTED once, before or after headers",
            "the whole answer, nothing twice; `upstream_attempts` is 2",
            "the whole call; the pause is random, at most 100 ms",
            None,
        ),
        Row(
            "error after k chunks",
            "an error after k chunks",
            "exactly k chunks, upstream's code and reason, the last sequence number; one attempt",
            "the whole call",
            None,
        ),
        Row(
            "endings",
            "OK without a finish reason; a blocked prompt; each finish reason; number 99",
            "UNAVAILABLE / UPSTREAM_CUT; `completed` with PROMPT_BLOCKED; `completed` with the reason, OTHER where we "
            "have none, and upstream's own word",
            "endings that were not so",
            0,
            "",
        ),
        Row("attempts in an outage", "an outage", "UNAVAILABLE", "attempts for each request", 1.1, ""),
        Row(
            "upstream reset",
            "upstream's connection is reset in mid-stream",
            "UNAVAILABLE / UPSTREAM_UNAVAILABLE with the last sequence number",
            "from the last chunk (20 ms before the reset) until the caller has it",
            100,
        ),
        Row(
            "upstream killed",
            "upstream is killed (SIGKILL)",
            "the same",
            "from the kill until the caller has it, ten streams",
            100,
        ),
        Row(
            "upstream back",
            "upstream comes back",
            "answers again",
            "from its first line until the first answer",
            5000,
        ),
    ),
    "Readers are slow": (
        Row(
            "stalled readers: memory",
            "100 stalled readers on a fast upstream",
            "what it has not read yet, once it reads",
            "growth of the server's memory for each",
            0.5,
            "MB",
        ),
        Row(
            "stalled readers: others' gaps",
            "the same",
            "others: their chunks as ever",
            "p99 of the gaps between chunks, against the same without stalled readers",
            1.2,
            "x",
        ),
        Row(
            "coalesce",
            "a slow reader with `coalesce`",
            "the same text in fewer, bigger chunks",
            "chunks sent for each of upstream's",
            1,
            "",
        ),
        Row(
            "reader stalled",
            "a reader that stalls longer than the write timeout (1 s)",
            "DEADLINE_EXCEEDED / READER_STALLED behind what had been sent",
            "from upstream's last piece until its call has ended, beyond the write timeout",
            150,
        ),
    ),
    "Too many callers": (
        Row(
            "overload: refusals",
            "3 x overload",
            "those beyond: RESOURCE_EXHAUSTED / SERVER_BUSY, RetryInfo and `grpc-retry-pushback-ms`, before upstream",
            "from the call until the caller has it",
            20,
        ),
        Row(
            "overload: gaps",
            "the same",
            "those within: their chunks as ever",
            "p99 of the gaps between chunks, against the same without overload",
            1.5,
            "x",
        ),
        Row("overload: health", "the same", "SERVING", "health checks that failed", 0, "", loose=5),
        Row(
            "2,500 calls",
            "2,500 calls at once on 20 slots",
            "the answer, or RESOURCE_EXHAUSTED / SERVER_BUSY",
            "calls with another ending",
            0,
            "",
        ),
    ),
    "The server goes": (
        Row(
            "SIGTERM: health",
            "SIGTERM under load",
            "NOT_SERVING from the health service",
            "from the signal until a watcher has it",
            100,
        ),
        Row("SIGTERM: streams", "the same", "running streams: their whole answer", "streams that failed", 0, ""),
        Row(
            "SIGTERM: a slow line",
            "SIGTERM while 12 calls of one caller are running, who reads 400 KB/s and pings meanwhile; one and two "
            "workers; with time for all, and with a grace of 0.5 s",
            "their whole answer, or UNAVAILABLE / DRAINING behind all that was sent before",
            "calls with another ending",
            0,
            "",
        ),
        Row(
            "SIGTERM: late calls",
            "the same",
            "new calls: UNAVAILABLE / DRAINING",
            "calls with another ending",
            0,
            "",
        ),
    ),
    "The same with two workers": (
        Row("two workers: cancel", "cancel while reading (20 ms chunks)", CANCEL, SEEN, 50),
        Row(
            "two workers: attempts in an outage",
            "an outage",
            "UNAVAILABLE",
            "attempts for each request; the workers share one budget",
            1.1,
            "",
        ),
        Row(
            "two workers: overload",
            "3 x overload on 20 slots, which both share",
            "20: their answer; the rest: RESOURCE_EXHAUSTED / SERVER_BUSY",
            "calls with another ending",
            0,
            "",
        ),
        Row(
            "two workers: 2,500 calls",
            "2,500 calls at once on 20 slots",
            "the answer, or RESOURCE_EXHAUSTED / SERVER_BUSY",
            "calls with another ending",
            0,
            "",
        ),
        Row(
            "two workers: SIGTERM: health",
            "SIGTERM under load",
            "NOT_SERVING from the health service",
            "from the signal until each of 20 watchers has it",
            100,
        ),
        Row(
            "two workers: SIGTERM: streams",
            "the same",
            "running streams: their whole answer; new calls: UNAVAILABLE / DRAINING",
            "calls with another ending",
            0,
            "",
        ),
    ),
    "We are wrong": (
        Row(
            "bug in any layer",
            "a bug raising in any layer, or a stray CancelledError",
            "INTERNAL / INTERNAL with an id that is in the log, and nothing else",
            "from the call until the caller has it",
            100,
        ),
    ),
    "Two things at once": (
        Row(
            "storm: calls",
            "a cancel, a deadline, a limit, a signal or upstream's ending, aimed at the 5 ms around a first, middle or "
            "last chunk; uvloop and asyncio, one and two workers, with and without `coalesce`; also readers that stop",
            "`completed` and OK, or one typed status that isn't INTERNAL",
            "calls",
            None,
            "",
        ),
        Row(
            "storm: calls whose ending only the server could tell",
            "of these: the caller neither cancels nor has a deadline that could come first",
            "the same",
            "calls",
            None,
            "",
        ),
        Row(
            "storm: chunk first or event first",
            "the same, for each kind of event and of chunk",
            "the same",
            "the share of the order that came more often",
            80,
            "%",
            loose=95,
        ),
        Row(
            "storm: deadlines without a reason",
            "the caller's deadline, 0.6 s after its call, in the moment of a chunk",
            "its answer, or DEADLINE_EXCEEDED / CALLER_DEADLINE",
            "calls whose own clock came before the typed status, of those that ended by the deadline, bursts of 8 and "
            "80 calls left out; most were told in time, but the storm's own process was late to read",
            5,
            "%",
            loose=60,
        ),
        Row(
            "storm: deadlines that the server told too late",
            "the same",
            "the server has ended the call 10 ms before the caller's deadline or earlier",
            "of these, calls that it ended later, by its log",
            0.5,
            "%",
            loose=60,
        ),
        Row(
            "storm: calls without exactly one typed status",
            "the same",
            "the same",
            "calls with another ending, or that heard it later than 1 s after their deadline or the server's maximum",
            0,
            "",
        ),
        Row(
            "storm: slots, queue places, upstream calls left over",
            "the same",
            "the same",
            "slots, places in the queue, calls upstream and asyncio tasks that are taken afterwards",
            0,
            "",
        ),
        Row(
            "order over workers",
            "eight slots, two workers: 60 callers at one of them come again and again, 5 at the other",
            "let in in the order in which they came",
            "calls of 10,000 let in before one that had come 50 ms earlier",
            0,
            "",
            loose=10,
        ),
        Row(
            "polite beside greedy",
            "eight slots, two workers: 40 callers at one of them come again and again, one at the other",
            "its answers, in its turn",
            "calls of 44 that were refused",
            0,
            "",
        ),
        Row(
            "unfinished: memory",
            "requests of 5 MB that never arrive as a whole: 200 on 2 connections, 616 on one, 600 on each of 10; one "
            "byte a second; only promised; compressed",
            "RESOURCE_EXHAUSTED / SERVER_BUSY, or DEADLINE_EXCEEDED / REQUEST_STALLED",
            "growth of the memory of all processes",
            256,
            "MB",
            loose=320,
        ),
        Row(
            "unfinished: others",
            "the same, but for the burst of 6,000 calls",
            "others: their answers",
            "a small call beside it",
            250,
        ),
        Row(
            "unfinished: others refused", "the same", "the same", "calls beside it with another ending", 0, "", loose=5
        ),
        Row(
            "500 requests of 1 MB",
            "500 requests of 1 MB at once",
            "the answer, or RESOURCE_EXHAUSTED / SERVER_BUSY",
            "calls with another ending",
            0,
            "",
        ),
        Row(
            "100 readers of 5 MB",
            "100 slow readers of 5 MB answers",
            "the whole answer",
            "growth of the server's memory for each",
            0.5,
            "MB",
        ),
        Row(
            "event loop blocked",
            "all of the above, and stops and surroundings: what runs on the event loop of a server process",
            "its chunks meanwhile",
            "the longest for which nobody else's turn came",
            50,
        ),
        Row(
            "event loop blocked: credentials",
            "Google's credentials: `gcloud`, which is run before anybody is served, and each renewal take a second",
            "its chunks and health meanwhile, if it is running; else its first chunk behind that",
            "the longest for which nobody else's turn came",
            50,
        ),
        Row(
            "event loop blocked: bad bytes",
            "what [bad bytes](hostile.md) tells",
            "its chunks meanwhile",
            "the longest for which nobody else's turn came",
            250,
        ),
        *(
            Row(
                f"stop: {way}",
                f"{told}, two workers",
                "running streams: their whole answer",
                "streams that were cut, and exit codes other than 0",
                0,
                "",
            )
            for way, told in (
                ("group", "one stop for parent and workers: Ctrl-C, or `kill` of the process group"),
                ("parent", "one stop for the parent alone"),
                ("process 1", "one stop as process 1 of a container"),
                ("service manager", "one stop for each process of the tree, then SIGCONT and SIGHUP"),
                ("terminal that closes", "SIGHUP twice, then SIGTERM, each for parent and workers"),
                ("wrapper", "one stop as timeout(1) sends it, twice within microseconds"),
            )
        ),
        Row(
            "stop: callers without a pause",
            "one stop under 20 callers, each of whom sends its next call the moment the last one has ended",
            "the whole answer, UNAVAILABLE / DRAINING, or that nobody listens",
            "calls with another ending",
            0,
            "",
        ),
        Row(
            "parent killed",
            "the parent of two workers is killed (SIGKILL) under 50 streams",
            "running streams: their whole answer; no process is left, and the port is free",
            "streams that were cut",
            0,
            "",
        ),
    ),
    "Everything at once": (
        Row(
            "soak",
            "five minutes of random scripts, cancels, deadlines and slow readers: tasks and sockets at baseline",
            "what promises 1 and 2 say, each time",
            "growth of the server's memory",
            10,
            "MB",
        ),
        Row("soak: calls", "the same", "the same", "calls", None, ""),
    ),
}

ROWS = {row.key: row for rows in SECTIONS.values() for row in rows}
