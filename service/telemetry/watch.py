"""Tells of calls, and of the attempts to have a model answer: in the log, in the metrics, and in traces."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from . import call_log
from .call_record import CallRecord
from .metrics import CANCELLED, Metrics
from .trace_context import CARRIED, trace_id

_CURRENT: ContextVar[CallRecord | None] = ContextVar("record", default=None)
"""The record of the call that is being answered."""


class Traces(Protocol):
    """As `traces.Traces`, which needs an extra."""

    def opened(self, record: CallRecord, metadata: Iterable[tuple[str, Any]]) -> None: ...
    def ended(self, record: CallRecord, code: str) -> None: ...
    def attempt(self, record: CallRecord | None, model: str) -> "Attempt": ...


class Attempt(Protocol):
    """As `traces.Attempt`."""

    @property
    def headers(self) -> tuple[tuple[str, str], ...]: ...
    def begun(self) -> None: ...
    def ended(self, outcome: str) -> None: ...


class Watch:
    """Of one process, on its event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.traces: Traces | None = None
        """None: none are sent."""
        self._attempts: dict[object, CallRecord | None] = {}
        """Those that are being made, with the record of the call for which each is."""

    def opened(self, record: CallRecord, metadata: Iterable[tuple[str, Any]]) -> None:
        """A call is about to be answered, in this task and those that it starts; `metadata` is the caller's."""
        _CURRENT.set(record)
        record.trace_id = trace_id(metadata)
        if self.traces is not None:
            self.traces.opened(record, metadata)

    def ended(self, record: CallRecord, code: str, *, logged: bool) -> None:
        """A call is over, and about to get this status. `logged`: whether it has a line in the log."""
        record.over = True
        self.metrics.ended(record, code)
        if self.traces is not None and record.span is not None:
            self.traces.ended(record, code)
        if logged:
            call_log.end_call(record, code)

    @contextmanager
    def attempt(self, model: str) -> Iterator[Callable[[], object]]:
        """An attempt to have this model answer, for as long as it lasts; an error with a `reason` ends it with that.

        What it gives is to be called once the model says something.
        """
        mark = object()
        traced = self.traces.attempt(_CURRENT.get(), model) if self.traces is not None else None
        if traced is not None:
            CARRIED.set(traced.headers)
        self._attempts[mark] = _CURRENT.get()
        self.metrics.open_attempts.set(len(self._attempts))
        outcome = "OK"
        try:
            yield _nothing if traced is None else traced.begun
        except BaseException as error:
            outcome = getattr(error, "reason", "INTERNAL" if isinstance(error, Exception) else CANCELLED)
            raise
        finally:
            del self._attempts[mark]
            self.metrics.open_attempts.set(len(self._attempts))
            self.metrics.attempts.add(model, outcome)
            if traced is not None:
                traced.ended(outcome)

    def look(self, late: float) -> None:
        """Take note of how late the event loop is, in seconds, and of attempts that outlive their calls."""
        self.metrics.lag.observe(late)
        self.metrics.orphans.set(sum(record is not None and record.over for record in self._attempts.values()))


def _nothing() -> None:
    """For nobody who would want to know."""
