"""Spans of calls and attempts, as a collector gets them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from service.errors import UpstreamUnavailable
from service.generation.events import Event, Finished, FinishReason, Started, Text, Usage
from service.providers.retry import Policy, Retrying
from service.runtime.observed import Observed
from service.runtime.server import Server
from service.settings import Settings
from service.telemetry.trace_context import trace_id
from service.testing import FakeProvider
from tests.collector import Collector, collecting, facts
from tests.conftest import Serve
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub

MODEL = "gemini-2.5-flash"
USAGE = Usage(input_tokens=5, output_tokens=7, total_tokens=12)
ANSWER: list[Event] = [
    Started(MODEL),
    Text("SECRET answer"),
    Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=USAGE),
]
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT = (f"00-{TRACE}-{CALLER}-{flag}" for flag in ("01", "00"))


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        yield collector


Trace = Callable[..., Any]


@pytest.fixture
def trace(collector: Collector) -> Trace:
    """`async with trace(model) as stub`: a server that has sent its spans once it is left."""
    del collector  # only so that there is one

    @asynccontextmanager
    async def traced(model: FakeProvider, **more: Any) -> AsyncIterator[Any]:
        settings = Settings(port=0, model=MODEL, **more)
        observed = Observed.of(settings, traces=True)
        server = Server(settings, watch=observed.watch)
        port = await server.start()
        async with observed.opened(server.readings):
            await server.announce_serving(Retrying(model, Policy(base_seconds=0.001), watch=observed.watch))
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield GenerationServiceStub(channel)
            await server.stop(0)

    return traced


async def ask(stub: Any, traceparent: str = SAMPLED, **fields: Any) -> None:
    request = pb.GenerateRequest(**{"prompt": "SECRET prompt", **fields})
    [_ async for _ in stub.Generate(request, metadata=(("traceparent", traceparent),))]


def by_kind(collector: Collector) -> tuple[Any, list[Any]]:
    """The one span of a call, and those of its attempts."""
    (call,) = (span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER)
    return call, [span for span in collector.spans if span.kind == Span.SPAN_KIND_CLIENT]


async def test_a_call_goes_on_in_its_callers_trace_and_has_its_attempt_below_it(
    trace: Trace, collector: Collector, lines: list[str]
) -> None:
    async with trace(FakeProvider(ANSWER)) as stub:
        await ask(stub)
    call, (attempt,) = by_kind(collector)
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, CALLER)
    assert (attempt.trace_id, attempt.parent_span_id) == (call.trace_id, call.span_id)
    assert call.name == "tokenwire.v1.GenerationService/Generate"
    assert attempt.name == f"chat {MODEL}"
    told = facts(call)
    assert told.pop("tokenwire.generation_id")
    assert told.pop("gen_ai.response.finish_reasons").values[0].string_value == "STOP"
    about = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gcp.vertex_ai",
        "gen_ai.request.model": MODEL,
    }
    assert told == {
        "rpc.system.name": "grpc",
        "rpc.method": "tokenwire.v1.GenerationService/Generate",
        "rpc.response.status_code": "OK",
        **about,
        "gen_ai.response.model": MODEL,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 7,
        "tokenwire.messages": 3,
    }
    assert facts(attempt) == about
    assert [event.name for event in attempt.events] == ["first chunk"]
    assert call.status.code == attempt.status.code == Status.STATUS_CODE_UNSET
    assert any(f" trace_id={TRACE} " in line for line in lines)
    (resource,) = {
        one.value.string_value
        for request in collector.requests
        for spans in request.resource_spans
        for one in spans.resource.attributes
        if one.key == "service.name"
    }
    assert resource == "tokenwire"


async def test_each_attempt_has_a_span_and_says_how_it_ended(trace: Trace, collector: Collector) -> None:
    async with trace(FakeProvider([UpstreamUnavailable("SECRET")])) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(stub)
    call, attempts = by_kind(collector)
    assert [facts(one)["error.type"] for one in attempts] == ["UPSTREAM_UNAVAILABLE"] * 3
    assert {one.status.code for one in (call, *attempts)} == {Status.STATUS_CODE_ERROR}
    assert facts(call)["rpc.response.status_code"] == "UNAVAILABLE"
    assert facts(call)["error.type"] == call.status.message == "UPSTREAM_UNAVAILABLE"


async def test_what_the_caller_did_wrong_is_no_fault_of_the_server(trace: Trace, collector: Collector) -> None:
    async with trace(FakeProvider(ANSWER)) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(stub, prompt="")
    call, attempts = by_kind(collector)
    assert not attempts
    assert (facts(call)["error.type"], call.status.code) == ("EMPTY_PROMPT", Status.STATUS_CODE_UNSET)


async def test_a_call_that_its_caller_leaves_says_so(trace: Trace, collector: Collector) -> None:
    async with trace(FakeProvider([Started(MODEL), Text("a")], endless=True)) as stub:
        call = stub.Generate(pb.GenerateRequest(prompt="hi"))
        assert (await call.read()).HasField("started")
        call.cancel()
    span, (attempt,) = by_kind(collector)
    assert facts(span)["rpc.response.status_code"] == "CANCELLED"
    assert {event.name: facts(event) for event in span.events} == {"cancelled": {"tokenwire.cause": "caller"}}
    assert [event.name for event in attempt.events] == ["first chunk", "cancelled"]


async def test_a_limit_of_time_that_strikes_is_told_as_that(trace: Trace, collector: Collector) -> None:
    async with trace(FakeProvider([Started(MODEL), Text("a")], endless=True)) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(stub, idle_timeout=Duration(nanos=50_000_000))
    span, (attempt,) = by_kind(collector)
    assert facts(span)["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert (facts(span)["error.type"], span.status.code) == ("IDLE_TIMEOUT", Status.STATUS_CODE_ERROR)
    assert [event.name for event in attempt.events] == ["first chunk", "cancelled"]


async def test_a_trace_that_isnt_sampled_is_not_sent(trace: Trace, collector: Collector, lines: list[str]) -> None:
    async with trace(FakeProvider(ANSWER)) as stub:
        await ask(stub, NOT)
    assert not collector.bodies
    assert any(f" trace_id={TRACE} " in line for line in lines)


async def test_nothing_of_a_prompt_an_answer_or_an_error_is_sent(trace: Trace, collector: Collector) -> None:
    async with trace(FakeProvider(ANSWER), project="SECRET-project") as stub:
        await ask(stub, request_id="SECRET-id", labels={"secret": "secret"})
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(stub, model="SECRET-model")
    assert collector.spans
    assert not any(b"secret" in body.lower() for body in collector.bodies)


async def test_a_collector_that_is_away_costs_spans_and_is_told_once(
    trace: Trace, collector: Collector, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    collector.status = 400

    async def until(words: str) -> None:
        async with asyncio.timeout(30):
            while not any(words in line for line in lines):  # noqa: ASYNC110 - another thread tells
                await asyncio.sleep(0.01)

    async with trace(FakeProvider(ANSWER)) as stub:
        for _ in range(3):
            collector.came.clear()
            await ask(stub)
            await asyncio.to_thread(collector.came.wait, 30)
        await until("traces are not taken, and lost")
        collector.status = 200
        await ask(stub)
        await until("traces are taken again")
    assert sum("traces are not taken" in line for line in lines) == 1
    assert {span.kind for span in collector.spans} == {Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT}


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "nobody answers"])
async def test_calls_go_on_where_no_collector_answers(
    trace: Trace, lines: list[str], monkeypatch: pytest.MonkeyPatch, *, listens: bool
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        if listens:
            port.listen()  # connections are made, and nobody ever takes them
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port.getsockname()[1]}")
        async with asyncio.timeout(30), trace(FakeProvider(ANSWER)) as stub:
            while not any("traces are not taken, and lost" in line for line in lines):
                await ask(stub)  # it is answered
    assert sum("traces are not taken" in line for line in lines) == 1


async def test_without_traces_the_callers_is_in_the_log_all_the_same(serve: Serve, lines: list[str]) -> None:
    served = await serve(FakeProvider(ANSWER))
    await ask(served.stub)
    assert any(f" trace_id={TRACE} " in line for line in lines)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{CALLER}-01",
        SAMPLED.upper(),
        f"{SAMPLED}\n",
        f"00-{TRACE[1:]}-{CALLER}-01",
    ],
)
def test_what_is_no_trace_is_none(value: str) -> None:
    assert trace_id([("traceparent", value)]) == ""
    assert trace_id([("other", SAMPLED)]) == ""
    assert trace_id([("traceparent", value), ("traceparent", SAMPLED)]) == TRACE
