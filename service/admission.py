"""Who may come in: slots, a short queue, and an immediate refusal beyond it.

gRPC's own `maximum_concurrent_rpcs` would refuse health checks too, and with `max_concurrent_streams` alone callers
would queue in silence until their deadline. So it is written here.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.rpc import error_details_pb2

from service.errors import QuotaExceeded, ServerBusy
from service.slots import Slots

# How often the queue looks whether another worker has given a place back.
_LOOK_SECONDS = 0.01


class Admission:
    """The door of one process. Nothing here waits for upstream, and health checks never come by."""

    def __init__(self, slots: Slots, *, queue: int, wait: float) -> None:
        """At most `queue` callers of the server wait for a slot, for at most `wait` seconds each."""
        self._slots = slots
        self._queue_length = queue
        self._wait = wait
        self._queue: deque[asyncio.Future[None]] = deque()
        self._looking: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def slot(self, caller: str) -> AsyncIterator[float]:
        """A slot for `caller`; gives the seconds that it had to wait. Raises ServerBusy or QuotaExceeded.

        It is free again at the end of the body, though the caller may not have read its answer: how long that takes is
        the caller's to say.
        """
        if not self._slots.enter(caller):
            raise self._quota()
        try:
            waited = await self._take()
            try:
                yield waited
            finally:
                self._give()
        finally:
            self._slots.leave(caller)

    async def _take(self) -> float:
        if not self._queue and self._slots.take():
            return 0.0
        if not self._slots.queue(self._queue_length):
            raise self._busy()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.append(turn)
        self._look_again()
        try:
            async with asyncio.timeout(self._wait):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._give()  # the slot came in the same moment
            elif turn in self._queue:
                self._queue.remove(turn)
                self._slots.unqueue()
            if isinstance(error, TimeoutError):
                raise self._busy() from error
            raise
        return loop.time() - begin

    def _give(self) -> None:
        self._slots.give()
        self._serve_queue()

    def _serve_queue(self) -> None:
        """Let in whoever has waited longest, as far as there are places."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        while self._queue:
            if self._queue[0].done():
                self._next()
            elif self._slots.take():
                self._next().set_result(None)
            else:
                break
        self._look_again()

    def _next(self) -> asyncio.Future[None]:
        self._slots.unqueue()
        return self._queue.popleft()

    def _look_again(self) -> None:
        if self._queue and self._slots.shared and self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._serve_queue)

    def _busy(self) -> ServerBusy:
        return ServerBusy(
            f"All {self._slots.slots} streams of this server are taken; ask again in a moment",
            retry_after=1.0,
            metadata={"slots": str(self._slots.slots)},
        )

    def _quota(self) -> QuotaExceeded:
        most = self._slots.per_caller
        violation = error_details_pb2.QuotaFailure.Violation(
            subject="peer address", description=f"at most {most} streams at once for one caller"
        )
        return QuotaExceeded(
            f"This caller has {most} streams open, all that one caller may have; let one end first",
            retry_after=1.0,
            details=[error_details_pb2.QuotaFailure(violations=[violation])],
        )
