"""What each caller has used, counted over all worker processes of a server, in memory that they share."""

import fcntl
import hashlib
import mmap
import os
import secrets
import weakref
from collections.abc import Sequence
from typing import NamedTuple

_CELLS = 1 << 16
"""So many callers have counts of their own; those beyond share some."""
_STEPS = 64
"""So many cells are looked at for a new one: a caller isn't to hold up all others."""
_FIELDS = 8
_STREAMS, _MINUTE, _REQUESTS, _MINUTE_TOKENS, _DAY, _DAY_TOKENS, _DAY_REQUESTS, _DAY_ESTIMATED = range(_FIELDS)

DAY_SECONDS = 86_400
MINUTE_SECONDS = 60


class Used(NamedTuple):
    """What a caller has used so far."""

    streams: int
    """Open now."""
    requests_in_minute: int
    tokens_in_minute: int
    requests_today: int
    tokens_today: int
    estimated_today: int
    """Of these tokens, how many were estimated, since upstream didn't tell."""


class More(NamedTuple):
    """What is counted of a caller; numbers below zero take back what was counted before."""

    streams: int = 0
    requests: int = 0
    tokens: int = 0
    estimated: int = 0
    """Of the tokens."""


class Counts:
    """Counts by the clock's minutes and by the days of UTC.

    Each worker counts in rows of its own, and everyone reads all rows: there is no lock that a dying worker could keep,
    and what it had counted stays. What a row holds of an earlier minute or day counts nothing any more.
    """

    def __init__(self, workers: int = 1) -> None:
        """To be made before the workers are forked."""
        self.server = secrets.token_hex(8)
        """By which it is told from all other servers, also from the one that was here before."""
        self._rows = [memoryview(mmap.mmap(-1, _CELLS * _FIELDS * 8)).cast("Q") for _ in range(workers)]
        self._names = memoryview(mmap.mmap(-1, _CELLS * 8)).cast("Q")
        """By cell: a hash of the caller's name; 0: nobody has it."""
        self._lock = os.memfd_create("callers") if hasattr(os, "memfd_create") else -1
        """Held while a caller gets its cell; the kernel takes it from a process that dies."""
        if self._lock >= 0:
            weakref.finalize(self, os.close, self._lock)
        self._cells: dict[str, int] = {}
        self._mine = 0

    def join(self, worker: int) -> None:
        """Count as this worker from here on. The streams that one of the same number had open are none any more."""
        self._mine = worker
        row = self._rows[worker]
        for cell in range(_CELLS):
            if self._names[cell]:
                row[cell * _FIELDS + _STREAMS] = 0

    def used(self, caller: str, now: float) -> Used:
        """What this caller has used; `now` in seconds of `time.time`."""
        at = self.cell(caller) * _FIELDS
        minute, day = int(now) // MINUTE_SECONDS, int(now) // DAY_SECONDS
        streams = requests = minute_tokens = day_requests = day_tokens = estimated = 0
        for row in self._rows:
            streams += row[at + _STREAMS]
            if row[at + _MINUTE] == minute:
                requests += row[at + _REQUESTS]
                minute_tokens += row[at + _MINUTE_TOKENS]
            if row[at + _DAY] == day:
                day_tokens += row[at + _DAY_TOKENS]
                day_requests += row[at + _DAY_REQUESTS]
                estimated += row[at + _DAY_ESTIMATED]
        return Used(streams, requests, minute_tokens, day_requests, day_tokens, estimated)

    async def agreed(self, caller: str, now: float) -> Used:
        """As `used`: what one worker has added, all see at once."""
        return self.used(caller, now)

    def add(self, caller: str, now: float, more: More, *, since: float | None = None) -> None:
        """Count so much more; nothing gets below zero.

        `since`: when that which is taken back was counted; what was in another minute or on another day isn't.
        """
        at = self.cell(caller) * _FIELDS
        minute, day = int(now) // MINUTE_SECONDS, int(now) // DAY_SECONDS
        row = self._row(at, minute, day)
        same_minute = since is None or int(since) // MINUTE_SECONDS == minute
        same_day = since is None or int(since) // DAY_SECONDS == day
        for field, count, still in (
            (_STREAMS, more.streams, True),
            (_REQUESTS, more.requests, same_minute),
            (_DAY_REQUESTS, more.requests, same_day),
            (_MINUTE_TOKENS, more.tokens, same_minute),
            (_DAY_TOKENS, more.tokens, same_day),
            (_DAY_ESTIMATED, more.estimated, same_day),
        ):
            if count > 0 or (count and still):
                row[at + field] = max(0, row[at + field] + count)

    def took(self, caller: str, now: float, tokens: int) -> int:
        """Count so many more tokens of a call that goes on; gives all that the caller has used today.

        What `add` and `used` do of it, and no more: it is asked with each chunk of each stream.
        """
        at = self.cell(caller) * _FIELDS
        minute, day = int(now) // MINUTE_SECONDS, int(now) // DAY_SECONDS
        if tokens > 0:
            row = self._row(at, minute, day)
            row[at + _MINUTE_TOKENS] += tokens
            row[at + _DAY_TOKENS] += tokens
        today = 0
        for row in self._rows:
            if row[at + _DAY] == day:
                today += row[at + _DAY_TOKENS]
        return today

    @property
    def worker(self) -> int:
        """The number of this worker."""
        return self._mine

    def cell(self, caller: str) -> int:
        """Where this caller is counted."""
        cell = self._cells.get(caller)
        if cell is None:
            if len(self._cells) >= _CELLS:
                self._cells.clear()
            digest = hashlib.blake2b(caller.encode(), digest_size=8).digest()
            cell = self._cells[caller] = self._found(int.from_bytes(digest) or 1)
        return cell

    def name(self, cell: int) -> int:
        """The hash of the name of the caller that is counted here, of 64 bits."""
        return self._names[cell]

    def row(self, cell: int) -> Sequence[int]:
        """What this worker has counted here: the streams that are open, then by minute and day as the fields above."""
        at = cell * _FIELDS
        return self._rows[self._mine][at : at + _FIELDS].tolist()

    def counted(self, now: float) -> list[int]:
        """Where this worker has counted anything on this day."""
        row, day = self._rows[self._mine], int(now) // DAY_SECONDS
        return [cell for cell in range(_CELLS) if self._names[cell] and row[cell * _FIELDS + _DAY] >= day]

    def _row(self, at: int, minute: int, day: int) -> "memoryview[int]":
        """This worker's, with nothing from before this minute and this day at a caller's place."""
        row = self._rows[self._mine]
        if row[at + _MINUTE] < minute:
            # In this order: who reads meanwhile sees counts of a minute that is over.
            row[at + _REQUESTS] = row[at + _MINUTE_TOKENS] = 0
            row[at + _MINUTE] = minute
        if row[at + _DAY] < day:
            row[at + _DAY_TOKENS] = row[at + _DAY_REQUESTS] = row[at + _DAY_ESTIMATED] = 0
            row[at + _DAY] = day
        return row

    def _found(self, name: int) -> int:
        """The cell of this hash, which is the same in all workers."""
        if self._lock >= 0:
            fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            for step in range(_STEPS):
                cell = (name + step) % _CELLS
                if self._names[cell] in (0, name):
                    self._names[cell] = name
                    return cell
            return name % _CELLS
        finally:
            if self._lock >= 0:
                fcntl.lockf(self._lock, fcntl.LOCK_UN)
