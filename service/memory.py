"""Giving memory back to the system.

What a large request took is free once its call has ended, but glibc keeps it for this process: tens of MB after one of
5 MB or of a hundred thousand small parts.
"""

import asyncio
import ctypes
from contextlib import suppress

_PAUSE_SECONDS = 0.5

_waiting: set[asyncio.TimerHandle] = set()
"""The next time, if there is one: calls that end together give back together."""

_trim = None
with suppress(OSError, TypeError, AttributeError):  # there is such a thing in glibc only
    _trim = ctypes.CDLL(None).malloc_trim


def give_back(_: object = None) -> None:
    """Soon, what is free by then. Takes a few milliseconds, in a thread."""
    if _trim is not None and not _waiting:
        loop = asyncio.get_running_loop()
        _waiting.add(loop.call_later(_PAUSE_SECONDS, _now, loop, _trim))


def _now(loop: asyncio.AbstractEventLoop, trim: "ctypes._NamedFuncPointer") -> None:
    _waiting.clear()
    loop.run_in_executor(None, trim, 0)
