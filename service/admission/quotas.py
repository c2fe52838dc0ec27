"""How much each caller may: streams at once, requests and tokens a minute, tokens a day.

A request is counted before it is let in, with an estimate of its tokens, and settled by what upstream tells in the end.
A request is let in while anything of a quota is left: so a quota is exceeded by one request, and by what those that run
beside it take beyond what was set aside for them.
"""

import math
from collections.abc import Callable, Sequence
from time import time
from typing import Any, NamedTuple, Protocol

from google.rpc import error_details_pb2

from ..errors import BudgetExhausted, CallError, QuotaExceeded
from .callers import Caller
from .counts import DAY_SECONDS, MINUTE_SECONDS, More, Used

_BYTES_OF_A_TOKEN = 4

_MOST_OF_A_UNIT = 120
"""More seconds than that are told in minutes, and more minutes in hours."""


class Home(Protocol):
    """Where it is counted; times are those of `time.time`, in seconds."""

    def add(self, caller: str, now: float, more: More, *, since: float | None = None) -> None:
        """Count so much more.

        `since`: when that which is taken back was counted; what was in another minute or on another day isn't.
        """
        ...

    def took(self, caller: str, now: float, tokens: int) -> int:
        """Count so many more tokens of a call that goes on; 0: none.

        Gives all that its caller has used today, as far as that is known without asking anybody.
        """
        ...

    def used(self, caller: str, now: float) -> Used:
        """What this caller has used, as far as that is known without asking anybody."""
        ...

    async def agreed(self, caller: str, now: float) -> Used:
        """What this caller has used, with all that was added here before, and nothing that is added meanwhile.

        Of two who add and then ask at the same time, wherever they are, one at least sees what the other has added.
        """
        ...


class Charge:
    """What one call takes of its caller's quotas, as far as it is known."""

    def __init__(self, counts: Home, caller: Caller, *, input_tokens: int, set_aside: int) -> None:
        self._counts = counts
        self._caller = caller
        self._begin = time()
        self._input = input_tokens
        self._counted = set_aside
        self._told = 0
        self.end: Callable[[CallError], object] = lambda _: None
        """Ends the call, once its caller's budget of the day is used up."""

    def saw(self, tokens: int) -> None:
        """Upstream tells that the call has taken so many tokens so far."""
        self._told = tokens
        more = max(0, tokens - self._counted)
        self._counted += more
        used = self._counts.took(self._caller.name, time(), more)
        limit = self._caller.tokens_per_day
        # Without what is set aside for this call: its caller has chosen that.
        if limit is not None and used - self._counted + tokens > limit:
            self.end(_exhausted(self._caller, limit))

    def settle(self, tokens: int | None, *, characters: int) -> None:
        """The call is over; `tokens` is what upstream told of all of it. None: nothing, or not all of it came.

        Then it is what was told last, or an estimate by the `characters` that were said, whichever is more.
        """
        if tokens is not None:
            self._count(tokens, streams=-1)
        else:
            tokens = max(self._told, self._input - -characters // _BYTES_OF_A_TOKEN)
            self._count(tokens, streams=-1, estimated=tokens)

    def nothing(self) -> None:
        """The call is over, and no model has been asked, or none has taken it."""
        self._count(0, streams=-1)

    def _count(self, tokens: int, *, streams: int = 0, estimated: int = 0) -> None:
        more, self._counted = tokens - self._counted, tokens
        # What was set aside in a minute or on a day that is over is nothing to give back.
        self._counts.add(self._caller.name, time(), More(streams, 0, more, estimated), since=self._begin)


class Quota(NamedTuple):
    """Something that is counted of a caller."""

    name: str
    used: int
    limit: int | None
    """None: as much as it likes."""
    resets_in: float | None
    """In seconds; None: it is given back when a call ends."""


class Quotas:
    """Asks and counts the quotas of callers, over all that count in the same home."""

    def __init__(self, counts: Home) -> None:
        self._counts = counts

    async def told(self, caller: Caller) -> tuple[Sequence[Quota], int]:
        """All that is counted of this caller; and of its tokens of the day, how many were estimated."""
        now = time()
        used = await self._counts.agreed(caller.name, now)
        return _quotas(caller, used, now), used.estimated_today

    def known(self, caller: Caller) -> Sequence[Quota]:
        """All that is counted of this caller, as far as that is known without asking anybody."""
        now = time()
        return _quotas(caller, self._counts.used(caller.name, now), now)

    async def charge(self, caller: Caller, input_tokens: int, output_tokens: int) -> Charge:
        """Count one more call of this caller, with so many tokens set aside. Raises QuotaExceeded.

        To be ended by `Charge.settle` or `Charge.nothing`.
        """
        now, aside = time(), input_tokens + output_tokens
        self._counts.add(caller.name, now, More(1, 1, aside))
        try:
            _refuse(caller, await self._counts.agreed(caller.name, now), aside, now)
        except BaseException:  # a caller that leaves while it is asked has used nothing either
            self._counts.add(caller.name, time(), More(-1, -1, -aside), since=now)
            raise
        return Charge(self._counts, caller, input_tokens=input_tokens, set_aside=aside)


def _quotas(caller: Caller, used: Used, now: float) -> Sequence[Quota]:
    minute, day = _left(now)
    return (
        Quota("streams", used.streams, caller.streams, None),
        Quota("requests_per_minute", used.requests_in_minute, caller.requests_per_minute, minute),
        Quota("tokens_per_minute", used.tokens_in_minute, caller.tokens_per_minute, minute),
        Quota("requests_per_day", used.requests_today, None, day),
        Quota("tokens_per_day", used.tokens_today, caller.tokens_per_day, day),
    )


def _left(now: float) -> tuple[float, float]:
    """Seconds until the next minute, and until the next day."""
    return MINUTE_SECONDS - now % MINUTE_SECONDS, DAY_SECONDS - now % DAY_SECONDS


_REFUSALS = {
    "streams": "has {} streams open, all that it may have; let one end first",
    "requests_per_minute": "has made its {} requests of this minute",
    "tokens_per_minute": "has used its {} tokens of this minute",
    "tokens_per_day": "has used its {} tokens of this day (UTC)",
}


def _refuse(caller: Caller, used: Used, aside: int, now: float) -> None:
    """Raise QuotaExceeded if a call can't be let in that has been counted already."""
    minute, day = _left(now)
    for name, found, seconds in (
        ("streams", used.streams - 1, 1.0),
        ("requests_per_minute", used.requests_in_minute - 1, minute),
        ("tokens_per_minute", used.tokens_in_minute - aside, minute),
        ("tokens_per_day", used.tokens_today - aside, day),
    ):
        limit: int | None = getattr(caller, name)
        if limit is not None and found >= limit:
            raise QuotaExceeded(
                f"This caller {_REFUSALS[name].format(limit)}{_again(name, seconds)}",
                **_details(caller, name, limit, seconds),
            )


def _exhausted(caller: Caller, limit: int) -> BudgetExhausted:
    quota, seconds = "tokens_per_day", _left(time())[1]
    text = f"This caller {_REFUSALS[quota].format(limit)} in the middle of this answer{_again(quota, seconds)}"
    return BudgetExhausted(text, **_details(caller, quota, limit, seconds))


def _again(quota: str, seconds: float) -> str:
    """When to come again, in words, rounded up: RetryInfo has it for programs."""
    if quota == "streams":
        return ""
    units = (("s", 1), ("min", 60), ("h", 3600))
    unit, long = next((one for one in units if seconds <= _MOST_OF_A_UNIT * one[1]), units[-1])
    return f"; again in {math.ceil(seconds / long)} {unit}"


def _details(caller: Caller, quota: str, limit: int, seconds: float) -> dict[str, Any]:
    """What a refusal tells beside its text."""
    violation = error_details_pb2.QuotaFailure.Violation(
        subject=f"caller:{caller.name}", description=f"{quota}: {limit}"
    )
    return {
        "retry_after": seconds,
        "metadata": {"quota": quota, "limit": str(limit)},
        "details": [error_details_pb2.QuotaFailure(violations=[violation])],
    }
