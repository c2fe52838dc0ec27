"""Several processes on one port: forked from one that has imported everything, replaced when they die.

The parent imports and watches; it never serves and never touches gRPC, which must not be forked once it runs. While it
imports, a greeter holds the port and answers health checks.
"""

import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

from service import address, log

# A worker that lived for less than this is not replaced at once, lest one that can't live is forked without end.
_SHORT_LIFE_SECONDS = 1.0
_PAUSE_SECONDS = 0.5

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


def possible() -> bool:
    """Whether this system can fork, and balances connections over processes that share a port."""
    return sys.platform == "linux"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def reserve(host: str, port: int) -> socket.socket:
    """Hold a port that workers then share, without listening on it. Raises OSError if somebody else has it."""
    # Nobody may have it yet: a stranger who shares the port would take some of our calls without a word.
    family, kind, protocol, _, bound = address.free(host, port)
    shared = socket.socket(family, kind, protocol)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind(bound)
    return shared


def fork(run: Callable[[], int]) -> int:
    """Fork a process that runs `run` and exits with what it returns; gives its id. To be called without threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _end_with(parent)
        code = run()
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with(parent: int) -> None:
    """Have this process drain when its parent dies, however that happens."""
    # Not SIGTERM: the kernel sends it once for each thread that the parent had, and a second SIGTERM means hurry.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
    if os.getppid() != parent:  # it died before that
        os.kill(os.getpid(), signal.SIGHUP)


class Workers:
    """Forks workers and keeps their number."""

    def __init__(self, work: Callable[[int], int], *, fatal: int) -> None:
        """`work` is run in each worker with its number and returns its exit code; `fatal` is one that ends them all."""
        self._work = work
        self._fatal = fatal
        self._running: dict[int, tuple[int, float]] = {}
        """Each worker's number and time of birth, by process id."""
        self._stopping = False

    def run(self, count: int) -> int:
        """Keep `count` workers running until SIGTERM or SIGINT, which all of them get; returns the exit code."""
        for number in _SIGNALS:
            signal.signal(number, self._pass_on)
        for worker in range(count):
            self._start(worker)
        code = 0
        while self._running:
            pid, status = os.wait()
            if pid not in self._running:
                continue  # a child of another kind
            worker, born = self._running.pop(pid)
            if self._stopping:
                continue
            ended = os.waitstatus_to_exitcode(status)
            if ended == self._fatal:
                code = ended
                self._pass_on()
                continue
            log.say("worker %d ended with %d; starting another", worker, ended)
            if time.monotonic() - born < _SHORT_LIFE_SECONDS:
                time.sleep(_PAUSE_SECONDS)
            self._start(worker)
        return code

    def _start(self, worker: int) -> None:
        # A signal between the fork and the note of it would never reach the new worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        if not self._stopping:
            pid = fork(lambda: self._work(worker))
            self._running[pid] = worker, time.monotonic()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _pass_on(self, *_: object) -> None:
        # Not the same signal twice: of two that wait to be noticed the kernel delivers one.
        number = signal.SIGINT if self._stopping else signal.SIGTERM
        self._stopping = True
        for pid in self._running:
            os.kill(pid, number)
