"""An event loop without a clock or sockets, which is told in what order things happen.

A real loop runs what is ready first in, first out. What it doesn't decide is when something from outside comes in
between: a message, a cancellation, a timer. Here each of those is a choice, so a run can be repeated exactly, and every
order of a small script can be tried one after the other, as deterministic simulation does (FoundationDB, CHESS).
"""

import asyncio
import bisect
import enum
import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_BEGIN_SECONDS = 1000.0
_NEAR_SECONDS = 0.005
_BEFORE_SECONDS = 0.002
_TURN_SECONDS = 0.0002  # else what asks for a moment that is all but now would ask for ever


class Choices:
    """What is decided in one run: first the given choices, then random ones, or else always the first option."""

    def __init__(self, given: Sequence[int] = (), *, seed: int | None = None) -> None:
        self._given = given
        self._random = None if seed is None else random.Random(seed)
        self.made: list[tuple[int, int, bool]] = []
        """Each choice, of how many options it was, and whether the first would have been as good as any."""

    def choose(self, options: int, *, idle: bool) -> int:
        """One of so many options, from 0; `idle` where nothing has to be interrupted for the others."""
        if options == 1:
            return 0
        if len(self.made) < len(self._given):
            choice = self._given[len(self.made)]
        else:
            choice = 0 if self._random is None else self._random.randrange(options)
        self.made.append((choice, options, idle))
        return choice

    @property
    def taken(self) -> list[int]:
        """The choices alone: given again, they repeat the run."""
        return [choice for choice, _, _ in self.made]


def every(*, interruptions: int | None = None) -> Iterator[Choices]:
    """Choices for one run after the other, until every order has been tried: a depth-first search.

    Of them all, only those where something comes in between while there is work to do so many times; None: all.
    """
    given: list[int] | None = []
    while given is not None:
        choices = Choices(given)
        yield choices
        given = _next(choices.made, interruptions)


def _next(made: list[tuple[int, int, bool]], interruptions: int | None) -> list[int] | None:
    taken = [choice for choice, _, _ in made]
    so_far = sum(choice > 0 and not idle for choice, _, idle in made)
    while made:
        choice, options, idle = made.pop()
        taken.pop()
        so_far -= choice > 0 and not idle
        if choice + 1 < options and (idle or interruptions is None or so_far < interruptions):
            return [*taken, choice + 1]
    return None


class Kind(enum.IntEnum):
    """When something from outside may happen."""

    PROMPT = 0
    """Within a few milliseconds: no timer further away strikes before it."""
    EXPECTED = 1
    """Whenever somebody else pleases, such as upstream's next word."""
    TROUBLE = 2
    """The same, but it needn't happen at all."""


@dataclass(slots=True, eq=False)
class Event:
    """Something from outside that may happen now, or later."""

    name: str
    kind: Kind
    happen: Callable[[], object]


class Loop(asyncio.BaseEventLoop):
    """Runs until nothing is left that could happen; `run_forever` then returns.

    Time stands still while there is something to do. Once only things are left that may take any time, it may go on to
    the moment just before the next timer; there, whatever happens meets that timer in any order.

    With `uvloop`, timers are as they are there: in whole milliseconds, and a plain Handle for a moment that is now.

    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, choices: Choices, *, uvloop: bool = False) -> None:
        super().__init__()
        self._choices = choices
        self._uvloop = uvloop
        self._now = _BEGIN_SECONDS
        self._outside: list[Event] = []
        self.wrong: list[dict[str, Any]] = []
        """What asyncio would have logged: exceptions that nobody retrieved, callbacks that failed."""
        self.story: list[str] | None = None
        """A line for each thing that happens; None: they aren't kept."""
        self.set_exception_handler(lambda _, context: self.wrong.append(context))

    def time(self) -> float:
        return self._now

    def may_happen(self, name: str, happen: Callable[[], object], kind: Kind = Kind.PROMPT) -> Event:
        """Have it happen, at any moment from now on."""
        event = Event(name, kind, happen)
        bisect.insort(self._outside, event, key=lambda event: event.kind)
        return event

    def cannot_happen(self, event: Event) -> None:
        """Not any more; nothing changes if it has happened."""
        if event in self._outside:
            self._outside.remove(event)

    def call_at(  # type: ignore[override] # without the types of the arguments
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        if self._uvloop:
            milliseconds = round((when - self._now) * 1000)
            if milliseconds <= 0:
                self._now += _TURN_SECONDS
                return self.call_soon(callback, *args, context=context)  # type: ignore[return-value] # as uvloop does
            when = self._now + milliseconds / 1000
        return super().call_at(when, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """They are left out when it is their turn."""

    def _run_once(self) -> None:
        """Do one of the things that may come next."""
        ready, outside = self._ready, self._outside
        while ready and ready[0].cancelled():
            ready.popleft()
        near, later = self._timers()
        now = bool(ready)
        idle = not (ready or (outside and outside[0].kind is Kind.PROMPT))
        options = now + len(outside) + len(near) + (idle and later is not None)
        if not options:
            self._stopping = True
            return
        choice = self._choices.choose(options, idle=idle)
        if choice < now:
            self._run()
            return
        choice -= now
        if choice < len(outside):
            event = outside.pop(choice)
            self._tell(event.name)
            self.call_soon(event.happen)
            return
        choice -= len(outside)
        if choice < len(near):
            timer = near[choice]
            self._scheduled.remove(timer)
            heapq.heapify(self._scheduled)
            self._now = max(self._now, timer.when())
            callback = timer._callback  # type: ignore[attr-defined]
            self._tell(f"at {self._now - _BEGIN_SECONDS:g} s: {getattr(callback, '__qualname__', callback)}")
            ready.append(timer)
            return
        assert later is not None
        self._now = max(self._now, later - _BEFORE_SECONDS if outside else later)
        self._tell(f"it is {self._now - _BEGIN_SECONDS:g} s")

    def _timers(self) -> tuple[list[asyncio.TimerHandle], float | None]:
        """Those that may strike now, and when the next one does if none may."""
        scheduled = self._scheduled
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)
        if not scheduled:
            return [], None
        moment = self._now + _NEAR_SECONDS
        if scheduled[0].when() > moment:
            return [], scheduled[0].when()
        near = [timer for timer in scheduled if timer.when() <= moment and not timer.cancelled()]
        return sorted(near, key=asyncio.TimerHandle.when), None

    def _run(self) -> None:
        """One turn of a real loop: all that is ready, first in, first out."""
        ready = self._ready
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def _tell(self, what: str) -> None:
        if self.story is not None:
            self.story.append(what)

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    def _process_events(self, event_list: object) -> None:
        raise NotImplementedError
