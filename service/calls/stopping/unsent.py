"""What the kernel has not delivered yet to callers, by connection.

When a connection is to close, gRPC closes it with the last of its calls. What then still waits in the kernel is lost
if the caller says anything meanwhile, such as a ping or that it has room again: Linux answers that by a reset
(RFC 1122, 4.2.2.13). So the status that ends a connection's last call has to wait for all that is before it.
"""

import asyncio
import fcntl
import math
import sys
import termios
from contextlib import suppress
from functools import partial
from typing import Any

from .connections import Peer, connections, key, peer_of

# How often to look whether the kernel is done; less and less often.
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.05

# It is done once it was in so many looks, one after the other: gRPC, too, holds what it hasn't written, and needs a
# moment to write on.
_LOOKS = 3
_BETWEEN_LOOKS_SECONDS = 0.02

# Where a connection isn't known, how long after one search for it the next may begin; and how long one may take.
_BETWEEN_SEARCHES_SECONDS = 0.1
_LONGEST_SEARCH_SECONDS = 1.0


class Unsent:
    """Knows the open calls of each connection, and its socket where there is a /proc, as on Linux."""

    def __init__(self) -> None:
        self._open: dict[str, set[asyncio.Task[Any]]] = {}
        """By connection, the tasks of calls whose statuses are still to come."""
        self._sockets: dict[Peer, int] = {}
        self._search = asyncio.Lock()
        self._searched = 0.0
        self._hopeless = False

    def opened(self, peer: str, task: "asyncio.Task[Any]") -> None:
        """A call of `peer`, in gRPC's words, is being answered by this task."""
        self._open.setdefault(peer, set()).add(task)
        task.add_done_callback(partial(self._ended, peer))

    async def delivered(self, peer: str, *, patience: float) -> None:
        """Wait until the status of this task's call may follow, or until the caller has taken nothing so long.

        If others of its connection are open, that is now: the last of them waits for all that is before it.
        """
        task = asyncio.current_task()
        assert task is not None
        self._ended(peer, task)
        address = key(peer)
        if address is None or self._is_free(peer) or (number := await self._socket(address)) is None:
            return
        loop = asyncio.get_running_loop()
        pause, least, until = _SHORTEST_PAUSE_SECONDS, math.inf, 0.0
        looks = 0
        while looks < _LOOKS and not self._is_free(peer):
            if held := _held(number, address):
                looks = 0
                if held < least:
                    least, until = held, loop.time() + patience
                if loop.time() >= until:
                    return
                await asyncio.sleep(min(pause, until - loop.time()))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                looks, least = looks + 1, math.inf
                await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)

    def give_up(self) -> None:
        """From now on, nobody waits any more."""
        self._hopeless = True

    def _is_free(self, peer: str) -> bool:
        return self._hopeless or peer in self._open

    def _ended(self, peer: str, task: "asyncio.Task[Any]") -> None:
        tasks = self._open.get(peer)
        if tasks is not None:
            tasks.discard(task)
            if not tasks:
                del self._open[peer]

    async def _socket(self, key: Peer) -> int | None:
        async with self._search:
            loop = asyncio.get_running_loop()
            if key not in self._sockets and loop.time() >= self._searched + _BETWEEN_SEARCHES_SECONDS:
                # In a thread, for it may take long, and threads may all be busy.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LONGEST_SEARCH_SECONDS):
                        self._sockets = await asyncio.to_thread(connections)
                self._searched = loop.time()
            return self._sockets.get(key)


def _held(number: int, peer: Peer) -> int:
    """How many bytes the kernel has that the caller's kernel has not taken."""
    if peer_of(number) != peer:  # the connection is gone
        return 0
    with suppress(OSError):
        return int.from_bytes(fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0
