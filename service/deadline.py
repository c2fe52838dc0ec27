"""When a call has to be over, and whose wish that is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from service.errors import DeadlineExceeded, UpstreamDeadline

# Upstream counts the same time on a clock of its own, so it may give up a moment before we do.
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
            return cls(
                now + default,
                "SERVER_DEADLINE",
                f"The call came without a deadline; the server's default is {default:g} s",
            )
        if remaining > longest:
            return cls(now + longest, "SERVER_DEADLINE", f"No call may last longer than {longest:g} s on this server")
        return cls(now + remaining, "CALLER_DEADLINE", "The caller's deadline has passed")

    def remaining(self) -> float:
        """Seconds; zero or less when it has passed."""
        return self.at - asyncio.get_running_loop().time()

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Raise DeadlineExceeded out of the body as soon as the moment has come."""
        try:
            async with asyncio.timeout_at(self.at) as timeout:
                yield
        except TimeoutError as error:
            if not timeout.expired():  # somebody else's
                raise
            raise DeadlineExceeded(self.text, reason=self.reason) from error
        except UpstreamDeadline as error:
            if self.remaining() > _SAME_MOMENT_SECONDS:
                raise
            raise DeadlineExceeded(self.text, reason=self.reason) from error
