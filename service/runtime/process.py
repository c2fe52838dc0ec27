"""One server process, from listening to having drained."""

import asyncio
import importlib
import signal
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import Any, NoReturn

from ..admission.shared import Shared
from ..generation.provider import Provider
from ..settings import SettingError, Settings
from ..telemetry import call_log
from . import scheduling, stop, tls
from .handover import Handover
from .observed import Observed
from .secured import Secured
from .server import Server

_THREADS = 18  # gRPC's, some of which it starts when it is asked first, asyncio's, and those of metrics and traces

Open = Callable[[], AbstractAsyncContextManager[Provider]]
"""Opens the model on the running event loop, and closes it."""


def run(main: Coroutine[Any, Any, None], *, processes: int = 1) -> NoReturn:
    """Run `main`, then end this process with 0. Raises SettingError if there can't be so many processes like this one.

    On uvloop, where that is installed: it makes a chunk a little cheaper.
    """
    _need_threads(processes)
    new_loop = None
    with suppress(ModuleNotFoundError):
        new_loop = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        with call_log.never_waiting():
            runner.run(main)
        stop.end(0)  # before the loop closes: it would give the signals their default action


def _need_threads(processes: int) -> None:
    """Raise SettingError if so many processes may not have the threads of gRPC: it would hang, and then abort."""
    enough = threading.Event()
    probes = [threading.Thread(target=enough.wait, daemon=True) for _ in range(_THREADS * processes)]
    try:
        for probe in probes:
            probe.start()
    except RuntimeError as error:
        raise SettingError(
            f"the system refuses a thread: a server process needs {_THREADS}. "
            "Raise the limit on processes and threads (ulimit -u, pids.max)"
        ) from error
    finally:
        enough.set()
        for probe in probes:
            if probe.ident is not None:
                probe.join()


class _Stop:
    """On the running event loop: whether this process is to stop, and whether to hurry."""

    def __init__(self, orders: stop.Orders | None = None) -> None:
        """Take the signals over. Without `orders` there is no parent, and signals are counted here."""
        self.asked, self.hurried = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._count = stop.Count()
        self._new: set[int] = set()
        for number in stop.heeded():
            if orders is None:
                self._loop.add_signal_handler(number, self._came, number)
            else:
                self._loop.add_signal_handler(number, self.asked.set)
        if orders is not None:
            self._follow(orders.stop_fd, self.asked)
            self._follow(orders.hurry_fd, self.hurried)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop.SIGNALS)

    def _follow(self, pipe: int, event: asyncio.Event) -> None:
        def readable() -> None:
            self._loop.remove_reader(pipe)  # it stays readable
            event.set()

        self._loop.add_reader(pipe, readable)

    def _came(self, number: int) -> None:
        if not self._new:
            self._loop.call_later(stop.ECHO_SECONDS, self._settle)
        self._new.add(number)

    def _settle(self) -> None:
        self._count.add(self._new)
        self._new.clear()
        self.asked.set()
        if self._count.hurry:
            self.hurried.set()


def _server(
    settings: Settings, shared: Shared | None, secured: Secured | None, observed: Observed | None = None
) -> Server:
    """The one of this process, which starts no other process any more where it serves TLS."""
    if settings.scheduling == "batch":
        scheduling.batch()  # before gRPC's threads are started
    if settings.tls_certificate:
        tls.forbid_processes()
    return Server(settings, shared, secured, observed.watch if observed is not None else None)


async def serve(
    settings: Settings,
    open_model: Open,
    secured: Secured | None = None,
    observed: Observed | None = None,
    *,
    listening: Callable[[int], object] = lambda _: None,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Serve until a signal stops it, then drain; a second SIGTERM or SIGINT ends at once.

    `listening` is called with the port, `ready` once calls are answered. Raises SettingError.
    """
    observed = observed or Observed.of(settings)
    server = _server(settings, None, secured, observed)
    listening(await server.start())
    async with observed.opened(server.readings), open_model() as model:
        ending = _Stop()
        await server.announce_serving(model)
        ready()
        await _drained(server, ending, settings.grace)
    call_log.say("stopped")


async def work(
    settings: Settings,
    open_model: Open,
    shared: Shared,
    handover: Handover,
    orders: stop.Orders,
    *,
    secured: Secured | None = None,
    observed: Observed,
) -> None:
    """Serve as one of several processes that share counts and the port, which they take over from the greeter."""
    ending = _Stop(orders)
    if secured is not None:
        secured.identity.refresh()  # this may be a worker that takes another's place
    server = _server(settings, shared, secured, observed)
    async with observed.opened(server.readings), open_model() as model:
        server.use(model)
        over = handover.over
        if over:
            await server.announce_serving(model)
        await server.start()
        if over:
            call_log.say("serving, in place of the worker that ended")
        handover.listening()
        if over or await _unless(ending, handover.wait()):
            await server.announce_serving(model)
            handover.serving()
        await _drained(server, ending, settings.grace)
    call_log.say("stopped")


async def _unless(ending: _Stop, waiting: Coroutine[Any, Any, None]) -> bool:
    """Wait, unless this process is to stop; False if it is."""
    tasks = [asyncio.ensure_future(one) for one in (waiting, ending.asked.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    return not ending.asked.is_set()


async def _drained(server: Server, ending: _Stop, grace: float) -> None:
    """Wait until this process is to stop, then for all that runs to end."""
    await ending.asked.wait()
    stopping = asyncio.ensure_future(server.stop(grace))
    hurrying = asyncio.ensure_future(ending.hurried.wait())
    await asyncio.wait((stopping, hurrying), return_when=asyncio.FIRST_COMPLETED)
    server.hurry()
    hurrying.cancel()
    await stopping


async def greet(
    settings: Settings,
    handover: Handover,
    orders: stop.Orders,
    *,
    secured: Secured | None = None,
    listening: Callable[[int], object],
    ready: Callable[[], object],
) -> None:
    """Say NOT_SERVING on the port until those listen who will answer; then leave it, and every connection.

    `listening` and `ready` as for `serve`. Raises SettingError.
    """
    ending = _Stop(orders)
    # It answers nobody, so nobody has to say who it is; and it tells its schema to nobody who would have to.
    tells = settings.reflection and not settings.asks_who
    nobody: dict[str, Any] = dict.fromkeys(("api_keys", "callers", "redis_url", "redis_password_file"), "")
    open_to_all = replace(settings, **nobody, insecure=True, reflection=tells, metrics_port=0, scheduling="normal")
    server = _server(
        open_to_all, Shared.of(slots=1, per_caller=0), secured.open_to_all() if secured is not None else None
    )
    listening(await server.start())
    await _unless(ending, handover.all_listen())
    await server.leave()
    if not ending.asked.is_set() and await _unless(ending, handover.leave()):
        ready()
