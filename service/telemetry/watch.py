"""Tells of calls, and of the attempts to have a model answer: in the log, in the metrics, and in traces."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from . import call_log
from .call_record import CallRecord
from .metrics import Metrics
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
        with _harmless():
            record.trace_id = trace_id(metadata)
            if self.traces is not None:
                self.traces.opened(record, metadata)

    def ended(self, record: CallRecord, code: str, *, logged: bool) -> None:
        """A call is over, and about to get this status. `logged`: whether it has a line in the log."""
        record.over = True
        with _harmless():
            if logged:
                call_log.end_call(record, code)
            self.metrics.ended(record, code)
            if self.traces is not None and record.span is not None:
                self.traces.ended(record, code)

    @contextmanager
    def attempt(self, model: str) -> Iterator[Callable[[], object]]:
        """An attempt to have this model answer, for as long as it lasts; an error with a `reason` ends it with that.

        What it gives is to be called once the model says something.
        """
        mark, record, traced = object(), _CURRENT.get(), None
        self._attempts[mark] = record
        with _harmless():
            self.metrics.open_attempts.set(len(self._attempts))
            if self.traces is not None:
                traced = self.traces.attempt(record, model)
                CARRIED.set(traced.headers)
        outcome = "OK"
        try:
            yield _nothing if traced is None else traced.begun
        except BaseException as error:
            outcome = self.metrics.outcome(error)
            raise
        finally:
            del self._attempts[mark]
            with _harmless():
                self.metrics.open_attempts.set(len(self._attempts))
                self.metrics.attempts.add(model, outcome)
                if traced is not None:
                    traced.ended(outcome)

    def look(self, late: float) -> None:
        """Take note of how late the event loop is, in seconds, and of attempts that outlive their calls."""
        self.metrics.lag.observe(late)
        self.metrics.orphans.set(sum(record is not None and record.over for record in self._attempts.values()))


@contextmanager
def _harmless() -> Iterator[None]:
    """A mistake in telling of a call is logged, and changes nothing of what its caller is told."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of any kind
        call_log.bug(error, uuid.uuid4().hex)


def _nothing() -> None:
    """Where no traces are sent, there is nothing to do."""
