"""Several processes on one port: forked from one that has imported everything, replaced when they die.

The parent imports and watches; it never serves and never touches gRPC, which must not be forked once it runs. It has no
thread but its own: `__main__` keeps libraries from starting any. While it imports, a greeter holds the port and answers
health checks.
"""

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ..telemetry import call_log
from . import address, stop
from .stop import Orders

# A worker that lived for less than this is not replaced at once: one that can't live would be forked without end.
_SHORT_LIFE_SECONDS = 1.0
_PAUSE_SECONDS = 0.5

# So many workers may end before the first serves; then it is no accident.
_STILLBORN = 3

EXIT_FAILED = 1


def possible() -> bool:
    """Whether this system can fork, and balances connections over processes that share a port."""
    return sys.platform == "linux"


def reserve(host: str, port: int) -> socket.socket:
    """Hold a port that workers then share, without listening on it. Raises OSError if somebody else has it."""
    # Nobody may have it yet: a stranger who shares the port would take some of our calls without a word.
    family, kind, protocol, _, bound = address.free(host, port)
    shared = socket.socket(family, kind, protocol)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind(bound)
    return shared


def fork(run: Callable[[], int], orders: Orders) -> int:
    """Fork a process that runs `run` and exits with what it returns; gives its id. Raises OSError.

    To be called without threads: a lock that another thread holds would stay locked in the child. The signals that stop
    a process are blocked in the child until it has a `stop.Stop`, so that none is lost and none kills it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stop.SIGNALS)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (*stop.heeded(), signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        orders.obey()
        code = run()
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
    finally:
        stop.end(code)


def no_process(name: str, error: OSError) -> str:
    """What to say where `fork` has raised."""
    return f"{name} can't be started: {error.strerror}. Raise the limit on processes (ulimit -u, pids.max)"


class Workers:
    """Forks workers, keeps their number, and tells them to stop."""

    def __init__(
        self, work: Callable[[int], int], orders: Orders, *, fatal: int, replaced: Callable[[], object] = lambda: None
    ) -> None:
        """`work` is run in each worker with its number and returns its exit code; `fatal` is one that ends them all.

        `replaced` is called for each that ends by itself and gets a successor.
        """
        self._work = work
        self._replaced = replaced
        self._orders = orders
        self._fatal = fatal
        self._running: dict[int, tuple[int, float]] = {}
        """Each worker's number and time of birth, by process id."""
        self._missing: dict[int, float] = {}
        """The workers to be started, and from when on."""
        self._greeter = 0
        """Its process id; 0 once it has ended."""
        self._serving = False
        """Whether it has handed the port over."""
        self._stillborn = 0
        """How many workers have ended before that."""
        self._count = stop.Count()
        self._stopped = False
        self._killed: set[int] = set()
        """Process ids of workers that were ended from here: that they end is no news."""
        self._code = 0

    def run(self, count: int, greeter: int) -> int:
        """Keep `count` workers running until a signal stops them; returns the exit code once all have ended.

        It is 0 if they stopped as they were told. `greeter` is a child that ends once they serve.
        """
        heard, tell = os.pipe()
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        for number in (*stop.heeded(), signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._greeter = greeter
        self._missing = dict.fromkeys(range(count), 0.0)
        self._reap()  # the greeter may have ended before that
        while True:
            self._start()
            if not (self._running or self._missing or self._greeter):
                return self._code
            self._listen(heard)
            self._reap()

    def _start(self) -> None:
        """Start the missing workers for which it is time."""
        now = time.monotonic()
        for worker in [worker for worker, moment in self._missing.items() if moment <= now]:
            try:
                pid = fork(partial(self._work, worker), self._orders)
            except OSError as error:
                reason = no_process(f"worker {worker}", error)
                if not self._serving:
                    return self._give_up(reason, self._fatal)
                call_log.fail("%s; trying again", reason)
                self._missing[worker] = now + _PAUSE_SECONDS
            else:
                del self._missing[worker]
                self._running[pid] = worker, now
        return None

    def _listen(self, heard: int) -> None:
        """Wait for signals, or until it is time to start a worker."""
        seconds = max(0, min(self._missing.values()) - time.monotonic()) if self._missing else None
        if select.select([heard], [], [], seconds)[0]:
            time.sleep(stop.ECHO_SECONDS)
            self._count.add(os.read(heard, select.PIPE_BUF))
            if self._count.stop:
                self._stop()
            if self._count.hurry:
                self._orders.hurry()

    def _stop(self) -> None:
        self._stopped = True
        self._missing.clear()
        self._orders.stop()

    def _give_up(self, reason: str, code: int) -> None:
        call_log.fail("%s; giving up", reason)
        self._code = code if code == self._fatal else EXIT_FAILED
        if not self._serving:  # there is nothing to drain, and gRPC may hang where it can't have what it needs
            for pid in self._running:
                os.kill(pid, signal.SIGKILL)
                self._killed.add(pid)
        self._stop()

    def _reap(self) -> None:
        """Take note of the children that have ended; those of process 1 may be anybody's."""
        with suppress(ChildProcessError):  # there are none
            while (child := os.waitpid(-1, os.WNOHANG))[0]:
                self._ended(child[0], os.waitstatus_to_exitcode(child[1]))

    def _ended(self, pid: int, code: int) -> None:
        if pid == self._greeter:
            self._greeter = 0
            self._serving = code == 0
            if code and not self._stopped:
                self._give_up(f"the process that greets callers during the start ended with {code}", code)
        if pid not in self._running:
            return
        worker, born = self._running.pop(pid)
        if self._stopped:
            if code and pid not in self._killed:
                call_log.fail("worker %d ended with %d instead of draining", worker, code)
                self._code = self._code or EXIT_FAILED
            return
        ended = f"worker {worker} ended with {code}"
        self._stillborn += not self._serving
        if code == self._fatal:
            self._give_up(ended, code)
        elif not self._serving and self._stillborn >= _STILLBORN:
            self._give_up(f"{ended} before it served, as {_STILLBORN - 1} before", EXIT_FAILED)
        else:
            call_log.fail("%s; starting another", ended)
            self._replaced()
            now = time.monotonic()
            self._missing[worker] = now + (_PAUSE_SECONDS if now - born < _SHORT_LIFE_SECONDS else 0)
