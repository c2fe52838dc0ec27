"""How long a call may wait: for all of it, for upstream's next word, for its own reader."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from service.errors import DeadlineExceeded, TokenwireError, UpstreamDeadline

T = TypeVar("T")

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


@dataclass(slots=True)
class _Wait:
    """Something that may take so long."""

    seconds: float | None
    reason: str
    text: str
    until: float = math.inf
    """On the loop's clock; infinite while nothing is being waited for, or it may take for ever."""


class Patience:
    """Ends the body of its `async with` by DeadlineExceeded once something has been waited for too long.

    One timer looks after all the waits of a call, so that a chunk costs no timer of its own.
    """

    def __init__(self, deadline: Deadline, *, first_chunk: float | None, idle: float | None, write: float) -> None:
        """Seconds: until upstream's first chunk, between two of them, and for one write to the reader."""
        self._deadline = deadline
        self._first = _Wait(first_chunk, "FIRST_CHUNK_TIMEOUT", "The model has not begun to answer within {:g} s")
        self._next = _Wait(idle, "IDLE_TIMEOUT", "The model has been silent for {:g} s in the middle of its answer")
        self._write = _Wait(write, "READER_STALLED", "The caller has not read for {:g} s")
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout_at(deadline.at)
        self._timer: asyncio.TimerHandle | None = None
        self._failure: TokenwireError | None = None
        self._last = False
        self._over = False

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    def upstream(self, events: AsyncIterator[T]) -> AsyncIterator[T]:
        """The same, with an eye on how long each lets us wait, if there is a limit to that."""
        return events if self._first.seconds is self._next.seconds is None else self._watched(events)

    async def _watched(self, events: AsyncIterator[T]) -> AsyncIterator[T]:
        wait = self._first
        self._begin(wait)
        async for event in events:
            wait.until = math.inf
            yield event
            wait = self._next
            self._begin(wait)
        wait.until = math.inf

    def writing(self, *, last: bool = False) -> None:
        """A message is being written. Behind the last one no error may come, so only its reader can still be late."""
        self._last = last
        if last:
            self._timeout.reschedule(None)
        self._begin(self._write)

    def written(self) -> None:
        """It has been."""
        self._write.until = math.inf
        self._over = self._last

    def end(self, failure: TokenwireError) -> None:
        """End the body by this error, now; nothing happens if it has ended."""
        if not (self._over or self._timeout.expired()):
            self._failure = self._failure or failure
            self._timeout.reschedule(self._loop.time())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as timeout:
            raise self._why() from timeout
        # Upstream counts the same time on a clock of its own, so it may give up a moment before we do.
        if isinstance(error, UpstreamDeadline) and self._deadline.at - self._loop.time() < _SAME_MOMENT_SECONDS:
            raise self._why() from error

    def _why(self) -> TokenwireError:
        """What ended the body. Kept nowhere here, lest it be in a cycle with its own traceback, the request and all."""
        failure, self._failure = self._failure, None
        return failure or DeadlineExceeded(self._deadline.text, reason=self._deadline.reason)

    def _begin(self, wait: _Wait) -> None:
        if wait.seconds is None:
            return
        wait.until = self._loop.time() + wait.seconds
        if self._timer is None or wait.until < self._timer.when():
            self._look_at(wait.until)

    def _look_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(moment, self._look)

    def _look(self) -> None:
        self._timer = None
        wait = min(self._first, self._next, self._write, key=lambda wait: wait.until)
        if wait.until <= self._loop.time():
            assert wait.seconds is not None
            self.end(DeadlineExceeded(wait.text.format(wait.seconds), reason=wait.reason))
        elif wait.until < math.inf:
            self._look_at(wait.until)
