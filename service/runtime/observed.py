"""What is told of a server: metrics, and the port on which they are read; traces, where they are sent."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Self

from ..errors import reasons
from ..settings import Settings
from ..telemetry import call_log
from ..telemetry.metrics import Metrics
from ..telemetry.watch import Watch
from .address import free, metrics_refusal
from .readings import Readings

if TYPE_CHECKING:  # of an extra
    from ..telemetry.traces import Traces

_BACKLOG = 16

_LAST_SPANS_SECONDS = 1.0
"""For so long a process that ends waits until its last spans are taken."""


class Observed(NamedTuple):
    """To be made before the workers are forked, who count in the same memory and answer on the same port."""

    watch: Watch
    listening: socket.socket | None = None
    """Where the metrics are read; None: nowhere."""
    traced: Mapping[str, str] | None = None
    """Models, as `Traces` wants them; None: no traces are sent."""

    @classmethod
    def of(cls, settings: Settings, *, traces: bool = False, workers: int = 0) -> Self:
        """As the settings have it; takes the port. `traces`: whether they are sent. Raises SettingError.

        `workers` as `Metrics` has them.
        """
        traced = settings.telemetry_names if traces else None
        metrics = Metrics(
            settings.telemetry_names,
            reasons=reasons(),
            fallback=settings.fallback_model,
            redis=bool(settings.redis_url),
            workers=workers,
        )
        if not settings.metrics_port:
            return cls(Watch(metrics), traced=traced)
        try:
            family, kind, protocol, _, address = free(settings.metrics_host, settings.metrics_port)
            listening = socket.socket(family, kind, protocol)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError as error:
            raise metrics_refusal(settings, error) from error
        # Several processes wait for it: one that comes too late for a client must not wait there for another.
        listening.setblocking(False)
        call_log.say("metrics at http://%s/metrics", settings.metrics_address)
        return cls(Watch(metrics), listening, traced)

    @asynccontextmanager
    async def opened(self, readings: Readings) -> AsyncIterator[None]:
        """Within, this process sends traces, and answers on the port, with `readings` beside what is counted."""
        async with AsyncExitStack() as stack:
            if self.traced is not None:
                from ..telemetry.traces import Traces  # noqa: PLC0415 - of an extra, and only needed here

                traces = self.watch.traces = Traces(self.traced)
                stack.push_async_callback(_closed, traces)
            if self.listening is not None:
                from ..telemetry.prometheus import served  # noqa: PLC0415 - only needed here

                # Not before: a client is to be refused while nobody answers, and not to wait.
                self.listening.listen(_BACKLOG)
                await stack.enter_async_context(served(self.watch.metrics.all, readings, self.listening))
            yield


async def _closed(traces: "Traces") -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_LAST_SPANS_SECONDS):
            await asyncio.to_thread(traces.close)
