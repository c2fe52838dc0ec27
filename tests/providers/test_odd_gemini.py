"""What Gemini says over HTTP with a field missing, null, retyped or twice: the same answer, or a typed failure."""

import json
from collections.abc import Mapping
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import failure
from tests.faults import processes
from tests.providers.conftest import OK, ByHand, Open, Upstream, open_on, told_or_typed
from tests.service.providers.chat_completions.test_chunks import ODD, changed, places
from tokenwire.v1 import generation_service_pb2 as pb

Json = dict[str, Any]

COUNTS = {"promptTokenCount": 4, "candidatesTokenCount": 9, "thoughtsTokenCount": 2, "totalTokenCount": 15}


def response(*parts: Mapping[str, Any], finish: str = "", **fields: Any) -> Json:
    candidate: Json = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": "gemini-1", "responseId": "r", **fields}


GOOD = [
    response({"text": "hm", "thought": True}),
    response({"text": "one "}),
    response({"text": "two"}, {"functionCall": {"name": "w", "args": {"city": "Rome", "days": 3}, "id": "a"}}),
    {
        "candidates": [
            {
                "content": {"role": "model", "parts": [{"text": "."}]},
                "finishReason": "STOP",
                "safetyRatings": [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "LOW"}],
                "groundingMetadata": {
                    "groundingChunks": [{"web": {"uri": "u", "title": "t"}}],
                    "groundingSupports": [{"groundingChunkIndices": [0], "segment": {"startIndex": 0, "endIndex": 3}}],
                    "webSearchQueries": ["q"],
                },
            }
        ],
        "modelVersion": "gemini-1",
        "usageMetadata": COUNTS,
    },
]

PLACES = list(places(GOOD))

HARMLESS = {"usageMetadata", "modelVersion", "safetyRatings", "groundingMetadata", "responseId", "role", "index"}
"""Of the names on the way to a field: it says nothing of what the answer says."""

SAID = {
    "text": "one two.",
    "thoughts": "hm",
    "calls": [("w", {"city": "Rome", "days": 3.0})],
    "finish": "FINISH_REASON_STOP",
}
"""What GOOD says."""


@pytest.fixture
async def odd(open_provider: Open, by_hand: tuple[ByHand, str]) -> Upstream:
    return await open_on(open_provider, "genai", by_hand[1])


def stream(*chunks: Any) -> bytes:
    lines = [b"data: %s\r\n\r\n" % json.dumps(one).encode() for one in chunks]
    return OK + b"connection: close\r\n\r\n" + b"".join(lines)


async def heard(upstream: Upstream) -> tuple[list[pb.GenerateResponse], Any]:
    request = pb.GenerateRequest(prompt="hi")
    return await processes.outcome(upstream.served.stub.Generate(request, timeout=20))


async def test_what_is_taken_apart_below_is_an_answer(odd: Upstream, by_hand: tuple[ByHand, str]) -> None:
    by_hand[0].says = stream(*GOOD)
    messages, error = await heard(odd)
    told_or_typed(messages, error, SAID)
    assert messages[-1].completed.usage.total_tokens == 15


@pytest.mark.parametrize("beside", [{}, {"thoughtSignature": "c2lnbmVk"}, {"thought": True}])
async def test_a_part_of_a_kind_that_nobody_knows_does_not_vanish(
    odd: Upstream, by_hand: tuple[ByHand, str], beside: Json
) -> None:
    by_hand[0].says = stream(response({"text": "a"}), response({"hologram": {"data": "x"}, **beside}, finish="STOP"))
    _, error = await heard(odd)
    assert failure(error)[1] == "UPSTREAM_FAULT"
    assert error is not None
    assert "part of type hologram" in str(error.details())


async def test_what_is_nested_without_end_is_upstreams_fault(odd: Upstream, by_hand: tuple[ByHand, str]) -> None:
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    by_hand[0].says = OK + b"connection: close\r\n\r\n" + b"data: " + deep + b"\n\n"
    _, error = await heard(odd)
    assert failure(error)[1] == "UPSTREAM_FAULT"


@pytest.mark.parametrize("part", [{}, {"text": None}, {"thoughtSignature": "c2lnbmVk"}])
async def test_a_part_that_says_nothing_harms_nothing(odd: Upstream, by_hand: tuple[ByHand, str], part: Json) -> None:
    by_hand[0].says = stream(response(part), response({"text": "a"}, finish="STOP"))
    messages, error = await heard(odd)
    assert error is None
    assert "".join(message.text for message in messages) == "a"
    signed = [message.reasoning.signature for message in messages if message.HasField("reasoning")]
    assert signed == [b"signed"] * ("thoughtSignature" in part)


async def test_what_an_earlier_response_told_is_not_wiped_by_a_later_one(
    odd: Upstream, by_hand: tuple[ByHand, str]
) -> None:
    last = response({"text": "b"}, finish="STOP", usageMetadata={"trafficType": "ON_DEMAND"})
    del last["modelVersion"]
    by_hand[0].says = stream(response({"text": "a"}, usageMetadata=COUNTS), last)
    messages, error = await heard(odd)
    assert error is None
    completed = messages[-1].completed
    assert (completed.model_version, completed.usage.exact, completed.usage.total_tokens) == ("gemini-1", True, 15)


@pytest.mark.parametrize("counts", [{}, {"trafficType": "ON_DEMAND"}, {"promptTokenCount": 0}])
async def test_a_usage_without_any_count_is_none(odd: Upstream, by_hand: tuple[ByHand, str], counts: Json) -> None:
    by_hand[0].says = stream(response({"text": "a"}, finish="STOP", usageMetadata=counts))
    messages, error = await heard(odd)
    assert error is None
    assert messages[-1].completed.usage == pb.Usage(exact=False)


async def test_an_answer_that_says_nothing_is_told_from_one_that_does(
    odd: Upstream, by_hand: tuple[ByHand, str]
) -> None:
    by_hand[0].says = stream(response({"text": ""}, finish="STOP"))
    messages, error = await heard(odd)
    assert error is None
    assert messages[-1].completed.finish_reason == pb.FINISH_REASON_EMPTY
    assert messages[-1].completed.upstream_finish_reason == "STOP"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('data: {"candidates":[{"content":{"parts":[{"text":"a\u2028b"}]},"finishReason":"STOP"}]}', "a\u2028b"),
        ('\ufeffdata: {"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}', "a"),
        ('data:{"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}', "a"),
        (': ping\nid: 1\ndata: {"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}', "a"),
    ],
)
async def test_events_are_read_however_they_are_written(
    odd: Upstream, by_hand: tuple[ByHand, str], line: str, said: str
) -> None:
    by_hand[0].says = OK + b"connection: close\r\n\r\n" + line.encode() + b"\n\n"
    messages, error = await heard(odd)
    assert error is None
    assert "".join(message.text for message in messages) == said


async def test_bytes_that_are_no_text_are_not_replaced(odd: Upstream, by_hand: tuple[ByHand, str]) -> None:
    by_hand[0].says = stream(response({"text": "a?"}, finish="STOP")).replace(b"?", b"\xe4\xbd")
    _, error = await heard(odd)
    assert failure(error)[1] == "UPSTREAM_FAULT"


@pytest.mark.parametrize("call", [{"args": {"a": 1}}, {"name": "", "args": {}}, {"name": "w", "willContinue": True}])
async def test_a_call_that_cannot_be_told_is_upstreams_fault(
    odd: Upstream, by_hand: tuple[ByHand, str], call: Json
) -> None:
    by_hand[0].says = stream(response({"functionCall": call}, finish="STOP"))
    _, error = await heard(odd)
    assert failure(error)[1] == "UPSTREAM_FAULT"


@hypothesis.settings(max_examples=100, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), ODD, st.booleans())
async def test_no_odd_field_is_a_bug_of_ours(
    odd: Upstream, by_hand: tuple[ByHand, str], path: tuple[Any, ...], value: Any, twice: bool
) -> None:
    by_hand[0].says = stream(*changed(GOOD, path, value, twice=twice))
    messages, failed = await heard(odd)
    told_or_typed(messages, failed, SAID if HARMLESS & set(path) else None)


@pytest.mark.parametrize("value", [5, "x", [5], {"x": 5}, None, True])
@pytest.mark.parametrize(
    "name", ["usageMetadata", "modelVersion", "createTime", "responseId", "promptFeedback", "sdkHttpResponse", "x"]
)
async def test_a_harmless_field_of_another_type_costs_nothing(
    odd: Upstream, by_hand: tuple[ByHand, str], name: str, value: Any
) -> None:
    by_hand[0].says = stream(*[{**one, name: value} for one in GOOD])
    messages, failed = await heard(odd)
    told_or_typed(messages, failed, SAID)
    assert messages[-1].completed.usage.exact is (name != "usageMetadata")


async def test_an_answer_that_goes_on_in_another_response_is_asked_for_its_rest(
    odd: Upstream, by_hand: tuple[ByHand, str]
) -> None:
    first = response({"text": "a"}, finish="CONTINUATION")
    first["candidates"][0]["continuationToken"] = "dG9rZW4="
    rest = [stream(first), stream(response({"text": "b"}, finish="STOP"))]
    by_hand[0].answers = iter(rest)
    messages, failed = await heard(odd)
    told_or_typed(messages, failed, SAID | {"text": "ab", "thoughts": "", "calls": []})
    assert len(by_hand[0].heads) == len(rest)
