"""An answer that is being written: one thread reads it, any number of tabs look on."""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from tokenwire import Answer, InvalidRequestError, TokenwireError

from .conversation import UNSEEN, UNSEEN_NOT_BEGUN, Arrival, Exchange

# A page that is loaded anew is back by then, also on a phone. Nobody reads on otherwise, and tokens cost money.
_ALONE_SECONDS = 5.0

# A tab of its browser may show another conversation for so long, until the answer is given up all the same.
_ELSEWHERE_SECONDS = 600.0

# What has come is kept so often: so much of it can be lost with this process, if it doesn't end in order.
_SAVE_SECONDS = 1.0

# A service that is starting is asked again for so long. Until then it has asked no model.
_START_SECONDS = 60.0

# Where it doesn't say when it is to be asked again.
_MOMENT_SECONDS = 1.0

_BUG = "The page has made a mistake, which its log tells. What you see is incomplete."


_ALL: weakref.WeakSet["Live"] = weakref.WeakSet()


def save_all() -> None:
    """Save what has come of each answer that is being written: this process ends."""
    for live in list(_ALL):
        live.save()


class Live:
    """Reads an answer into its exchange to the end, as long as somebody looks on, or may come back.

    `ask` asks for it, and once more where the service is still starting.

    Once nobody has looked for `alone` seconds, and the page is `open_elsewhere` no more or has been for too long, the
    answer is cancelled and marked as stopped. `save` is called within a second of whatever comes, by a thread of its
    own since a disk may be slow, and in the end. `then` is called behind that, unless the answer was given up so: with
    whether the service itself has gone away.
    """

    def __init__(
        self,
        exchange: Exchange,
        ask: Callable[[], Answer],
        save: Callable[[], object],
        *,
        alone: float = _ALONE_SECONDS,
        open_elsewhere: Callable[[], bool] = lambda: False,
        elsewhere: float = _ELSEWHERE_SECONDS,
        then: Callable[[bool], object] = lambda _: None,
    ) -> None:
        self.exchange = exchange
        self.shown = 0
        """So many letters of it have been drawn: a view that takes another's place goes on from there."""
        self._ask = ask
        self._answer = ask()
        self._save = save
        self._alone = alone
        self._open_elsewhere = open_elsewhere
        self._elsewhere = elsewhere
        self._then = then
        self._start_by = time.monotonic() + _START_SECONDS
        self._left_at = 0.0
        self._changed = threading.Condition()
        self._version = 0
        self._lookers = 0
        self._leaving: threading.Timer | None = None
        self._left()
        self._over = threading.Event()
        _ALL.add(self)
        self._keeping = threading.Thread(target=self._keep, name="tokenwire-keep", daemon=True)
        self._keeping.start()
        self.thread = threading.Thread(target=self._run, name="tokenwire-live", daemon=True)
        self.thread.start()

    def lookers(self) -> int:
        """So many look on. Without any it is cancelled soon."""
        return self._lookers

    def wait(self, seen: int, seconds: float) -> int:
        """Wait until there is more than at the version `seen`, for so many seconds at most; gives the version now."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen or self.exchange.ended, seconds)
            return self._version

    def stop(self, *, unseen: bool = False) -> None:
        """Cancel it, and mark the answer incomplete unless it had ended. As often as you like.

        `unseen`: not its reader does so, but the page, since nobody looks.
        """
        with self._changed:
            self.exchange.stop(unseen=unseen)
            self.shown = len(self.exchange.text)
            self._changed.notify_all()
        self._answer.cancel()

    def save(self) -> None:
        """Save what has come so far, unless all is saved."""
        if self.thread.is_alive():
            self._save()

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Somebody reads it."""
        with self._changed:
            self._lookers += 1
            if self._leaving is not None:
                self._leaving.cancel()
                self._leaving = None
        try:
            yield
        finally:
            self._left(1)

    def _left(self, count: int = 0) -> None:
        with self._changed:
            self._lookers -= count
            if self._lookers == 0 and not self.exchange.ended:
                self._left_at = time.monotonic()
                self._expect()

    def _expect(self) -> None:
        """Wait for somebody to look on again."""
        self._leaving = threading.Timer(self._alone, self._give_up)
        self._leaving.daemon = True
        self._leaving.start()

    def _give_up(self) -> None:
        with self._changed:  # else somebody could come in between, and see it stop
            if self._lookers or self.exchange.ended:
                return
            if self._open_elsewhere() and time.monotonic() - self._left_at < self._elsewhere:
                self._expect()
            else:
                self.stop(unseen=True)

    def _run(self) -> None:
        problem: str | None = None
        away = False
        try:
            while self._is_refused_at_its_start():
                with self._changed:
                    if self.exchange.ended:
                        break
                    self._answer = self._ask()
        except TokenwireError as error:
            away = error.code is grpc.StatusCode.UNAVAILABLE and not error.reason.startswith("UPSTREAM_")
            too_long = isinstance(error, InvalidRequestError) and self.exchange.follows_up
            problem = str(error) + (" If this conversation has become too long, start a new one." if too_long else "")
        except Exception:
            logging.getLogger(__name__).exception("an answer could not be read")
            problem = _BUG
        with self._changed:
            if not self.exchange.ended:
                self.exchange.finish() if problem is None else self.exchange.fail(problem)
            self._changed.notify_all()
        if self._leaving is not None:
            self._leaving.cancel()
        self._over.set()
        self._keeping.join()
        self._save()
        if self.exchange.problem not in (UNSEEN, UNSEEN_NOT_BEGUN):
            self._then(away)

    def _is_refused_at_its_start(self) -> bool:
        """Read the answer; whether the service was still starting, and may be asked again by now."""
        try:
            with self._answer:
                self._read()
        except TokenwireError as error:
            pause = error.retry_after or _MOMENT_SECONDS
            if error.reason != "STARTING" or time.monotonic() + pause >= self._start_by:
                raise
            with self._changed:
                self._changed.wait_for(lambda: self.exchange.ended, pause)
            return True
        return False

    def _keep(self) -> None:
        """Save what has come, by the clock: what comes next may be long in coming."""
        saved = 0
        while not self._over.wait(_SAVE_SECONDS):
            if self._version != saved:
                saved = self._version
                self._save()

    def _read(self) -> None:
        for message in self._answer:
            now = time.monotonic()
            with self._changed:
                if self.exchange.ended:
                    return
                self.exchange.saw(Arrival(message, now))
                self._version += 1
                self._changed.notify_all()
