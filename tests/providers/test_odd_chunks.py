"""Servers that speak Chat Completions in ways of their own, through the wire: bytes by hand, the real libraries above.

What each shape means is in tests/service/providers/chat_completions/test_chunks.py; here, that the library and the SDK
let it through, and that nothing of it becomes INTERNAL.
"""

import email.utils
import json
import time
from typing import Any

import grpc
import hypothesis
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import detail, failure
from tests.faults import processes
from tests.providers.conftest import OK, ByHand, Open, Upstream, open_on, told_or_typed
from tests.service.providers.chat_completions.test_chunks import GOOD, ODD, PLACES, changed, chunk, piece
from tokenwire.v1 import generation_service_pb2 as pb

Code = grpc.StatusCode

HARMLESS = {"usage", "model", "id", "object", "created", "citations"}
"""A chunk's fields that say nothing of what the answer says."""

SAID = {
    "text": "one two",
    "thoughts": "hmhm",
    "calls": [("w", {"city": "Rome"}), ("v", {})],
    "finish": "FINISH_REASON_STOP",
}
"""What GOOD says."""

COUNTED = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}}


@pytest.fixture(params=["openai", "azure"])
async def odd(request: pytest.FixtureRequest, open_provider: Open, by_hand: tuple[ByHand, str]) -> Upstream:
    return await open_on(open_provider, request.param, by_hand[1])


def stream(*chunks: Any) -> bytes:
    lines = [b"data: %s\n\n" % json.dumps(one).encode() for one in chunks]
    return OK + b"connection: close\r\n\r\n" + b"".join(lines) + b"data: [DONE]\n\n"


def refusal(status: int, error: Any, *headers: str) -> bytes:
    body = json.dumps({"error": error}).encode()
    lines = [f"HTTP/1.1 {status} No", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def heard(upstream: Upstream) -> tuple[list[pb.GenerateResponse], grpc.aio.AioRpcError | None]:
    request = pb.GenerateRequest(prompt="hi")
    return await processes.outcome(upstream.served.stub.Generate(request, timeout=20))


async def test_an_odd_answer_is_told_whole(odd: Upstream, by_hand: tuple[ByHand, str]) -> None:
    by_hand[0].says = stream(
        chunk(role="assistant", content=None, reasoning_content="hm"),
        {"choices": [{"index": 0, "finish_reason": None}]},
        chunk(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        chunk(content="\ud83d"),
        chunk(content="\ude00"),
        chunk(tool_calls=[piece(0, "one", "get_weather", {"city": "Rome"})]),
        chunk(tool_calls=[piece(0, "two", "get_weather", '{"city"')]),
        chunk(tool_calls=[piece(0, "two", "get_weather", ':"Oslo"}')]),
        chunk("stop"),
        COUNTED,
        {"choices": [], "usage": {"completion_tokens": None}},
    )
    messages, error = await heard(odd)
    assert error is None
    assert "".join(message.text for message in messages) == "ab😀"
    assert [message.reasoning.text for message in messages if message.HasField("reasoning")] == ["hm"]
    calls = [message.tool_call.tool_call for message in messages if message.HasField("tool_call")]
    assert [(call.id, call.name, dict(call.arguments)) for call in calls] == [
        ("one", "get_weather", {"city": "Rome"}),
        ("two", "get_weather", {"city": "Oslo"}),
    ]
    completed = messages[-1].completed
    assert completed.finish_reason == pb.FINISH_REASON_STOP
    assert completed.usage == pb.Usage(exact=True, input_tokens=5, output_tokens=3, total_tokens=8)
    assert completed.model_version == "m-1"


@pytest.mark.parametrize(
    "says_nothing",
    [
        {"annotations": {}},
        {"tool_calls": {}},
        {"tool_calls": ""},
        {"refusal": {}},
        {"reasoning_content": False},
        {"function_call": []},
        {"reasoning": {}, "images": {}, "audio": ""},
    ],
)
async def test_a_value_that_says_nothing_costs_nothing(
    odd: Upstream, by_hand: tuple[ByHand, str], says_nothing: Any
) -> None:
    by_hand[0].says = stream(chunk(content="a", **says_nothing), chunk("stop", **says_nothing), COUNTED)
    messages, error = await heard(odd)
    assert error is None
    assert [message.WhichOneof("event") for message in messages] == ["started", "text", "completed"]
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_STOP


@pytest.mark.parametrize(
    "told",
    [[], "x", {"content": [{"token": 3, "logprob": -1}]}, {"content": [{"token": "a", "logprob": "-1"}]}, [3], 7],
)
async def test_logprobs_that_nobody_asked_for_are_not_read(
    odd: Upstream, by_hand: tuple[ByHand, str], told: Any
) -> None:
    said = chunk(content="a")
    said["choices"][0]["logprobs"] = told
    by_hand[0].says = stream(said, chunk("stop"))
    messages, error = await heard(odd)
    assert error is None
    assert "".join(message.text for message in messages) == "a"


@pytest.mark.parametrize(
    "cites",
    [
        chunk(content="a", citations=["https://u"]),
        chunk(content="a", context={"citations": [{"content": "c", "title": "", "url": "https://u"}], "intent": "[]"}),
        chunk(content="a", annotations=[{"type": "url_citation", "url": "https://u"}]),
        chunk(content="a", annotations=[{"type": "file_citation", "file_citation": {"file_id": "https://u"}}]),
        {**chunk(content="a"), "citations": "https://u"},
        {**chunk(content="a"), "citations": [{"uri": "https://u"}]},
        {**chunk(content="a"), "annotations": [{"type": "url_citation", "url_citation": {"url": "https://u"}}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}, "citations": ["https://u"]}]},
        {"choices": [{"index": 0, "message": {"content": "a", "citations": ["https://u"]}}]},
    ],
)
async def test_what_an_answer_rests_on_is_not_lost(odd: Upstream, by_hand: tuple[ByHand, str], cites: Any) -> None:
    by_hand[0].says = stream(cites, chunk("stop"))
    messages, error = await heard(odd)
    assert error is None
    assert [source.uri for message in messages for source in message.grounding.sources] == ["https://u"]
    assert "".join(message.text for message in messages) == "a"


@pytest.mark.parametrize(
    "later",
    [
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"total_tokens": 8},
        {"prompt_tokens": 5, "completion_tokens": None},
        {"prompt_tokens": True, "completion_tokens": 3, "total_tokens": 4},
    ],
)
async def test_a_count_that_cannot_be_read_is_none_and_wipes_out_none(
    odd: Upstream, by_hand: tuple[ByHand, str], later: Any
) -> None:
    uncounted = {"choices": [], "usage": later}
    by_hand[0].says = stream(chunk("stop", content="a"), COUNTED, uncounted)
    messages, _ = await heard(odd)
    assert messages[-1].completed.usage == pb.Usage(exact=True, input_tokens=5, output_tokens=3, total_tokens=8)
    for content in ("a", ""):
        by_hand[0].says = stream(chunk("stop", content=content), uncounted)
        messages, _ = await heard(odd)
        assert messages[-1].completed.usage == pb.Usage(exact=False)
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_EMPTY


async def test_a_second_call_without_a_name_is_no_clean_stop(odd: Upstream, by_hand: tuple[ByHand, str]) -> None:
    said = [chunk(tool_calls=[piece(0, "a", "f", '{"x":1}')]), chunk(tool_calls=[piece(0, "b", None, '{"x":1}')])]
    by_hand[0].says = stream(*said, chunk("tool_calls"))
    messages, error = await heard(odd)
    assert error is not None
    assert failure(error)[1] == "UPSTREAM_FAULT"
    assert not any(message.HasField("tool_call") for message in messages)


@pytest.mark.parametrize("index", [1, 1.0, "1"])
async def test_a_second_answer_is_left_out(odd: Upstream, by_hand: tuple[ByHand, str], index: Any) -> None:
    second = {"choices": [{"index": index, "delta": {"content": "x"}, "finish_reason": "length"}]}
    by_hand[0].says = stream(chunk(content="a"), second, chunk("stop", content="b"))
    messages, error = await heard(odd)
    assert error is None
    assert "".join(message.text for message in messages) == "ab"
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_STOP


async def test_a_mark_of_the_byte_order_costs_no_words(odd: Upstream, by_hand: tuple[ByHand, str]) -> None:
    said = stream(chunk(content="one "), chunk(content="two"), chunk("stop"))
    by_hand[0].says = said.replace(b"data:", b"\xef\xbb\xbfdata:", 1)
    messages, error = await heard(odd)
    assert error is None
    assert "".join(message.text for message in messages) == "one two"


@pytest.mark.parametrize("hollow", [b"retry: 3000\n\n", b"event: ping\n\n", b"data:\n\n", b"id: 1\n: ping\n\n"])
async def test_an_event_that_holds_nothing_costs_nothing(
    odd: Upstream, by_hand: tuple[ByHand, str], hollow: bytes
) -> None:
    by_hand[0].says = stream(chunk(content="a"), chunk("stop")).replace(b"data:", hollow + b"data:")
    messages, error = await heard(odd)
    assert error is None
    assert "".join(message.text for message in messages) == "a"


def instead(body: Any, **how: Any) -> bytes:
    """JSON where a stream was asked for."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n" + (
        body if isinstance(body, bytes) else json.dumps(body, **how).encode()
    )


@pytest.mark.parametrize("indent", [None, 2])
async def test_an_answer_that_comes_as_one_json_is_told_whole(
    odd: Upstream, by_hand: tuple[ByHand, str], indent: int | None
) -> None:
    """https://github.com/MacPaw/OpenAI/issues/283"""
    called = {"id": "one", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    message = {"role": "assistant", "content": "a\n\nb", "tool_calls": [called]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    by_hand[0].says = instead({"model": "m-1", "choices": [choice], "usage": COUNTED["usage"]}, indent=indent)
    messages, error = await heard(odd)
    assert error is None
    assert "".join(message.text for message in messages) == "a\n\nb"
    (call,) = [message.tool_call.tool_call for message in messages if message.HasField("tool_call")]
    assert (call.id, call.name, dict(call.arguments)) == ("one", "get_weather", {"city": "Rome"})
    completed = messages[-1].completed
    assert completed.usage == pb.Usage(exact=True, input_tokens=5, output_tokens=3, total_tokens=8)
    assert completed.model_version == "m-1"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"code": 429, "type": "insufficient_quota"}, "INSUFFICIENT_QUOTA"),
        ({"code": "429", "type": "insufficient_quota"}, "INSUFFICIENT_QUOTA"),
        ({"code": 429.0, "type": "insufficient_quota"}, "INSUFFICIENT_QUOTA"),
        ({"code": "rate_limit_exceeded", "type": "tokens"}, "RATE_LIMIT_EXCEEDED"),
        ({"code": 429, "type": None}, ""),
        # https://github.com/tontinton/maki/pull/980
        ({"code": 429, "metadata": {"error_type": "rate_limit_exceeded"}}, "RATE_LIMIT_EXCEEDED"),
        ({"code": 429, "metadata": {"error_type": ["SECRET"]}}, ""),
        ({"code": 429, "type": "no plain word: SECRET"}, ""),
    ],
)
async def test_upstreams_own_word_for_a_failure_is_told_whichever_field_it_stands_in(
    odd: Upstream, by_hand: tuple[ByHand, str], error: Any, reason: str
) -> None:
    for says in (refusal(429, error), stream({"error": error})):
        by_hand[0].says = says
        _, failed = await heard(odd)
        assert failed is not None
        assert failure(failed) == (Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA")
        assert detail(failed, ErrorInfo).metadata.get("upstream_reason", "") == reason


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        ({"error": {"message": "SECRET", "code": "rate_limit_exceeded"}}, Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA"),
        ({"object": "error", "message": "SECRET", "code": 429}, Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA"),
        ([{"error": {"message": "SECRET", "code": 503}}], Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"),
        ({"error": {"message": "SECRET", "code": "RESOURCE_EXHAUSTED"}}, Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA"),
        (  # https://github.com/NousResearch/hermes-agent/issues/65631
            {"choices": None, "error_type": "BadRequestError", "error_message": "SECRET"},
            Code.INVALID_ARGUMENT,
            "UPSTREAM_REJECTED",
        ),
        (
            {"choices": [], "error": {"message": "SECRET", "metadata": {"error_type": "provider_unavailable"}}},
            Code.UNAVAILABLE,
            "UPSTREAM_UNAVAILABLE",
        ),
        (b': PROCESSING\n\n{"error": {"code": 429.0}}\n\n', Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA"),
        (b'{"error": {"code": 429}}\n\ndata: [DONE]\n\n', Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA"),
        ({}, Code.INTERNAL, "UPSTREAM_FAULT"),
        ([], Code.INTERNAL, "UPSTREAM_FAULT"),
        ({"detail": "SECRET"}, Code.INTERNAL, "UPSTREAM_FAULT"),
        (["SECRET"], Code.INTERNAL, "UPSTREAM_FAULT"),
        (b'{"choices": [{"message": {"content": "SEC', Code.UNAVAILABLE, "UPSTREAM_CUT"),
        (b"[" * 100_000, Code.INTERNAL, "UPSTREAM_FAULT"),
    ],
)
async def test_an_error_that_comes_with_status_200_is_one(
    odd: Upstream, by_hand: tuple[ByHand, str], body: Any, code: Code, reason: str
) -> None:
    by_hand[0].says = instead(body)
    messages, error = await heard(odd)
    assert not messages
    assert error is not None
    assert failure(error) == (code, reason)
    assert "SEC" not in str(error.details())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("validation", "UPSTREAM_REJECTED"), ("overloaded", "UPSTREAM_UNAVAILABLE"), ("generation", "UPSTREAM_FAULT")],
)
async def test_an_error_says_what_it_is_by_its_kind_beside_it(
    odd: Upstream, by_hand: tuple[ByHand, str], kind: str, reason: str
) -> None:
    """https://github.com/huggingface/huggingface_hub/issues/2514"""
    by_hand[0].says = stream({"error": "SECRET", "error_type": kind}).replace(b"data: [DONE]\n\n", b"")
    messages, error = await heard(odd)
    assert not messages
    assert error is not None
    assert failure(error)[1] == reason
    assert "SECRET" not in str(error)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("FAILED_PRECONDITION", "UPSTREAM_PRECONDITION"),
        ("INVALID_ARGUMENT", "UPSTREAM_REJECTED"),
        ("nonsense", "UPSTREAM_REJECTED"),
        (None, "UPSTREAM_REJECTED"),
    ],
)
async def test_googles_own_status_counts_by_this_protocol_too(
    odd: Upstream, by_hand: tuple[ByHand, str], status: str | None, reason: str
) -> None:
    """https://github.com/FoundationAgents/OpenManus/issues/803"""
    by_hand[0].says = refusal(400, {"code": 400, "message": "SECRET", "status": status})
    _, error = await heard(odd)
    assert error is not None
    assert failure(error)[1] == reason
    assert "SECRET" not in str(error)


LATER = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"}
WHY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}


@pytest.mark.parametrize(
    "line",
    [
        b'error: {"code": 429, "message": "SECRET"}\n\n',
        b'event: error\ndata: {"message": "SECRET", "type": "rate_limit_error"}\n\n',
        b'data: {"choices": [{"index": 0, "error": {"code": 429, "message": "SECRET"}}]}\n\n',
        b'data: {"errors": [{"code": 429, "message": "SECRET"}], "success": false}\n\n',
        b'data: {"choices": null, "base_resp": {"status_code": 429, "status_msg": "SECRET"}}\n\n',
    ],
)
@pytest.mark.parametrize("said", [True, False])
async def test_an_error_in_whatever_form_says_what_it_is(
    odd: Upstream, by_hand: tuple[ByHand, str], line: bytes, *, said: bool
) -> None:
    by_hand[0].says = stream(*[chunk(content="a")] * said).replace(b"data: [DONE]\n\n", line)
    messages, error = await heard(odd)
    assert "".join(message.text for message in messages) == "a" * said
    assert error is not None
    assert failure(error) == (Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA")
    assert "SECRET" not in str(error.details())


@pytest.mark.parametrize("several", [True, False])
async def test_google_says_when_and_why_by_this_protocol_too(
    odd: Upstream, by_hand: tuple[ByHand, str], several: bool
) -> None:
    error = {"code": 429, "message": "SECRET", "status": "RESOURCE_EXHAUSTED", "details": [WHY, LATER]}
    body = json.dumps([{"error": error}] if several else {"error": error}).encode()
    head = "HTTP/1.1 429 No\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    by_hand[0].says = head.encode() + body
    _, failed = await heard(odd)
    assert failed is not None
    assert failure(failed) == (Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA")
    assert detail(failed, RetryInfo).retry_delay.seconds == 37
    assert detail(failed, ErrorInfo).metadata["upstream_reason"] == "API_KEY_INVALID"
    assert len(by_hand[0].heads) == 1, "it is not asked again before"


async def test_an_error_that_comes_as_json_in_mid_stream_is_told(odd: Upstream, by_hand: tuple[ByHand, str]) -> None:
    by_hand[0].says = stream(chunk(content="a")).replace(b"data: [DONE]\n\n", b'{"error": {"code": 429}}\n')
    messages, error = await heard(odd)
    assert "".join(message.text for message in messages) == "a"
    assert error is not None
    assert failure(error) == (Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA")


async def test_a_connection_that_breaks_behind_the_finish_reason_costs_nothing(
    odd: Upstream, by_hand: tuple[ByHand, str]
) -> None:
    said = b"data: %s\n\n" % json.dumps(chunk("stop", content="a")).encode()
    by_hand[0].says = OK + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(said), said)
    messages, error = await heard(odd)
    assert error is None
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_STOP
    assert not messages[-1].completed.usage.exact


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_call_that_came_to_nothing_is_an_ending(
    odd: Upstream, by_hand: tuple[ByHand, str], *, streaming: bool
) -> None:
    error = {"message": "SECRET", "type": "invalid_request_error", "code": "tool_use_failed"}
    by_hand[0].says = stream(chunk(content="a"), {"error": error}) if streaming else refusal(400, error)
    messages, failed = await heard(odd)
    assert failed is None
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_MALFORMED_FUNCTION_CALL


@pytest.mark.parametrize("code", ["content_filter", "invalid_prompt"])
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_prompt_that_is_blocked_is_an_answer(
    odd: Upstream,
    by_hand: tuple[ByHand, str],
    code: str,
    *,
    streaming: bool,
) -> None:
    error = {"message": "SECRET", "type": "invalid_request_error", "code": code}
    by_hand[0].says = stream({"error": error}) if streaming else refusal(400, error)
    messages, failed = await heard(odd)
    assert failed is None
    assert [message.WhichOneof("event") for message in messages] == ["started", "completed"]
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_PROMPT_BLOCKED
    assert messages[-1].completed.upstream_finish_reason == code


FILTERED = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. "
    "Please modify your prompt and retry."
)


@pytest.mark.parametrize(("said", "reason"), [("", "PROMPT_BLOCKED"), ("a", "SAFETY")])
async def test_a_prompt_that_a_filter_struck_is_told_from_an_answer_that_one_did(
    odd: Upstream, by_hand: tuple[ByHand, str], said: str, reason: str
) -> None:
    struck = {"hate": {"filtered": True, "severity": "high"}, "violence": {"filtered": False, "severity": "safe"}}
    results = [{"prompt_index": 0, "content_filter_results": struck}]
    by_hand[0].says = stream({"choices": [], "prompt_filter_results": results}, chunk("content_filter", content=said))
    messages, failed = await heard(odd)
    assert failed is None
    assert pb.FinishReason.Name(messages[-1].completed.finish_reason) == f"FINISH_REASON_{reason}"
    assert messages[-1].completed.upstream_finish_reason == "content_filter"


async def test_an_answer_that_a_filter_struck_is_no_blocked_prompt(odd: Upstream, by_hand: tuple[ByHand, str]) -> None:
    results = [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False}}}, None, {}]
    by_hand[0].says = stream({"choices": [], "prompt_filter_results": results}, chunk("content_filter"))
    messages, _ = await heard(odd)
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_SAFETY


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_words_of_a_filter_in_another_error_block_nothing(
    odd: Upstream, by_hand: tuple[ByHand, str], status: int
) -> None:
    by_hand[0].says = refusal(status, {"message": FILTERED})
    _, failed = await heard(odd)
    assert failed is not None
    assert failure(failed)[1] in ("UPSTREAM_CREDENTIALS", "UPSTREAM_QUOTA", "UPSTREAM_UNAVAILABLE")


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (
            400,
            {"error": {"code": 400, "message": "SECRET", "param": "prompt", "type": "content_filter"}},
            "content_filter",
        ),
        (400, {"error": {"code": "data_inspection_failed", "message": "SECRET"}}, "data_inspection_failed"),
        (403, {"code": "permission-denied", "error": "Content violates usage guidelines."}, "permission-denied"),
        (
            403,
            {"error": {"code": 403, "message": "SECRET", "metadata": {"reasons": ["x"], "flagged_input": "y"}}},
            "403",
        ),
        (400, {"error": {"code": "invalid_request_error", "message": "Content Exists Risk"}}, "invalid_request_error"),
        (
            400,
            {"error": {"code": "400", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
            "ResponsibleAIPolicyViolation",
        ),
        (400, {"error": {"code": "ResponsibleAIPolicyViolation"}}, "ResponsibleAIPolicyViolation"),
        (400, {"error": {"code": "Content_Filter"}}, "Content_Filter"),
        (400, {"error": {"type": "CONTENT_FILTER"}}, "CONTENT_FILTER"),
        (400, {"error": {"code": "moderation_blocked"}}, "moderation_blocked"),
        (400, {"error": {"message": FILTERED}}, "blocked"),
        (400, {"error": FILTERED}, "blocked"),
    ],
    ids=[
        *("Moonshot", "DashScope", "xAI", "OpenRouter", "DeepSeek", "Azure inside", "Azure", "Azure's code"),
        *("Azure's type", "images", "Azure's words", "only words"),
    ],
)
async def test_a_prompt_that_is_blocked_in_other_words_is_an_answer_too(
    odd: Upstream, by_hand: tuple[ByHand, str], status: int, body: Any, word: str
) -> None:
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} No\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    by_hand[0].says = head.encode() + text
    messages, failed = await heard(odd)
    assert failed is None
    completed = messages[-1].completed
    assert completed.finish_reason == pb.FINISH_REASON_PROMPT_BLOCKED
    assert completed.upstream_finish_reason == word


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
async def test_an_error_that_is_nested_without_end_is_what_its_status_says(
    odd: Upstream, by_hand: tuple[ByHand, str], kind: str
) -> None:
    text = b'{"error":' * 100_000 + b"1" + b"}" * 100_000
    head = f"HTTP/1.1 503 No\r\ncontent-type: {kind}\r\ncontent-length: {len(text)}\r\n\r\n"
    by_hand[0].says = head.encode() + text
    _, failed = await heard(odd)
    assert failed is not None
    assert failure(failed)[1] == "UPSTREAM_UNAVAILABLE"


async def test_an_answer_that_is_blocked_on_its_way_ends_for_safety(odd: Upstream, by_hand: tuple[ByHand, str]) -> None:
    by_hand[0].says = stream(chunk(content="a"), {"error": {"code": "data_inspection_failed", "message": "SECRET"}})
    messages, failed = await heard(odd)
    assert failed is None
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_SAFETY


@pytest.mark.parametrize("late", [b"data: DONE\n\n", b'data: {"error":{"message":"SECRET"}}\n\n', b"data: {\n\n"])
async def test_what_comes_behind_the_finish_reason_costs_nothing(
    odd: Upstream, by_hand: tuple[ByHand, str], late: bytes
) -> None:
    by_hand[0].says = stream(chunk("stop", content="a")).replace(b"data: [DONE]\n\n", late)
    messages, failed = await heard(odd)
    assert failed is None
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_STOP


@pytest.mark.parametrize(
    "choice",
    [
        {"index": 0, "delta": {}, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"},
        {"index": 0, "text": "hello", "finish_reason": "stop"},
        {"index": 0, "text": "hello", "delta": None, "finish_reason": "stop"},
    ],
)
async def test_a_text_that_stands_elsewhere_is_not_lost(
    odd: Upstream, by_hand: tuple[ByHand, str], choice: Any
) -> None:
    by_hand[0].says = stream({"choices": [choice]})
    messages, failed = await heard(odd)
    assert failed is None
    assert "".join(message.text for message in messages) == "hello"
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_STOP


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"error": {"message": "SECRET", "type": "internal_server_error", "status_code": 503}}, "UPSTREAM_UNAVAILABLE"),
        ({"error": {"error": {"type": "tokens", "code": "rate_limit_exceeded"}}}, "UPSTREAM_QUOTA"),
        ([{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "SECRET"}}], "UPSTREAM_QUOTA"),
    ],
)
async def test_an_error_that_is_wrapped_is_unwrapped(
    odd: Upstream, by_hand: tuple[ByHand, str], event: Any, reason: str
) -> None:
    by_hand[0].says = stream(chunk(content="a"), event)
    _, failed = await heard(odd)
    assert failed is not None
    assert failure(failed)[1] == reason
    assert "SECRET" not in str(failed)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"message": "SECRET", "code": "rate_limit_exceeded"}, "UPSTREAM_QUOTA"),
        ({"message": "SECRET", "code": None, "type": "insufficient_quota"}, "UPSTREAM_QUOTA"),
        ({"message": "SECRET", "type": "RateLimitError", "code": None}, "UPSTREAM_QUOTA"),
        ({"message": "SECRET", "code": "RateLimitError"}, "UPSTREAM_QUOTA"),
        ({"message": "SECRET", "type": "rate-limit-error"}, "UPSTREAM_QUOTA"),
        ({"message": "SECRET", "type": "AuthenticationError"}, "UPSTREAM_CREDENTIALS"),
        ({"message": "SECRET", "type": "NotFoundError"}, "UPSTREAM_MODEL_NOT_FOUND"),
        ({"message": "SECRET", "code": 424}, "UPSTREAM_FAULT"),
        ({"message": "SECRET", "code": 503}, "UPSTREAM_UNAVAILABLE"),
        ({"message": "SECRET", "code": "overloaded_error"}, "UPSTREAM_UNAVAILABLE"),
        ({"message": "SECRET", "type": "BadRequestError", "code": None}, "UPSTREAM_REJECTED"),
        ({"message": "SECRET", "code": "model_not_found"}, "UPSTREAM_MODEL_NOT_FOUND"),
        ({"message": "SECRET"}, "UPSTREAM_FAULT"),
        ("SECRET", "UPSTREAM_FAULT"),
        ([], None),
    ],
)
async def test_an_error_in_mid_stream_is_what_its_words_say(
    odd: Upstream,
    by_hand: tuple[ByHand, str],
    error: Any,
    reason: str | None,
) -> None:
    by_hand[0].says = stream(chunk(content="a"), {"error": error}, chunk("stop"))
    messages, failed = await heard(odd)
    if reason is None:
        assert failed is None
        assert messages[-1].completed.finish_reason == pb.FINISH_REASON_STOP
        return
    assert failed is not None
    assert failure(failed)[1] == reason
    assert "SECRET" not in str(failed)
    # A status that upstream never gave isn't made up of its words.
    told = detail(failed, ErrorInfo).metadata.get("upstream_status")
    code = error.get("code") if isinstance(error, dict) else None
    assert told == (str(code) if isinstance(code, int) else None)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (402, (Code.FAILED_PRECONDITION, "UPSTREAM_PRECONDITION")),
        (405, (Code.FAILED_PRECONDITION, "UPSTREAM_PRECONDITION")),
        (408, (Code.DEADLINE_EXCEEDED, "UPSTREAM_DEADLINE")),
        (409, (Code.UNAVAILABLE, "UPSTREAM_CUT")),
        (413, (Code.INVALID_ARGUMENT, "UPSTREAM_REJECTED")),
        (418, (Code.INVALID_ARGUMENT, "UPSTREAM_REJECTED")),
        (423, (Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")),
        (424, (Code.INTERNAL, "UPSTREAM_FAULT")),
        (431, (Code.INVALID_ARGUMENT, "UPSTREAM_REJECTED")),
        (440, (Code.FAILED_PRECONDITION, "UPSTREAM_CREDENTIALS")),
        (444, (Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")),
        (449, (Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")),
        (497, (Code.FAILED_PRECONDITION, "UPSTREAM_PRECONDITION")),
        (509, (Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA")),
        (511, (Code.FAILED_PRECONDITION, "UPSTREAM_PRECONDITION")),
        (451, None),
        (500, None),
        (507, (Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")),
        (520, (Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")),
        (530, (Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")),
        (599, (Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")),
    ],
)
async def test_each_http_status_has_its_meaning(
    odd: Upstream,
    by_hand: tuple[ByHand, str],
    status: int,
    expected: tuple[Code, str] | None,
) -> None:
    by_hand[0].says = refusal(status, {"message": "SECRET"})
    _, failed = await heard(odd)
    assert failed is not None
    code, reason = failure(failed)
    assert (code, reason) == expected if expected else reason in ("UPSTREAM_CREDENTIALS", "UPSTREAM_FAULT")
    assert "SECRET" not in str(failed)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("retry-after-ms: 300", 0.3, 0.3),
        ("retry-after: 7", 7, 7),
        ("retry-after: 86400", 86400, 86400),
        ("retry-after: {date}", 50, 60),
        ("retry-after: soon", 0, 5),
    ],
)
async def test_when_to_ask_again_is_passed_on_however_it_is_told(
    odd: Upstream,
    by_hand: tuple[ByHand, str],
    header: str,
    least: float,
    most: float,
) -> None:
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    by_hand[0].says = refusal(429, {"message": "no"}, header.format(date=date))
    _, failed = await heard(odd)
    assert failed is not None
    assert failure(failed)[1] == "UPSTREAM_QUOTA"
    told = detail(failed, RetryInfo).retry_delay
    assert least <= told.seconds + told.nanos / 1e9 <= most


@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), ODD, st.booleans())
async def test_no_odd_field_is_a_bug_of_ours(
    odd: Upstream,
    by_hand: tuple[ByHand, str],
    path: tuple[Any, ...],
    value: Any,
    twice: bool,
) -> None:
    by_hand[0].says = stream(*changed(GOOD, path, value, twice=twice))
    messages, failed = await heard(odd)
    told_or_typed(messages, failed, SAID if HARMLESS & set(path[1:2]) else None)
    assert not any("{'" in message.text or "[{" in message.text for message in messages)
