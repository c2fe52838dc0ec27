"""One server process, from listening to having drained."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from service import log
from service.config import Settings
from service.model import Model
from service.server import Server
from service.slots import Slots

T = TypeVar("T")

Open = Callable[[], AbstractAsyncContextManager[Model]]
"""Opens the model on the running event loop, and closes it."""


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
        await server.serve(model)
        ready()
        await _drain_on_signal(server, settings.grace)
    log.say("stopped")


async def greet(settings: Settings, until: Callable[[], Awaitable[T]], listening: Callable[[int], object]) -> T:
    """Say NOT_SERVING on the port until those are there who will answer; gives what `until` gives."""
    server = Server(settings, Slots(slots=1, per_caller=0))
    listening(await server.start())
    result = await until()
    await server.leave()
    return result


async def _drain_on_signal(server: Server, grace: float) -> None:
    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, first.set)  # the terminal, or the parent of this worker, is gone
    await first.wait()
    drained = asyncio.ensure_future(server.stop(grace))
    hurried = asyncio.ensure_future(second.wait())
    await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
    if hurried.done():
        await server.stop(0)
    hurried.cancel()
    await drained
