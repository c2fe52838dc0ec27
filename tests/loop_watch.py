"""How long an event loop was blocked: what ran on it for so long that everybody else had to wait.

A tick each 5 ms on the loop itself measures how late it comes. What the kernel says of the loop's thread tells our own
blocking from a machine that is busy: time in which the thread could have run and was not let run is left out.
"""

import asyncio
import time
from pathlib import Path

TICK_SECONDS = 0.005


class LoopWatch:
    """The longest time for which the running event loop was blocked since `start`."""

    def __init__(self) -> None:
        self.longest = 0.0
        """In seconds, by the process itself."""
        self.late = 0.0
        """In seconds, whoever made the loop late."""
        self._due = 0.0
        self._delay = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """To be called on the loop, once; the loop goes on ticking."""
        self._loop = asyncio.get_running_loop()
        self._again()

    def _again(self) -> None:
        assert self._loop is not None
        self._delay = _run_delay()
        self._due = time.monotonic() + TICK_SECONDS
        self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        late = time.monotonic() - self._due
        self.late = max(self.late, late)
        self.longest = max(self.longest, late - (_run_delay() - self._delay))
        self._again()


def _run_delay() -> float:
    """Seconds for which this thread could have run and had no processor; 0 where the kernel doesn't count them."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0
