"""Places for streams and in the queue, counted over all worker processes of a server."""

import mmap
import os
import time
import zlib
from contextlib import suppress

# Callers are told apart by a hash of their address, and two in one cell share a limit: among a thousand callers that is
# one pair in every other server. Cells that nobody touches take no memory.
_CALLER_CELLS = 1 << 20

# For how long callers that wait in a worker which is stopped, blocked or dead may hold up those in other workers.
_STALE_NS = 200_000_000

_NEVER = (1 << 64) - 1


class Slots:
    """How many streams are open, in all and for each caller, how many callers wait, and whose turn is next.

    Each worker counts in a row of its own in shared memory, and everyone reads all rows: there is no lock that a dying
    worker could keep. A place is taken first and looked at then, so that two at once never exceed a limit.

    Each worker also publishes since when the first caller in its own queue has waited, on the monotonic clock, which is
    one clock for all processes. So a place goes to the caller that has waited longest in any of them.
    """

    def __init__(self, *, slots: int, per_caller: int, workers: int = 1) -> None:
        """To be made before the workers are forked. `per_caller` 0 is no limit."""
        self.slots = slots
        self.per_caller = per_caller
        self.workers = workers
        self._totals = [_row(1) for _ in range(workers)]
        self._waiting = [_row(1) for _ in range(workers)]
        self._callers = [_row(_CALLER_CELLS) for _ in range(workers)] if per_caller else []
        self._since = memoryview(mmap.mmap(-1, workers * 8)).cast("Q")
        """By worker: since when the first in its queue has waited, in ns of the monotonic clock; 0: nobody waits."""
        self._seen = memoryview(mmap.mmap(-1, workers * 8)).cast("Q")
        """By worker: when it last looked after its queue, in the same way."""
        self._bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(workers)] if workers > 1 else []
        self._mine = 0

    def join(self, worker: int) -> None:
        """Count as this worker from here on. What one of the same number had taken, before it died, is given back."""
        self._mine = worker
        self._since[worker] = 0
        for rows in (self._totals, self._waiting, self._callers):
            if rows:
                rows[worker][:] = memoryview(bytes(rows[worker].nbytes)).cast("I")

    @property
    def taken(self) -> int:
        """Places taken, in all workers."""
        return sum(row[0] for row in self._totals)

    @property
    def waiting(self) -> int:
        """Callers that wait for a place, in all workers."""
        return sum(row[0] for row in self._waiting)

    def take(self, since: int = _NEVER, /) -> bool:
        """Take a place, for one who has waited since `since`, in ns.

        False if there is none, or somebody in another worker has waited longer.
        """
        if self.ahead(since) is not None:
            return False
        while not self._take(self._totals, 0, self.slots):
            if self.taken >= self.slots:
                return False
            # Somebody else tried to take the last one in the same moment, and neither has it.
        return True

    def give(self) -> None:
        """Give back a place that `take` has given."""
        self._totals[self._mine][0] -= 1

    def queue(self, limit: int) -> bool:
        """Count one more caller that waits for a place; False if `limit` of them do already, in all workers."""
        return self._take(self._waiting, 0, limit)

    def unqueue(self) -> None:
        """Count one caller less that waits for a place."""
        self._waiting[self._mine][0] -= 1

    def publish(self, since: int) -> None:
        """Tell the other workers since when the first in this one's queue has waited, in ns; 0: nobody waits here.

        While somebody does, this is to be repeated several times within 0.2 s: a worker that doesn't is passed over.
        """
        if since:
            self._seen[self._mine] = time.monotonic_ns()
        self._since[self._mine] = since

    def ahead(self, since: int = _NEVER) -> int | None:
        """The other worker in which somebody has waited longest, if that is longer than since `since`, in ns."""
        found = None
        for worker in range(self.workers):
            theirs = self._since[worker]
            if 0 < theirs < since and worker != self._mine and time.monotonic_ns() - self._seen[worker] < _STALE_NS:
                found, since = worker, theirs
        return found

    @property
    def bell(self) -> int | None:
        """A file descriptor that becomes readable when it is this worker's turn; None: there is no other worker."""
        return self._bells[self._mine] if self._bells else None

    def ring(self, worker: int) -> None:
        """Tell a worker that it is its turn."""
        os.eventfd_write(self._bells[worker], 1)

    def silence(self) -> None:
        """Reset this worker's own bell."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._bells[self._mine])

    def enter(self, caller: str) -> bool:
        """Count one more stream of this caller; False if it has all that one caller may have."""
        return not self._callers or self._take(self._callers, _cell(caller), self.per_caller)

    def leave(self, caller: str) -> None:
        """Count one stream of this caller less."""
        if self._callers:
            self._callers[self._mine][_cell(caller)] -= 1

    def _take(self, rows: list["memoryview[int]"], cell: int, limit: int) -> bool:
        rows[self._mine][cell] += 1
        if sum(row[cell] for row in rows) <= limit:
            return True
        rows[self._mine][cell] -= 1
        return False


def _row(cells: int) -> "memoryview[int]":
    return memoryview(mmap.mmap(-1, cells * 4)).cast("I")


def _cell(caller: str) -> int:
    return zlib.crc32(caller.encode()) % _CALLER_CELLS
