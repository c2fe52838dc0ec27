"""Tells of calls, and of the attempts to have a model answer: in the log, and in the metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from . import call_log
from .call_record import CallRecord
from .metrics import CANCELLED, Metrics

_CURRENT: ContextVar[CallRecord | None] = ContextVar("record", default=None)
"""The record of the call that is being answered."""


class Watch:
    """Of one process, on its event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._attempts: dict[object, CallRecord | None] = {}
        """Those that are being made, with the record of the call for which each is."""

    def opened(self, record: CallRecord) -> None:
        """A call is about to be answered, in this task and those that it starts."""
        _CURRENT.set(record)

    def ended(self, record: CallRecord, code: str, *, logged: bool) -> None:
        """A call is over, and about to get this status. `logged`: whether it has a line in the log."""
        record.over = True
        self.metrics.ended(record, code)
        if logged:
            call_log.end_call(record, code)

    @contextmanager
    def attempt(self, model: str) -> Iterator[None]:
        """An attempt to have this model answer, for as long as it lasts; an error with a `reason` ends it with that."""
        mark = object()
        self._attempts[mark] = _CURRENT.get()
        self.metrics.open_attempts.set(len(self._attempts))
        outcome = "OK"
        try:
            yield
        except BaseException as error:
            outcome = getattr(error, "reason", "INTERNAL" if isinstance(error, Exception) else CANCELLED)
            raise
        finally:
            del self._attempts[mark]
            self.metrics.open_attempts.set(len(self._attempts))
            self.metrics.attempts.add(model, outcome)

    def look(self, late: float) -> None:
        """Take note of how late the event loop is, in seconds, and of attempts that outlive their calls."""
        self.metrics.lag.observe(late)
        self.metrics.orphans.set(sum(record is not None and record.over for record in self._attempts.values()))
