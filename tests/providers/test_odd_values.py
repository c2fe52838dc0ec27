"""Values that the contract has no room for, and halves of answers, from each provider, by their real libraries."""

import json
from typing import Any

import grpc.aio
import pytest

from tests.conftest import failure
from tests.faults import processes
from tests.providers.conftest import OK, ByHand, Open, Upstream, open_on
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.protos import prediction_pb2 as google
from vertex_emulator.script import answer, cut, end, message_bytes, status, wait_for

Heard = tuple[list[pb.GenerateResponse], Any]


def stream(*events: Any, end: bytes = b"") -> bytes:
    """Events as JSON, or as bytes."""
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in events]
    return OK + b"connection: close\r\n\r\n" + b"".join(b"data: %s\n\n" % one for one in lines) + end


async def heard(upstream: Upstream) -> Heard:
    return await processes.outcome(upstream.served.stub.Generate(pb.GenerateRequest(prompt="hi"), timeout=20))


def texts(messages: list[pb.GenerateResponse]) -> str:
    return "".join(message.text for message in messages)


@pytest.fixture(params=["genai", "openai"])
async def odd(request: pytest.FixtureRequest, open_provider: Open, by_hand: tuple[ByHand, str]) -> Upstream:
    return await open_on(open_provider, request.param, by_hand[1])


def calling(provider: str, arguments: bytes) -> bytes:
    """A whole answer that calls a function with these arguments."""
    if provider == "genai":
        part = b'{"functionCall":{"name":"w","args":%s}}' % arguments
        return b'{"candidates":[{"content":{"parts":[%s]},"finishReason":"STOP"}]}' % part
    call = b'{"index":0,"id":"a","function":{"name":"w","arguments":%s}}' % json.dumps(arguments.decode()).encode()
    return b'{"choices":[{"index":0,"delta":{"tool_calls":[%s]},"finish_reason":"tool_calls"}]}' % call


@pytest.mark.parametrize(
    "number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9007199254740993", b"1" + b"0" * 400]
)
@pytest.mark.parametrize("arguments", [b'{"x": %s}', b'{"x": [{"y": %s}]}'])
async def test_a_number_that_is_no_double_is_upstreams_fault(
    odd: Upstream, by_hand: tuple[ByHand, str], arguments: bytes, number: bytes
) -> None:
    by_hand[0].says = stream(calling(odd.provider, arguments % number))
    messages, error = await heard(odd)
    assert error is not None, messages
    assert failure(error)[1] == "UPSTREAM_FAULT"
    assert not any(message.HasField("tool_call") for message in messages)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
async def test_a_number_that_is_none_is_upstreams_fault_over_grpc_too(open_provider: Open, number: float) -> None:
    vertex = await open_provider("vertex")
    message = google.GenerateContentResponse()
    part = message.candidates.add(finish_reason=google.Candidate.STOP).content.parts.add()
    part.function_call.name = "w"
    part.function_call.args["x"] = number
    vertex.emulator.script.play(answer(message_bytes(message.SerializeToString()), end()))
    assert failure((await heard(vertex))[1])[1] == "UPSTREAM_FAULT"


def said(provider: str, text: str, finish: str | None = None, **fields: Any) -> Any:
    """A chunk that says this."""
    if provider == "genai":
        candidate = {"content": {"parts": [{"text": text}]}, "finishReason": finish and finish.upper()}
        return {"candidates": [candidate], **fields}
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **fields}


@pytest.mark.parametrize("pieces", [["\ud83d", "\ude00"], ["a\ud83d", "\ude00b"], ["\ud83d", "", "\ude00"]])
async def test_a_character_that_is_cut_in_two_is_told_whole(
    odd: Upstream, by_hand: tuple[ByHand, str], pieces: list[str]
) -> None:
    by_hand[0].says = stream(*(said(odd.provider, one) for one in pieces), said(odd.provider, "", "stop"))
    messages, error = await heard(odd)
    assert error is None
    assert texts(messages) == "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16")


@pytest.mark.parametrize("pieces", [["\ud83d", "a"], ["a\ud83d"], ["a\ude00", "\ud83d"]])
async def test_half_a_character_is_upstreams_fault(
    odd: Upstream, by_hand: tuple[ByHand, str], pieces: list[str]
) -> None:
    by_hand[0].says = stream(*(said(odd.provider, one) for one in pieces), said(odd.provider, "", "stop"))
    assert failure((await heard(odd))[1])[1] == "UPSTREAM_FAULT"


async def test_half_a_character_before_a_limit_is_no_fault(odd: Upstream, by_hand: tuple[ByHand, str]) -> None:
    limit = "max_tokens" if odd.provider == "genai" else "length"
    by_hand[0].says = stream(said(odd.provider, "a\ud83d", limit))
    messages, error = await heard(odd)
    assert error is None
    assert texts(messages) == "a"
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_MAX_TOKENS


LATE = {
    "done": b"[DONE]",
    "junk": b"{",
    "no JSON": b"DONE",
    "no UTF-8": b'{"a": "\xff"}',
    "an error": b'{"error": {"code": 429, "message": "SECRET", "status": "RESOURCE_EXHAUSTED"}}',
    "a word": b'{"error": "SECRET"}',
}


@pytest.mark.parametrize("late", LATE)
async def test_what_comes_behind_the_finish_reason_costs_nothing(
    odd: Upstream, by_hand: tuple[ByHand, str], late: str
) -> None:
    by_hand[0].says = stream(said(odd.provider, "a"), said(odd.provider, "b", "stop"), LATE[late])
    messages, error = await heard(odd)
    assert error is None
    assert texts(messages) == "ab"
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_STOP


async def test_a_connection_that_breaks_behind_the_finish_reason_costs_nothing(
    odd: Upstream, by_hand: tuple[ByHand, str]
) -> None:
    whole = b"data: %s\n\n" % json.dumps(said(odd.provider, "a", "stop")).encode()
    by_hand[0].says = OK + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(whole), whole)
    messages, error = await heard(odd)
    assert error is None
    assert texts(messages) == "a"
    assert not messages[-1].completed.usage.exact


@pytest.mark.parametrize("late", LATE)
async def test_the_same_before_it_is_a_typed_failure(odd: Upstream, by_hand: tuple[ByHand, str], late: str) -> None:
    by_hand[0].says = stream(said(odd.provider, "a"), LATE[late])
    _, error = await heard(odd)
    assert error is not None
    assert failure(error)[1] in ("UPSTREAM_FAULT", "UPSTREAM_CUT", "UPSTREAM_QUOTA")
    assert "SECRET" not in str(error)


@pytest.mark.parametrize(
    "late",
    [
        status("RESOURCE_EXHAUSTED", "SECRET"),
        status("INTERNAL", "SECRET"),
        status("DEADLINE_EXCEEDED"),
        cut(),
        message_bytes(b"\xff\xfe{"),
    ],
)
async def test_what_comes_behind_the_finish_reason_costs_nothing_over_grpc_either(
    open_provider: Open, late: Any
) -> None:
    vertex = await open_provider("vertex")
    whole = google.GenerateContentResponse()
    whole.candidates.add(finish_reason=google.Candidate.STOP).content.parts.add(text="a")
    vertex.emulator.script.play(answer(message_bytes(whole.SerializeToString()), wait_for("read"), late, uses=0))
    call: Any = vertex.served.stub.Generate(pb.GenerateRequest(prompt="hi"), timeout=20)
    assert [(await call.read()).text for _ in range(2)] == ["", "a"]
    vertex.emulator.open_gate("read")
    messages, error = await processes.outcome(call)
    assert error is None
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_STOP


async def test_zeros_count_nothing(odd: Upstream, by_hand: tuple[ByHand, str]) -> None:
    zeros = {
        "usageMetadata": {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0},
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }
    for text in ("", "a"):
        by_hand[0].says = stream(said(odd.provider, text, "stop", **zeros))
        messages, error = await heard(odd)
        assert error is None
        assert messages[-1].completed.usage == pb.Usage(exact=False)


@pytest.mark.parametrize("body", [{}, {"totalTokens": None}, {"totalTokens": -1}, {"totalTokens": "x"}, [], None, 3])
async def test_a_count_that_is_none_is_upstreams_fault(
    open_provider: Open, by_hand: tuple[ByHand, str], body: Any
) -> None:
    upstream = await open_on(open_provider, "genai", by_hand[1])
    head = OK.replace(b"text/event-stream", b"application/json") + b"connection: close\r\n\r\n"
    by_hand[0].says = head + json.dumps(body).encode()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upstream.served.stub.CountTokens(pb.CountTokensRequest(prompt="hi"), timeout=20)
    assert failure(caught.value)[1] == "UPSTREAM_FAULT"
