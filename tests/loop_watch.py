"""How long an event loop was blocked: what ran on it for so long that everybody else had to wait.

A tick each 5 ms on the loop itself measures how late it comes. What the kernel says of the loop's thread tells our own
blocking from a machine that is busy: time in which the thread could have run and was not let run is left out.
"""

import asyncio
import os
import time
from contextlib import suppress

TICK_SECONDS = 0.005


class LoopWatch:
    """The longest time for which the running event loop was blocked since `start`."""

    def __init__(self) -> None:
        self.longest = 0.0
        """In seconds, by the process itself."""
        self.late = 0.0
        """In seconds, whoever made the loop late."""
        self.started = False
        self._due = 0.0
        self._delay = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._schedstat: int | None = None
        """Stays open: a process that may open no more files is watched, too."""

    def start(self) -> None:
        """To be called on the loop, once; the loop goes on ticking."""
        self.started = True
        self._loop = asyncio.get_running_loop()
        with suppress(OSError):  # the kernel doesn't count it
            self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._again()

    def _again(self) -> None:
        assert self._loop is not None
        self._delay = self._run_delay()
        self._due = time.monotonic() + TICK_SECONDS
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        late = time.monotonic() - self._due
        self.late = max(self.late, late)
        self.longest = max(self.longest, late - (self._run_delay() - self._delay))
        self._again()

    def _run_delay(self) -> float:
        """Seconds for which this thread could have run and had no processor; 0 where the kernel doesn't count them."""
        return 0.0 if self._schedstat is None else int(os.pread(self._schedstat, 100, 0).split()[1]) / 1e9
