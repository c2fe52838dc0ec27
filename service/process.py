"""One server process, from listening to having drained."""

import asyncio
import importlib
import signal
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, TypeVar

from service import log
from service.config import Settings
from service.handover import Handover
from service.model import Model
from service.server import Server
from service.slots import Slots

T = TypeVar("T")

Open = Callable[[], AbstractAsyncContextManager[Model]]
"""Opens the model on the running event loop, and closes it."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """What `asyncio.run` does, on uvloop where that is installed, which makes a chunk a little cheaper."""
    new_loop = None
    with suppress(ModuleNotFoundError):
        new_loop = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)


async def serve(
    settings: Settings,
    open_model: Open,
    *,
    listening: Callable[[int], object] = lambda _: None,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends at once.

    `listening` is called with the port, `ready` once calls are answered. Raises SettingError.
    """
    server = Server(settings)
    listening(await server.start())
    async with open_model() as model:
        signals = _Signals()
        await server.serve(model)
        ready()
        await _drained(server, signals, settings.grace)
    log.say("stopped")


async def work(settings: Settings, open_model: Open, slots: Slots, handover: Handover) -> None:
    """The same in one of several processes that share the port and `slots`, and take it over from the greeter."""
    server = Server(settings, slots)
    async with open_model() as model:
        signals = _Signals()
        server.answer(model)
        if handover.over:
            await server.serve(model)
        await server.start()
        handover.listening()
        waiting = [asyncio.ensure_future(one) for one in (handover.wait(), signals.first.wait())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()
        if not signals.first.is_set():
            await server.serve(model)
            handover.serving()
        await _drained(server, signals, settings.grace)
    log.say("stopped")


async def _drained(server: Server, signals: "_Signals", grace: float) -> None:
    """Wait for a signal, then for all that runs to end."""
    await signals.first.wait()
    stopping = asyncio.ensure_future(server.stop(grace))
    hurrying = asyncio.ensure_future(signals.second.wait())
    await asyncio.wait((stopping, hurrying), return_when=asyncio.FIRST_COMPLETED)
    server.hurry()
    hurrying.cancel()
    await stopping


async def greet(settings: Settings, handover: Handover, listening: Callable[[int], object]) -> None:
    """Say NOT_SERVING on the port until those listen who will answer; then leave it, and every connection."""
    server = Server(settings, Slots(slots=1, per_caller=0))
    listening(await server.start())
    await handover.all_listen()
    await server.leave()


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
