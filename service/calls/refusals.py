"""Refuses callers without a proof at once, for little: a flood of them is to hold up nobody who has one.

In the same words as `guard.py` has for them, and without what only a call needs that goes on: limits of time, a place
among the calls that a stop waits for. That is half of what such a call costs beside gRPC's own part.
"""

import asyncio
from collections import Counter
from typing import Any

import grpc.aio
from grpc_status import rpc_status

from ..admission.identity import Identity, Proof, refusal
from ..errors import CallError
from ..telemetry import call_log
from ..telemetry.call_record import CallRecord
from ..telemetry.watch import Watch
from .stopping.connections import host

MOST_LINES = 100
PERIOD_SECONDS = 10.0
"""In which the log has so many lines for refused calls; the others are told as one, by why they were."""

_STATUS = rpc_status.to_status(refusal().status())
_REASON = refusal().reason

Context = grpc.aio.ServicerContext[Any, Any]


class Refusals:
    """Of one process, on its event loop."""

    def __init__(self, identity: Identity, watch: Watch) -> None:
        self._identity = identity
        self._watch = watch
        self._lines = 0
        """In this period."""
        self._more: Counter[str] = Counter()
        """Calls of this period without a line, by why they were refused."""
        self._period: asyncio.TimerHandle | None = None

    def proof(self, name: str, context: Context) -> Proof | None:
        """Who calls this method. If it is nobody, gRPC refuses the call, once its handler returns.

        None where the keys to check it are still missing: the handler raises the error for that.
        """
        try:
            found = self._identity.proof(context)
        except CallError:
            return None
        if found.refused:
            self._refuse(name, context, found.refused)
        return found

    def _refuse(self, name: str, context: Context, why: str) -> None:
        context.set_trailing_metadata(_STATUS.trailing_metadata)
        context.set_code(_STATUS.code)
        context.set_details(_STATUS.details)
        logged = self._has_line(why)
        record = CallRecord(name, refused=why, reason=_REASON, peer=host(context.peer()) if logged else "")
        self._watch.ended(record, _STATUS.code.name, logged=logged)

    def _has_line(self, why: str) -> bool:
        """Whether the log still has one for a call that is refused for this."""
        if self._period is None:
            self._period = asyncio.get_running_loop().call_later(PERIOD_SECONDS, self.end_period)
        if self._lines < MOST_LINES:
            self._lines += 1
            return True
        self._more[why] += 1
        return False

    def end_period(self) -> None:
        """Tell of calls that have had no line, and begin a period."""
        if self._period is not None:
            self._period.cancel()
        if self._more:
            reasons = ", ".join(f"{count} x {why}" for why, count in self._more.most_common())
            call_log.say("%d more calls were refused: %s", self._more.total(), reasons)
        self._period, self._lines = None, 0
        self._more.clear()
