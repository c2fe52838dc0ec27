"""Giving memory back to the system.

What calls took is free once they have ended, but glibc keeps it for this process: tens of MB after one request of 5 MB,
or after some hundred streams.
"""

import asyncio
import ctypes
from contextlib import suppress

_PAUSE_SECONDS = 0.5

_waiting: set[asyncio.TimerHandle] = set()
"""The next time, if there is one."""

_M_ARENA_MAX = -8  # malloc.h
_ARENAS = 2

_trim = _tune = None
with suppress(OSError, TypeError, AttributeError):  # there are such things in glibc only
    _trim, _tune = ctypes.CDLL(None).malloc_trim, ctypes.CDLL(None).mallopt


def share() -> None:
    """Have threads share memory. Each of gRPC's would get its own of glibc, and keep some of each large message.

    To be called before there are any. It costs nothing that could be measured.
    """
    if _tune is not None:
        _tune(_M_ARENA_MAX, _ARENAS)


def give_back(_: object = None) -> None:
    """Give back what is free, once nobody has asked for it again for half a second: it takes a few milliseconds."""
    if _trim is None:
        return
    while _waiting:
        _waiting.pop().cancel()
    loop = asyncio.get_running_loop()
    _waiting.add(loop.call_later(_PAUSE_SECONDS, _now, loop, _trim))


def _now(loop: asyncio.AbstractEventLoop, trim: "ctypes._NamedFuncPointer") -> None:
    _waiting.clear()
    loop.run_in_executor(None, trim, 0)
