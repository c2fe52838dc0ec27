"""Traces: a span for each call, and below it one for each attempt to have a model answer, sent by OTLP.

Nothing of a prompt or an answer is in them. Names are OpenTelemetry's for RPC and GenAI where it has them. This is the
only file that knows OpenTelemetry, which reads variables of its own: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER
and others.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from . import call_log
from .call_record import CallRecord
from .metrics import CANCELLED, METHODS
from .numbers import OTHER

_SERVICE = "tokenwire"
_W3C = TraceContextTextMapPropagator()
_HEADERS = ("traceparent", "tracestate")
_NONE = Context()
"""In which there is no span to go on from."""

# Those for which a server's span is an error, by OpenTelemetry's conventions: the others are the caller's own doing.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Traces:
    """Of one process. A thread sends the spans; while nobody takes them, they are lost, and nothing waits."""

    def __init__(self, models: Mapping[str, str]) -> None:
        """`models` as `Metrics` has them. To be made behind the fork."""
        self._models = models
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_Exporter()))
        self._tracer = self._provider.get_tracer(_SERVICE)

    def close(self) -> None:
        """Send what hasn't been sent yet. It may take as long as the collector does."""
        self._provider.force_flush()

    def opened(self, record: CallRecord, metadata: Iterable[tuple[str, Any]]) -> None:
        """A call has come."""
        method = METHODS.get(record.method, OTHER)
        carrier = {name: value for name, value in metadata if name in _HEADERS}
        record.span = self._tracer.start_span(
            method,
            context=_W3C.extract(carrier) if carrier else _NONE,
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": method},
        )
        record.trace_id = trace.format_trace_id(record.span.get_span_context().trace_id)

    def ended(self, record: CallRecord, code: str) -> None:
        """A call is over, and about to get this status."""
        span: Span = record.span
        if not span.is_recording():
            return
        facts = {
            "rpc.response.status_code": code,
            "error.type": "" if code == "OK" else record.reason or code,
            **_about(self._models, record.asked or record.model, record.model),
            "gen_ai.response.finish_reasons": (record.finish,) if record.finish else None,
            "gen_ai.usage.input_tokens": record.tokens_in,
            "gen_ai.usage.output_tokens": record.tokens_out,
            "tokenwire.generation_id": record.generation_id,
            "tokenwire.caller": record.caller,
            "tokenwire.messages": record.messages,
        }
        span.set_attributes({name: value for name, value in facts.items() if value not in ("", None)})
        if code == CANCELLED:
            span.add_event("cancelled", {"tokenwire.cause": record.cause})
        if code in _FAULTS:
            span.set_status(StatusCode.ERROR, record.reason or code)
        span.end()

    def attempt(self, record: CallRecord | None, model: str) -> "Attempt":
        """An attempt to have this model answer, for this call, begins."""
        span: Span | None = record.span if record is not None else None
        if span is not None and not span.is_recording():
            return Attempt(span)  # a span of its own would tell nobody anything: the call's goes on upstream
        parent = trace.set_span_in_context(span) if span is not None else None
        about = _about(self._models, model, "")
        return Attempt(self._tracer.start_span(f"chat {model}", context=parent, kind=SpanKind.CLIENT, attributes=about))


class Attempt:
    """One that is being made."""

    def __init__(self, span: Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(span))
        self.headers = tuple(carrier.items())
        """What goes upstream along with it."""

    def begun(self) -> None:
        """The model has said something."""
        self._span.add_event("first chunk")

    def ended(self, outcome: str) -> None:
        """It is over, by this reason, OK, or CANCELLED: left in the middle."""
        if outcome == CANCELLED:
            self._span.add_event("cancelled")
        elif outcome != "OK":
            self._span.set_status(StatusCode.ERROR, outcome)
        if outcome != "OK":
            self._span.set_attribute("error.type", outcome)
        self._span.end()


def _about(models: Mapping[str, str], asked: str, answered: str) -> dict[str, str]:
    if not asked:
        return {}
    about = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": models.get(answered or asked, ""),
        "gen_ai.request.model": asked,
        "gen_ai.response.model": answered,
    }
    return {name: value for name, value in about.items() if value}


def _resource() -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say comes before ours."""
    found = Resource.create()
    if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        return found.merge(Resource({SERVICE_NAME: _SERVICE}))
    return found


class _Exporter(SpanExporter):
    """OTLP over HTTP. That spans are lost is said once, and that they are taken again."""

    def __init__(self) -> None:
        self._otlp = OTLPSpanExporter()
        self._well = True
        # It would say so for each batch, and for each span that finds no room.
        logging.getLogger("opentelemetry").disabled = True
        for name in logging.root.manager.loggerDict:
            if name.startswith("opentelemetry."):
                logging.getLogger(name).disabled = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As OpenTelemetry has it; on a thread of its own."""
        result = self._otlp.export(spans)
        well = result is SpanExportResult.SUCCESS
        if well != self._well:
            self._well = well
            if well:
                call_log.say("traces are taken again")
            else:
                call_log.warn("traces are not taken, and lost: is OTEL_EXPORTER_OTLP_ENDPOINT a collector's HTTP port?")
        return result

    def shutdown(self) -> None:
        """As OpenTelemetry has it."""
        self._otlp.shutdown()  # type: ignore[no-untyped-call] # OpenTelemetry has it so
