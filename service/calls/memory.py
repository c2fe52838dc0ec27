"""Giving memory back to the system.

What calls took is free once they have ended, but glibc keeps it for this process: tens of MB after one request of 5 MB,
or after some hundred streams.
"""

import asyncio
import ctypes
from contextlib import suppress
from weakref import WeakKeyDictionary

_PAUSE_SECONDS = 0.5
_LOOKS = 120

_waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, bool] = WeakKeyDictionary()
"""Event loops (outside of tests there is one) that wait for a pause; True if a call has ended meanwhile."""

_M_ARENA_MAX = -8  # malloc.h
_ARENAS = 2

_trim = _tune = None
with suppress(OSError, TypeError, AttributeError):  # only glibc has these two functions
    _trim, _tune = ctypes.CDLL(None).malloc_trim, ctypes.CDLL(None).mallopt


def share() -> None:
    """Have threads share memory. Each of gRPC's would get its own of glibc, and keep some of each large message.

    To be called before there are any. It costs nothing that could be measured.
    """
    if _tune is not None:
        _tune(_M_ARENA_MAX, _ARENAS)


def give_back(_: object = None) -> None:
    """Give back what is free in the next pause of half a second, or after a minute without one.

    To be called whenever something was let go of: while one waits, it costs next to nothing. Giving back takes
    milliseconds, in which all others who want memory wait, so it isn't done more often while streams run.
    """
    if _trim is None:
        return
    loop = asyncio.get_running_loop()
    again = loop in _waiting
    _waiting[loop] = again
    if not again:
        loop.call_later(_PAUSE_SECONDS, _look, loop, _trim, _LOOKS)


def _look(loop: asyncio.AbstractEventLoop, trim: "ctypes._NamedFuncPointer", looks: int) -> None:
    if _waiting[loop] and looks > 1:
        _waiting[loop] = False
        loop.call_later(_PAUSE_SECONDS, _look, loop, trim, looks - 1)
    else:
        del _waiting[loop]
        loop.run_in_executor(None, trim, 0)
