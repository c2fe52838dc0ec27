"""Metrics as Prometheus reads them, on a port of their own. The only file that knows prometheus_client.

Each process answers for all of them, since all count in memory that they share; so workers share this port as they
share the other one, and there is always one that answers.
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .numbers import Number, Reading, Sample

_PATIENCE_SECONDS = 3.0
"""For a client that connects, and for what only the event loop knows."""


class _Families(Collector):
    def __init__(self, numbers: Iterable[Number], read: Callable[[], Iterable[Reading]]) -> None:
        self._numbers = numbers
        self._read = read
        self._loop = asyncio.get_running_loop()

    def describe(self) -> Iterable[Metric]:
        """Nothing: it would be asked for all of it once more, when it is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """On the thread that answers; what only the event loop may look at is looked at there."""

        async def read() -> list[Reading]:
            return list(self._read())

        readings = asyncio.run_coroutine_threadsafe(read(), self._loop).result(_PATIENCE_SECONDS)
        return families(self._numbers, readings)


def families(numbers: Iterable[Number], readings: Iterable[Reading]) -> Iterator[Metric]:
    """All of it, as prometheus_client has it."""
    for number in numbers:
        yield _family(number.kind, number.name, number.text, number.labels, number.samples())
    for name, text, labels, samples in readings:
        yield _family("gauge", name, text, labels, samples)


def _family(kind: str, name: str, text: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> Metric:
    if kind == "histogram":
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for labelled, value, buckets in samples:
            histogram.add_metric(labelled, [(_bound(bound), count) for bound, count in buckets], value)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, text, labels=labels)
    for sample in samples:
        family.add_metric(sample.labels, sample.value)
    return family


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(bound)


class _Server(WSGIServer):
    """Answers one client after the other: there are few, and a thread for each could be any number."""

    def __init__(self, listening: socket.socket) -> None:
        host, port = listening.getsockname()[:2]
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = host, port
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignored: a client that leaves in the middle needs no line in the log."""


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
        """Ignored: Prometheus asks every few seconds, and no request needs a line in the log."""


@asynccontextmanager
async def served(
    numbers: Iterable[Number], read: Callable[[], Iterable[Reading]], listening: socket.socket
) -> AsyncIterator[None]:
    """Within, answer each client with the numbers, and with what `read` gives on the running event loop.

    Other processes may wait on the same socket, which doesn't block; it stays open.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(numbers, read))
    server = _Server(listening)
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, daemon=True, name="metrics").start()
    try:
        yield
    finally:
        await asyncio.to_thread(server.shutdown)
