"""One server process, from listening to having drained."""

import asyncio
import importlib
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, TypeVar

from service import log
from service.config import Settings
from service.model import Model
from service.server import Server
from service.slots import Slots

T = TypeVar("T")

Open = Callable[[], AbstractAsyncContextManager[Model]]
"""Opens the model on the running event loop, and closes it."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """What `asyncio.run` does, on uvloop where that is installed: a chunk costs a tenth less on it."""
    new_loop = None
    with suppress(ModuleNotFoundError):
        new_loop = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)


async def serve(
    settings: Settings,
    open_model: Open,
    *,
    slots: Slots | None = None,
    listening: Callable[[int], object] = lambda _: None,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.

    `listening` is called with the port, `ready` once calls are answered. Raises SettingError.
    """
    server = Server(settings, slots)
    listening(await server.start())
    async with open_model() as model:
        signals = _Signals()
        await server.serve(model)
        ready()
        await signals.first.wait()
        stopping = asyncio.ensure_future(server.stop(settings.grace))
        hurrying = asyncio.ensure_future(signals.second.wait())
        await asyncio.wait((stopping, hurrying), return_when=asyncio.FIRST_COMPLETED)
        server.hurry()
        hurrying.cancel()
        await stopping
    log.say("stopped")


async def greet(settings: Settings, until: Callable[[], Awaitable[T]], listening: Callable[[int], object]) -> T:
    """Say NOT_SERVING on the port until those are there who will answer; gives what `until` gives."""
    server = Server(settings, Slots(slots=1, per_caller=0))
    listening(await server.start())
    result = await until()
    await server.leave()
    return result


class _Signals:
    """The first SIGTERM or SIGINT, and the second."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came)
        # The terminal, or the parent of this worker, is gone. The kernel may say so more than once.
        loop.add_signal_handler(signal.SIGHUP, self.first.set)

    def _came(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
