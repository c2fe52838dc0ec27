"""`python -m tests.faults.launcher [--gc-off] FLAGS`: the server as it is, which also answers SIGUSR1 and SIGUSR2.

On the first it writes how many asyncio tasks there are, on the second for how long its event loop was blocked since it
was ready, in milliseconds: nobody outside of a process can tell. The latter it also writes when it ends.
"""

import asyncio
import gc
import os
import signal
import sys
from types import FrameType

from service.__main__ import main  # first: what libraries read when they are imported is set there

# isort: split
from service.generation.provider import Provider
from service.runtime import process
from service.runtime.server import Server
from tests.loop_watch import LoopWatch

watch = LoopWatch()


def tell_tasks(_number: int, _frame: FrameType | None) -> None:
    os.write(2, f"tasks={len(asyncio.all_tasks())}\n".encode())


def tell_blocked(_number: int = 0, _frame: FrameType | None = None) -> None:
    os.write(2, f"blocked={1000 * watch.longest:.3f}\n".encode())


class WatchedServer(Server):
    """Has its loop watched from the moment that it answers; before that it imports."""

    async def announce_serving(self, model: Provider) -> None:
        watch.start()
        await super().announce_serving(model)

    async def stop(self, grace: float) -> None:
        await super().stop(grace)
        tell_blocked()


if __name__ == "__main__":
    setattr(process, "Server", WatchedServer)  # noqa: B010 - the one that it makes, and does not export
    flags = sys.argv[1:]
    if flags[:1] == ["--gc-off"]:
        gc.disable()
        del flags[0]
    signal.signal(signal.SIGUSR1, tell_tasks)
    signal.signal(signal.SIGUSR2, tell_blocked)
    sys.exit(main(flags))
