"""What is counted of a server, and the port on which that is read."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, Self

from ..errors import reasons
from ..settings import Settings, bracketed
from ..telemetry import call_log
from ..telemetry.metrics import Metrics
from ..telemetry.watch import Watch
from .address import free, metrics_refusal
from .readings import Readings

_BACKLOG = 16


class Observed(NamedTuple):
    """To be made before the workers are forked, who count in the same memory and answer on the same port."""

    watch: Watch
    listening: socket.socket | None = None
    """None: nobody is to read them."""

    @classmethod
    def of(cls, settings: Settings, *, workers: int = 1) -> Self:
        """As the settings have it; it listens from here on. Raises SettingError."""
        metrics = Metrics(
            settings.telemetry_names,
            reasons=reasons(),
            fallback=settings.fallback_model,
            redis=bool(settings.redis_url),
            workers=workers,
        )
        if not settings.metrics_port:
            return cls(Watch(metrics))
        try:
            family, kind, protocol, _, address = free(settings.metrics_host, settings.metrics_port)
            listening = socket.socket(family, kind, protocol)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
        except OSError as error:
            raise metrics_refusal(settings, error) from error
        # Several processes wait for it: one that comes too late for a client must not wait there for another.
        listening.setblocking(False)
        call_log.say("metrics at http://%s:%d/metrics", bracketed(settings.metrics_host), settings.metrics_port)
        return cls(Watch(metrics), listening)

    @asynccontextmanager
    async def read(self, readings: Readings) -> AsyncIterator[None]:
        """Within, this process answers on the port, with `readings` beside what is counted."""
        if self.listening is None:
            yield
            return
        from ..telemetry.prometheus import served  # noqa: PLC0415 - only needed here

        async with served(self.watch.metrics.all, readings, self.listening):
            yield
