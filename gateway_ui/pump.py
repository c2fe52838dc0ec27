"""Reads an answer in a thread, so that the page can look up between two pieces."""

import threading
import time
from collections import deque
from dataclasses import dataclass

from tokenwire import Answer
from tokenwire.v1.generation_service_pb2 import GenerateResponse

# So many messages wait for a slow reader; beyond it gRPC's flow control holds the service back.
_CAPACITY = 256


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message and when it came, in seconds of time.monotonic()."""

    message: GenerateResponse
    at: float


class Pump:
    """Owns an answer: to be closed by the code that drops it."""

    def __init__(self, answer: Answer, *, capacity: int = _CAPACITY) -> None:
        self._answer = answer
        self._capacity = capacity
        self._changed = threading.Condition()
        self._waiting: deque[Arrival] = deque()
        self._ended = False
        self._closed = False
        self._error: Exception | None = None
        self._release: threading.Timer | None = None
        self.thread = threading.Thread(target=self._run, name="tokenwire-pump", daemon=True)
        self.thread.start()

    def take(self, wait: float) -> list[Arrival] | None:
        """All that has come, after at most `wait` seconds; empty: nothing yet. None: it has ended well.

        Raises what ended it otherwise, once everything before has been taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended, wait)
            arrivals = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
            if arrivals or not self._ended:
                return arrivals
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        """Cancel the answer and let the thread end. As often as you like."""
        self._answer.cancel()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close_unless_kept(self, seconds: float) -> None:
        """Close it then, unless `keep` is called before."""
        self.keep()
        self._release = threading.Timer(seconds, self.close)
        self._release.daemon = True
        self._release.start()

    def keep(self) -> None:
        """Take it over from the run of the script that was about to leave it."""
        if self._release is not None:
            self._release.cancel()
            self._release = None

    def _run(self) -> None:
        try:
            with self._answer:
                for message in self._answer:
                    self._put(Arrival(message, time.monotonic()))
        except Exception as error:  # noqa: BLE001  # raised again where it is taken
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, arrival: Arrival) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < self._capacity or self._closed)
            self._waiting.append(arrival)
            self._changed.notify_all()
