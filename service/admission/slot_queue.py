"""Admits calls: slots, a short queue, and an immediate refusal beyond it.

gRPC's own `maximum_concurrent_rpcs` would refuse health checks too, and with `max_concurrent_streams` alone callers
would queue in silence until their deadline. So it is written here.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from google.rpc import error_details_pb2

from ..errors import QuotaExceeded, ServerBusy
from .slots import Slots

# How often a worker in which callers wait says that it lives, and looks at what other workers could not tell it: one of
# them has died, and its places have come free.
_LOOK_SECONDS = 0.05


@dataclass(slots=True, eq=False)
class _Waiter:
    """A caller in the queue."""

    since: int
    """In ns of the monotonic clock."""
    turn: asyncio.Future[None]


class Admission:
    """Admits the calls of one process. Nothing here waits for upstream; health checks need no slot.

    First come, first served, over all workers: each has a queue of its own, and a slot goes to the caller that has
    waited longest in any of them.
    """

    def __init__(self, slots: Slots, *, queue: int, wait: float) -> None:
        """At most `queue` callers of the server wait for a slot, for at most `wait` seconds each."""
        self._slots = slots
        self._queue_length = queue
        self._wait = wait
        self._queue: deque[_Waiter] = deque()
        self._looking: asyncio.TimerHandle | None = None
        self._listening = False

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
        waiter = _Waiter(time.monotonic_ns(), asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        self._listen()
        self._serve_queue()
        try:
            async with asyncio.timeout(self._wait):
                await waiter.turn
        except BaseException as error:
            if waiter.turn.done() and not waiter.turn.cancelled():
                self._give()  # the slot came in the same moment
            elif waiter in self._queue:
                self._queue.remove(waiter)
                self._slots.unqueue()
                self._serve_queue()
            if isinstance(error, TimeoutError):
                raise self._busy() from error
            raise
        return (time.monotonic_ns() - waiter.since) / 1e9

    def _give(self) -> None:
        self._slots.give()
        self._serve_queue()

    def _serve_queue(self) -> None:
        """Let in the callers that have waited longest, as far as there are places; tell a worker whose turn it is."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        while self._queue:
            first = self._queue[0]
            if not first.turn.done():
                if not self._slots.take(first.since):
                    break
                first.turn.set_result(None)
            self._queue.popleft()
            self._slots.unqueue()
        if self._slots.workers > 1:
            self._tell_others()

    def _tell_others(self) -> None:
        if self._queue:
            self._slots.publish(self._queue[0].since)
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._serve_queue)
            ahead = self._slots.ahead(self._queue[0].since)
        else:
            self._slots.publish(0)
            ahead = self._slots.ahead()
        if ahead is not None and self._slots.taken < self._slots.slots:
            self._slots.ring(ahead)

    def _listen(self) -> None:
        if self._slots.bell is not None and not self._listening:
            self._listening = True
            asyncio.get_running_loop().add_reader(self._slots.bell, self._rung)

    def _rung(self) -> None:
        self._slots.silence()
        self._serve_queue()

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
            metadata={"quota": "slots_per_caller", "limit": str(most)},
            details=[error_details_pb2.QuotaFailure(violations=[violation])],
        )
