"""How long a call may wait: for all of it, for upstream's next word, for its own reader."""

import asyncio
import math
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from service.errors import DeadlineExceeded, UpstreamDeadline

# What we keep of the caller's time, so that a typed status reaches it before its own clock cuts the call.
_MARGIN_SECONDS = 0.05
_MARGIN_PART = 0.1

_SAME_MOMENT_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the event loop's clock."""

    at: float
    """In seconds of `loop.time()`."""
    reason: str
    """CALLER_DEADLINE, or SERVER_DEADLINE where the caller gave none or a later one than the server allows."""
    text: str

    @classmethod
    def of(cls, remaining: float | None, *, default: float, longest: float) -> Self:
        """The deadline of a call with `remaining` seconds by its caller's, None for a caller that gave none."""
        now = asyncio.get_running_loop().time()
        if remaining is None:
            text = f"The call came without a deadline, and the server's default of {default:g} s has passed"
            return cls(now + default, "SERVER_DEADLINE", text)
        if remaining > longest:
            text = f"No call may last longer than {longest:g} s on this server"
            return cls(now + longest, "SERVER_DEADLINE", text)
        margin = min(_MARGIN_SECONDS, _MARGIN_PART * remaining)
        return cls(now + remaining - margin, "CALLER_DEADLINE", "The caller's deadline has passed")


class Patience:
    """Ends the body of its `async with` by DeadlineExceeded once something has been waited for too long.

    One timer looks after all the waits of a call, so that a chunk costs no timer of its own.
    """

    def __init__(self, deadline: Deadline, *, first_chunk: float | None, idle: float | None, write: float) -> None:
        """Seconds: until upstream's first chunk, between two of them, and for one write to the reader."""
        self._deadline = deadline
        self._upstream = (first_chunk, "FIRST_CHUNK_TIMEOUT", "The model has not begun to answer within {:g} s")
        self._idle = (idle, "IDLE_TIMEOUT", "The model has been silent for {:g} s in the middle of its answer")
        self._reader = (write, "READER_STALLED", "The caller has not read for {:g} s")
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout_at(deadline.at)
        self._timer: asyncio.TimerHandle | None = None
        self._wait = self._upstream
        self._until = math.inf
        self._too_long = False

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    def waits_for_upstream(self) -> None:
        """Now for the model's next word."""
        self._begin(self._upstream)

    def waits_for_reader(self) -> None:
        """The model has said something; now to be written."""
        self._upstream = self._idle
        self._begin(self._reader)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as timeout:
            raise self._failure() from timeout
        # Upstream counts the same time on a clock of its own, so it may give up a moment before we do.
        if isinstance(error, UpstreamDeadline) and self._deadline.at - self._loop.time() < _SAME_MOMENT_SECONDS:
            raise self._failure() from error

    def _begin(self, wait: tuple[float | None, str, str]) -> None:
        self._wait = wait
        seconds = wait[0]
        if seconds is None:
            self._until = math.inf
            return
        self._until = self._loop.time() + seconds
        if self._timer is None or self._until < self._timer.when():
            self._look_at(self._until)

    def _look_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(moment, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._until <= self._loop.time():
            self._too_long = True
            self._timeout.reschedule(self._loop.time())
        elif self._until < math.inf:
            self._look_at(self._until)

    def _failure(self) -> DeadlineExceeded:
        if not self._too_long:
            return DeadlineExceeded(self._deadline.text, reason=self._deadline.reason)
        seconds, reason, text = self._wait
        return DeadlineExceeded(text.format(seconds), reason=reason)
