"""How the greeter hands the port over to the workers, so that SERVING is true wherever the next connection lands.

The kernel gives a new connection to any process that listens. So each worker listens only once it can answer, the
greeter leaves only once all of them listen, and none says SERVING before the greeter has left.
"""

import asyncio
import os
import select
from contextlib import suppress

_LISTENS, _SERVES = b"l", b"s"


class Handover:
    """Two pipes: by one the workers tell the greeter how far they are; the other ends once it has left."""

    def __init__(self, workers: int) -> None:
        """To be made before the greeter and the workers are forked. Nobody but the greeter may keep `_hold`."""
        self._workers = workers
        self._told, self._tell = os.pipe()
        self._end, self._hold = os.pipe()

    # ---- the parent

    def watch(self) -> None:
        """The greeter has been forked: its ends of the pipes are its own, which close with it."""
        os.close(self._told)
        os.close(self._hold)

    # ---- the greeter

    async def all_listen(self) -> None:
        """Wait until so many workers listen."""
        await self._heard(_LISTENS)

    async def leave(self) -> None:
        """The port has been left; returns once so many workers serve."""
        os.close(self._hold)
        await self._heard(_SERVES)

    async def _heard(self, word: bytes) -> None:
        count = 0
        while count < self._workers:
            await _readable(self._told)
            count += os.read(self._told, self._workers).count(word)

    # ---- the workers

    @property
    def over(self) -> bool:
        """Whether the greeter has left; for a worker that replaces another it has."""
        return bool(select.select([self._end], [], [], 0)[0])

    async def wait(self) -> None:
        """Wait until the greeter has left."""
        await _readable(self._end)

    def listening(self) -> None:
        """This worker listens, and answers what it gets."""
        self._say(_LISTENS)

    def serving(self) -> None:
        """This worker says SERVING."""
        self._say(_SERVES)

    def _say(self, word: bytes) -> None:
        with suppress(BrokenPipeError):  # a worker that replaces another has no greeter to tell
            os.write(self._tell, word)


async def _readable(pipe: int) -> None:
    """Wait until there is something to read, or the end."""
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Not in a thread: what cancels the wait could not end that.
    loop.add_reader(pipe, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(pipe)
