"""One call as handlers see it: its limits, and writes that leave nothing half done.

An operation that gRPC has begun can't be taken back. Two follow from that. The first message brings the headers along;
if its write were given up and a status came next, gRPC would send the headers again, fail, and send no status at all.
So the first write goes on, even when nobody waits for it any more, and no status comes before it is done. And behind
the last message the status is OK, whatever else happens while it is being written.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc.aio
from google.rpc import status_pb2

from ..admission.callers import ANYBODY
from ..admission.identity import Proof
from ..errors import CallError
from ..telemetry.call_record import CallRecord
from .time_limits import TimeLimits

_MOMENT_SECONDS = 0.05

_LAST_WORD_SECONDS = 1.0
"""So long a status waits for the message that says the same."""


class Call:
    """Wraps the context of one call."""

    def __init__(
        self, context: "grpc.aio.ServicerContext[Any, Any]", time_limits: TimeLimits, record: CallRecord
    ) -> None:
        self.time_limits = time_limits
        self.record = record
        self.written = 0
        """Messages handed to gRPC: the caller gets them before its status."""
        self.answered = False
        """Whether the last message is among them."""
        self.failed: Callable[[int, status_pb2.Status], Any] | None = None
        """Makes of its sequence number and a status the message that says so; None: the status is enough."""
        self.proof: Proof | None = None
        """What was found of who calls before anything else; None: it isn't known yet."""
        self.caller = ANYBODY
        """Who has been proven to call; nobody has to until `Guard` has asked."""
        self.connection = str(context.peer())
        """The peer's address with its port, in gRPC's words."""
        self._context = context
        self._first: asyncio.Future[None] | None = None
        """The first write."""
        self._writing = False
        """Whether a write has begun, and isn't done."""

    @property
    def metadata(self) -> Sequence[tuple[str, Any]]:
        """What the caller has sent along."""
        return tuple(self._context.invocation_metadata() or ())

    @property
    def peer(self) -> str:
        """The peer's address without its port: "ipv4:127.0.0.1" of "ipv4:127.0.0.1:40000"."""
        return self.connection.rpartition(":")[0]

    async def write(self, message: Any, *, last: bool = False) -> None:
        """Send a message; behind the `last` one no error can come any more."""
        self.time_limits.writing(last=last)
        self.written += 1
        self.answered = last
        self._writing = True
        try:
            if self._first is None:
                self._first = asyncio.ensure_future(self._context.write(message))
                self._first.add_done_callback(_seen)
                await asyncio.shield(self._first)
            else:
                await self._context.write(message)
        except Exception:
            self.answered = False  # it has not even been begun, or there is nobody left who could be told
            raise
        self._writing = False
        self.time_limits.written()

    async def say_failed(self, failure: CallError) -> None:
        """Tell a caller that wants it so, and reads, that its stream has failed; once a status may be sent."""
        stalled = self._writing and self.written > 1  # the first write is done by now
        if self.failed is None or not self.written or stalled:
            return
        with suppress(Exception):  # there is nobody left who could be told, or a bug, which the status tells of
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await self._context.write(self.failed(self.written, failure.status()))

    async def may_end(self) -> None:
        """Wait until a status may be sent: at once, unless the first message is on its way to a caller that stalls."""
        if self._first is None:
            return
        if not self._first.done():
            await asyncio.wait((self._first,))
        if self._first.exception() is not None:
            # The caller has left, and the cancellation gets here in a moment. A status would be sent with the headers,
            # a second time, and gRPC would log an error.
            await asyncio.sleep(_MOMENT_SECONDS)


def _seen(first: "asyncio.Future[None]") -> None:
    """It may fail when nobody waits for it any more; asyncio would log that as an error nobody looked at."""
    if not first.cancelled():
        first.exception()
