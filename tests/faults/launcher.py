"""`python -m tests.faults.launcher FLAGS`: the server as it is, which tells of its event loop.

A process that serves tells once which loop it is. On SIGUSR1 it writes how many asyncio tasks there are, on SIGUSR2
and when it has drained for how long its loop was blocked since it was ready: nobody outside of it can tell. Servers
of the fork server do the same.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from service.__main__ import main  # first: what libraries read when they are imported is set there

# isort: split
from service.generation.provider import Provider
from service.runtime import process
from service.runtime.server import Server
from tests.loop_watch import LoopWatch

watch = LoopWatch()


def tell(name: str, value: object) -> None:
    """One line, `NAME=VALUE PID`, with the process id that others see, in whatever namespace this process is."""
    os.write(2, f"{name}={value} {Path('/proc/self').readlink()}\n".encode())


def tell_tasks(_number: int, _frame: FrameType | None) -> None:
    """But for those by which gRPC waits for the next call: between two calls there is one less."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    count = sum(not name.startswith("AioServer._request_") for name in names)
    os.write(2, f"tasks={count}\n".encode())


def tell_blocked(_number: int = 0, _frame: FrameType | None = None) -> None:
    """In milliseconds; "unwatched" if it doesn't serve."""
    tell("blocked", f"{1000 * watch.longest:.3f}" if watch.started else "unwatched")


class WatchedServer(Server):
    """Has its loop watched from the moment that it answers; before that it imports."""

    async def announce_serving(self, model: Provider) -> None:
        if not watch.started:
            tell("loop", type(asyncio.get_running_loop()).__module__.partition(".")[0])
            watch.start()
        await super().announce_serving(model)

    async def stop(self, grace: float) -> None:
        await super().stop(grace)
        tell_blocked()


def prepare() -> None:
    """Have the server that this process, or a child of it, makes be watched, and the signals answered."""
    setattr(process, "Server", WatchedServer)  # noqa: B010 - the one that it makes, and does not export
    signal.signal(signal.SIGUSR1, tell_tasks)
    signal.signal(signal.SIGUSR2, tell_blocked)


if __name__ == "__main__":
    prepare()
    sys.exit(main(sys.argv[1:]))
