"""How long a stop takes at most, and a call may: who deploys it has to have patience for both."""

import argparse
from collections.abc import Iterable

from service.admission.callers import Callers
from service.runtime import observed, server
from service.settings import Settings
from tokenwire.cli.running import envoy_process

BESIDE_SECONDS = 5
"""Signals that are waited for, a process that ends on a busy machine."""


def server_takes(settings: Settings) -> float:
    """Seconds from SIGTERM until a server has ended by itself, at most."""
    last = server._FAREWELL_SECONDS + server._REDIS_SECONDS + observed._LAST_SPANS_SECONDS
    return settings.drain_delay + settings.grace + last


def edge_takes(options: argparse.Namespace) -> float:
    """Seconds from SIGTERM until an edge has ended, at most: it kills an Envoy that still runs then."""
    total: float = options.drain_delay + options.grace + envoy_process.STOP_SECONDS
    return total


def hold(settings: Settings, *graces: float, callers: Iterable[str] = ()) -> None:
    """Fail if a stop may cut a call that was promised more time: by the server, or by one of these callers files.

    `graces` are those of whatever stands before the server.
    """
    assert settings.default_deadline <= settings.max_deadline <= min((settings.grace, *graces))
    for text in callers:
        told = Callers.parse(text, "callers.toml")
        for caller in (told.defaults, *told.by_name.values()):
            # None: as the server has it. More than that would be promised and not kept.
            assert (caller.longest_deadline or 0) <= settings.max_deadline, caller.name
