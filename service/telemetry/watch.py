"""Tells of calls, and of the attempts to have a model answer: in the log, in the metrics, and in traces."""

import uuid
from collections.abc import Callable, Iterable
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
        with _HARMLESS:
            record.trace_id = trace_id(metadata)
            if self.traces is not None:
                self.traces.opened(record, metadata)

    def ended(self, record: CallRecord, code: str, *, logged: bool) -> None:
        """A call is over, and about to get this status. `logged`: whether it has a line in the log."""
        record.over = True
        with _HARMLESS:
            if logged:
                call_log.end_call(record, code)
            self.metrics.ended(record, code)
            if self.traces is not None and record.span is not None:
                self.traces.ended(record, code)

    def attempt(self, model: str) -> "_Attempted":
        """An attempt to have this model answer, for as long as it lasts; an error with a `reason` ends it with that.

        What it gives on entering is to be called once the model says something.
        """
        return _Attempted(self, model, self._attempts)

    def look(self, late: float) -> None:
        """Take note of how late the event loop is, in seconds, and of attempts that outlive their calls."""
        self.metrics.lag.observe(late)
        self.metrics.orphans.set(sum(record is not None and record.over for record in self._attempts.values()))


class _Attempted:
    """One attempt. Not a generator with a decorator, which would take several times as long."""

    def __init__(self, watch: Watch, model: str, running: dict[object, CallRecord | None]) -> None:
        """`running` has all that are being made."""
        self._watch = watch
        self._model = model
        self._running = running
        self._traced: Attempt | None = None

    def __enter__(self) -> Callable[[], object]:
        record = self._running[self] = _CURRENT.get()
        with _HARMLESS:
            self._watch.metrics.open_attempts.set(len(self._running))
            if self._watch.traces is not None:
                self._traced = self._watch.traces.attempt(record, self._model)
                CARRIED.set(self._traced.headers)
        return _nothing if self._traced is None else self._traced.begun

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        del self._running[self]
        with _HARMLESS:
            metrics = self._watch.metrics
            outcome = "OK" if error is None else metrics.outcome(error)
            metrics.open_attempts.set(len(self._running))
            metrics.attempts.add(self._model, outcome)
            if self._traced is not None:
                self._traced.ended(outcome)


class _Harmless:
    """Within, a mistake in telling of a call is logged, and changes nothing of what its caller is told."""

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        call_log.bug(error, uuid.uuid4().hex)
        return True


_HARMLESS = _Harmless()


def _nothing() -> None:
    """Where no traces are sent, there is nothing to do."""
