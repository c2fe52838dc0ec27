"""Who may come in: slots, a short queue, and an immediate refusal beyond it.

gRPC's own `maximum_concurrent_rpcs` would refuse health checks too, and `max_concurrent_streams` lets callers queue in
silence until their deadline. So it is written here.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.rpc import error_details_pb2

from service.errors import QuotaExceeded, ServerBusy


class Admission:
    """Slots for streams, in one process. Nothing here waits for upstream, and health checks never come by."""

    def __init__(self, *, slots: int, per_caller: int, queue: int, wait: float) -> None:
        """`per_caller` 0 is no limit; at most `queue` callers wait for a slot, for at most `wait` seconds each."""
        self._slots = slots
        self._per_caller = per_caller
        self._queue_length = queue
        self._wait = wait
        self._taken = 0
        self._callers: Counter[str] = Counter()
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def taken(self) -> int:
        """How many slots are taken."""
        return self._taken

    @asynccontextmanager
    async def slot(self, caller: str) -> AsyncIterator[float]:
        """Hold a slot for `caller`; gives the seconds that it had to wait. Raises ServerBusy or QuotaExceeded."""
        if self._per_caller and self._callers[caller] >= self._per_caller:
            raise self._quota()
        self._callers[caller] += 1
        try:
            waited = await self._take()
            try:
                yield waited
            finally:
                self._release()
        finally:
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]

    async def _take(self) -> float:
        if self._taken < self._slots:
            self._taken += 1
            return 0.0
        if len(self._queue) >= self._queue_length:
            raise self._busy()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        turn: asyncio.Future[None] = loop.create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(self._wait):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._release()  # the slot came in the same moment
            elif turn in self._queue:
                self._queue.remove(turn)
            if isinstance(error, TimeoutError):
                raise self._busy() from error
            raise
        return loop.time() - begin

    def _release(self) -> None:
        """Hand the slot on to whoever has waited longest, or put it back."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._taken -= 1

    def _busy(self) -> ServerBusy:
        return ServerBusy(
            f"All {self._slots} streams of this server are taken; ask again in a moment",
            retry_after=1.0,
            metadata={"slots": str(self._slots)},
        )

    def _quota(self) -> QuotaExceeded:
        violation = error_details_pb2.QuotaFailure.Violation(
            subject="peer address", description=f"at most {self._per_caller} streams at once for one caller"
        )
        return QuotaExceeded(
            f"This caller has {self._per_caller} streams open, all that one caller may have; let one end first",
            retry_after=1.0,
            details=[error_details_pb2.QuotaFailure(violations=[violation])],
        )
