"""What stops a process: signals, and the orders of its parent.

A worker gets most signals together with its parent: from a terminal, a service manager, `kill` of a process group. So a
signal tells a worker to stop and no more, however often it comes. Only the parent tells one stop from two, and orders.
"""

import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What stops a server. A second SIGTERM or SIGINT makes it hurry; SIGHUP, of a terminal that closes, never does."""

ECHO_SECONDS = 0.01
"""Signals within that time are one stop: timeout(1) and other wrappers send it to a process and to its group."""


def heeded() -> tuple[signal.Signals, ...]:
    """Those of `SIGNALS` that stop this process: nohup(1) has SIGHUP ignored, and it may mean "read the files anew"."""
    deaf = signal.getsignal(signal.SIGHUP) in (signal.SIG_IGN, _ask_anew)
    return tuple(number for number in SIGNALS if not (deaf and number is signal.SIGHUP))


def at_once(clean_up: Callable[[], object] = lambda: None, *, hang_up_waits: bool = False) -> None:
    """Until others take the signals over: clean up, and end this process with 0, since nothing runs yet.

    `hang_up_waits`: SIGHUP does nothing before `hang_up` tells what it means.

    Process 1 of a container loses signals that have no handler. And an exception won't do: it would come in the middle
    of an import, where libraries catch it.
    """

    def end_now(*_: object) -> None:
        clean_up()
        os._exit(0)  # at once: the code that is interrupted here may hold what a flush would wait for

    for number in heeded():
        waits = hang_up_waits and number is signal.SIGHUP
        signal.signal(number, (lambda *_: _hung_up.append(True)) if waits else end_now)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


_hung_up: list[bool] = []
"""Holds something once SIGHUP has come, before it was known what it means."""


_asked_anew = memoryview(mmap.mmap(-1, 8)).cast("q")
"""Shared by all processes of a server: it may be any of them, or all, that SIGHUP is sent to."""


def _ask_anew(*_: object) -> None:
    _asked_anew[0] = time.monotonic_ns()


def asked_anew() -> int:
    """Another number whenever SIGHUP has come to this server, and means "read the files anew"."""
    return int(_asked_anew[0])


def hang_up(*, reads: bool) -> None:
    """Tell what SIGHUP means: "read the files anew", or "stop", which it did as well if it has come already.

    Files are read after this: so there is nothing to do for the first, if it has come.
    """
    if reads:
        signal.signal(signal.SIGHUP, _ask_anew)
    elif signal.SIGHUP in heeded():
        signal.signal(signal.SIGHUP, lambda *_: os._exit(0))
        if _hung_up:
            os._exit(0)


def end(code: int) -> NoReturn:
    """End this process without what Python does at the end: it would give signals their default action before."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


class Count:
    """Tells the first stop from the second."""

    def __init__(self) -> None:
        self.stop = self.hurry = False
        self._asked = False

    def add(self, numbers: Collection[int]) -> None:
        """These signals came at once."""
        numbers = set(numbers) & set(heeded())
        self.stop |= bool(numbers)
        if numbers - {signal.SIGHUP}:
            self.hurry, self._asked = self._asked, True


class Orders:
    """Two pipes that all children read: one ends when they are to stop, the other holds a byte when they are to hurry.

    The kernel closes the first when the parent dies, however that happens, so its children drain then. Pipes reach
    children that are still starting, and need no process ids, which may be somebody else's by now.
    """

    def __init__(self) -> None:
        """To be made before the children are forked."""
        self.stop_fd, self._hold = os.pipe()
        """Readable from `stop` on, or from the parent's death on."""
        self.hurry_fd, self._tell = os.pipe()
        """Readable from `hurry` on. Nobody reads the byte, so it stays for every child."""
        self._stopped = self._hurried = False

    def stop(self) -> None:
        """The parent: have all children stop once what they do has ended. A second time it does nothing."""
        if not self._stopped:
            self._stopped = True
            os.close(self._hold)

    def hurry(self) -> None:
        """The parent: have all children end at once. A second time it does nothing."""
        if not self._hurried:
            self._hurried = True
            os.write(self._tell, b"!")

    def obey(self) -> None:
        """A child, once it has been forked: let go of the end whose closing means stop."""
        self.stop()
