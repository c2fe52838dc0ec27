"""How much each caller may: streams at once, requests and tokens a minute, tokens a day.

A request is counted before it is let in, with an estimate of its tokens, and settled by what upstream tells in the end.
A request is let in while anything of a quota is left: so a quota is exceeded by one request, and by what those that run
beside it take beyond what was set aside for them.
"""

from collections.abc import Callable, Sequence
from time import time
from typing import NamedTuple

from google.rpc import error_details_pb2

from ..errors import BudgetExhausted, CallError, QuotaExceeded
from .callers import Caller
from .counts import DAY_SECONDS, MINUTE_SECONDS, Counts, Used

USUAL_OUTPUT_TOKENS = 512
"""Set aside for an answer whose length the request doesn't limit."""

_BYTES_OF_A_TOKEN = 4


class Charge:
    """What one call takes of its caller's quotas, as far as it is known."""

    def __init__(self, counts: Counts, caller: Caller, *, input_tokens: int, set_aside: int) -> None:
        self._counts = counts
        self._caller = caller
        self._begin = time()
        self._input = input_tokens
        self._counted = set_aside
        self._told: int | None = None
        self.end: Callable[[CallError], object] = lambda _: None
        """Ends the call, once its caller's budget of the day is used up: upstream may say nothing for long."""
        self.exhausted: CallError | None = None
        """Why nothing more may be said, once that is so."""

    def saw(self, tokens: int) -> None:
        """Upstream tells that the call has taken so many tokens so far."""
        self._told = tokens
        if tokens > self._counted:
            self._count(tokens)
        limit = self._caller.tokens_per_day
        # Without what is set aside for this call: its caller has chosen that.
        if (
            limit is not None
            and self._counts.used(self._caller.name, time()).tokens_today - self._counted + tokens > limit
        ):
            self.exhausted = _exhausted(limit)
            self.end(self.exhausted)

    def settle(self, tokens: int | None, *, characters: int) -> None:
        """The call is over; `tokens` is what upstream told of all of it. None: nothing, or not all of it came.

        Then it is what was told last, or an estimate by the `characters` that were said, whichever is more.
        """
        self._counts.add(self._caller.name, time(), streams=-1)
        if tokens is None:
            tokens = max(self._told or 0, self._input - -characters // _BYTES_OF_A_TOKEN)
            self._counts.add(self._caller.name, time(), estimated=tokens)
        self._count(tokens)

    def nothing(self) -> None:
        """The call is over, and no model has been asked, or none has taken it."""
        self._counts.add(self._caller.name, time(), streams=-1)
        self._count(0)

    def _count(self, tokens: int) -> None:
        more, self._counted = tokens - self._counted, tokens
        # What was set aside in a minute or on a day that is over is nothing to give back.
        self._counts.add(self._caller.name, time(), tokens=more, since=self._begin)


class Quota(NamedTuple):
    """Something that is counted of a caller."""

    name: str
    used: int
    limit: int | None
    """None: as much as it likes."""
    resets_in: float | None
    """In seconds; None: it is given back when a call ends."""


class Quotas:
    """Asks and counts the quotas of callers, over all worker processes."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def used(self, caller: Caller) -> Used:
        """What this caller has used so far."""
        return self._counts.used(caller.name, time())

    def told(self, caller: Caller) -> Sequence[Quota]:
        """All that is counted of this caller."""
        now = time()
        minute, day = MINUTE_SECONDS - now % MINUTE_SECONDS, DAY_SECONDS - now % DAY_SECONDS
        used = self._counts.used(caller.name, now)
        return (
            Quota("streams", used.streams, caller.streams, None),
            Quota("requests_per_minute", used.requests_in_minute, caller.requests_per_minute, minute),
            Quota("tokens_per_minute", used.tokens_in_minute, caller.tokens_per_minute, minute),
            Quota("requests_per_day", used.requests_today, None, day),
            Quota("tokens_per_day", used.tokens_today, caller.tokens_per_day, day),
        )

    def charge(self, caller: Caller, *, input_tokens: int, output_tokens: int) -> Charge:
        """Count one more call of this caller, with so many tokens set aside. Raises QuotaExceeded.

        To be ended by `Charge.settle` or `Charge.nothing`.
        """
        now, aside = time(), input_tokens + output_tokens
        self._counts.add(caller.name, now, streams=1, requests=1, tokens=aside)
        used = self._counts.used(caller.name, now)
        refusal = _refusal(caller, used, aside, now)
        if refusal is not None:
            self._counts.add(caller.name, now, streams=-1, requests=-1, tokens=-aside)
            raise refusal
        return Charge(self._counts, caller, input_tokens=input_tokens, set_aside=aside)


def _refusal(caller: Caller, used: Used, aside: int, now: float) -> QuotaExceeded | None:
    """Why a call can't be let in that has been counted already; None: it can."""
    minute, day = MINUTE_SECONDS - now % MINUTE_SECONDS, DAY_SECONDS - now % DAY_SECONDS
    for name, limit, found, seconds, text in (
        (
            "streams",
            caller.streams,
            used.streams - 1,
            1.0,
            "has {} streams open, all that it may have; let one end first",
        ),
        (
            "requests_per_minute",
            caller.requests_per_minute,
            used.requests_in_minute - 1,
            minute,
            "has made its {} requests of this minute",
        ),
        (
            "tokens_per_minute",
            caller.tokens_per_minute,
            used.tokens_in_minute - aside,
            minute,
            "has used its {} tokens of this minute",
        ),
        (
            "tokens_per_day",
            caller.tokens_per_day,
            used.tokens_today - aside,
            day,
            "has used its {} tokens of this day (UTC)",
        ),
    ):
        if limit is not None and found >= limit:
            violation = error_details_pb2.QuotaFailure.Violation(
                subject=f"caller:{caller.name}", description=f"{name}: {limit}"
            )
            return QuotaExceeded(
                f"This caller {text.format(limit)}",
                retry_after=seconds,
                metadata={"quota": name, "limit": str(limit)},
                details=[error_details_pb2.QuotaFailure(violations=[violation])],
            )
    return None


def _exhausted(limit: int) -> BudgetExhausted:
    violation = error_details_pb2.QuotaFailure.Violation(subject="caller", description=f"tokens_per_day: {limit}")
    return BudgetExhausted(
        f"This caller has used its {limit} tokens of this day (UTC) in the middle of this answer",
        retry_after=DAY_SECONDS - time() % DAY_SECONDS,
        metadata={"quota": "tokens_per_day", "limit": str(limit)},
        details=[error_details_pb2.QuotaFailure(violations=[violation])],
    )
