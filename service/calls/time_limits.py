"""How long a call may wait: for all of it, for upstream's next word, for its own reader."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from ..errors import CallError, DeadlineExceeded, UpstreamDeadline

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


class TimeLimits:
    """Ends the body of its `async with` by a typed error once something has been waited for too long.

    One timer looks after all the waits of a call, so that a chunk costs no timer of its own.
    """

    def __init__(self, deadline: Deadline, *, write: float) -> None:
        """`write` in seconds, for one write to the reader."""
        self.deadline = deadline
        self._first = _Wait(None, "FIRST_CHUNK_TIMEOUT", "The model has not begun to answer within {:g} s")
        self._next = _Wait(None, "IDLE_TIMEOUT", "The model has been silent for {:g} s in the middle of its answer")
        self._write = _Wait(write, "READER_STALLED", "The caller has not read for {:g} s")
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout_at(None if deadline.at == math.inf else deadline.at)
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        """When the timer rings, on the loop's clock. Not all event loops' timers can say it themselves."""
        self._failure: CallError | None = None
        self._over = False

    @classmethod
    def of(cls, remaining: float | None, *, default: float, longest: float, write: float) -> Self:
        """Those of a call, as `Deadline.of` has its deadline."""
        return cls(Deadline.of(remaining, default=default, longest=longest), write=write)

    def at_most(self, seconds: float) -> None:
        """Within the body: it ends so many seconds from now at the latest."""
        at = self._loop.time() + seconds
        if at < self.deadline.at:
            text = f"No call of this caller may last longer than {seconds:g} s on this server"
            self.deadline = Deadline(at, "SERVER_DEADLINE", text)
            self._timeout.reschedule(at)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    def upstream(self, events: AsyncIterator[T], *, first_chunk: float | None, idle: float | None) -> AsyncIterator[T]:
        """The same, limited in how long the first and each further one may take, in seconds; None is no limit."""
        if first_chunk is idle is None:
            return events
        self._first.seconds, self._next.seconds = first_chunk, idle
        return self._watched(events)

    async def _watched(self, events: AsyncIterator[T]) -> AsyncIterator[T]:
        wait = self._first
        self._begin(wait)
        async for event in events:
            wait.until = math.inf
            yield event
            wait = self._next
            self._begin(wait)
        wait.until = math.inf

    def writing(self, *, last: bool) -> None:
        """A message is being written. Once it is the last, there is nothing left that a deadline could end.

        Raises the error by which the body has been ended, for any but the last: nothing more is to be said then.
        """
        if last:
            self._timeout.reschedule(None)
        elif self._failure is not None:
            self._timeout.reschedule(None)
            raise self._why()
        self._begin(self._write)

    def written(self) -> None:
        """The message has been written."""
        self._write.until = math.inf

    def end(self, failure: CallError) -> None:
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
        if isinstance(error, UpstreamDeadline) and self.deadline.at - self._loop.time() < _SAME_MOMENT_SECONDS:
            raise self._why() from error

    def _why(self) -> CallError:
        """What ended the body. Not kept here: it would be in a cycle with its own traceback and the request."""
        failure, self._failure = self._failure, None
        return failure or DeadlineExceeded(self.deadline.text, reason=self.deadline.reason)

    def _begin(self, wait: _Wait) -> None:
        if wait.seconds is None:
            return
        wait.until = self._loop.time() + wait.seconds
        if wait.until < self._due:
            self._look_at(wait.until)

    def _look_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = moment
        self._timer = self._loop.call_at(moment, self._look)

    def _look(self) -> None:
        self._due = math.inf
        wait = min(self._first, self._next, self._write, key=lambda wait: wait.until)
        if wait.until <= self._loop.time():
            assert wait.seconds is not None
            self.end(DeadlineExceeded(wait.text.format(wait.seconds), reason=wait.reason))
        elif wait.until < math.inf:
            self._look_at(wait.until)
