"""Places for streams and in the queue, counted over all worker processes of a server."""

import mmap
import zlib

# Callers are told apart by a hash of their address, and two in one cell share a limit: among a thousand callers that is
# one pair in every other server. Cells that nobody touches take no memory.
_CALLER_CELLS = 1 << 20


class Slots:
    """How many streams are open, in all and for each caller, and how many callers wait.

    Each worker counts in a row of its own in shared memory, and everyone reads all rows: there is no lock that a dying
    worker could keep. A place is taken first and looked at then, so that two at once never exceed a limit.
    """

    def __init__(self, *, slots: int, per_caller: int, workers: int = 1) -> None:
        """To be made before the workers are forked. `per_caller` 0 is no limit."""
        self.slots = slots
        self.per_caller = per_caller
        self.workers = workers
        self.shared = workers > 1
        """Whether places may come free without this process knowing."""
        self._totals = [_row(1) for _ in range(workers)]
        self._waiting = [_row(1) for _ in range(workers)]
        self._callers = [_row(_CALLER_CELLS) for _ in range(workers)] if per_caller else []
        self._mine = 0

    def join(self, worker: int) -> None:
        """Count as this worker from here on. What one of the same number had taken, before it died, is given back."""
        self._mine = worker
        for rows in (self._totals, self._waiting, self._callers):
            if rows:
                rows[worker][:] = memoryview(bytes(rows[worker].nbytes)).cast("I")

    @property
    def taken(self) -> int:
        """Places taken, in all workers."""
        return sum(row[0] for row in self._totals)

    def take(self) -> bool:
        """Take a place; False if there is none."""
        return self._take(self._totals, 0, self.slots)

    def give(self) -> None:
        """Give it back."""
        self._totals[self._mine][0] -= 1

    def queue(self, limit: int) -> bool:
        """Count one more who waits; False if so many do already."""
        return self._take(self._waiting, 0, limit)

    def unqueue(self) -> None:
        """Count one less."""
        self._waiting[self._mine][0] -= 1

    def enter(self, caller: str) -> bool:
        """Count one more stream of this caller; False if it has all that one caller may have."""
        return not self._callers or self._take(self._callers, _cell(caller), self.per_caller)

    def leave(self, caller: str) -> None:
        """Count one less."""
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
