"""What upstreams say of errors with a field missing, null, retyped or twice: what the status says, never our bug."""

import copy
import email.utils
import json
import time
from typing import Any

import grpc
import grpc.aio
import hypothesis
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from service.providers.gemini import over_grpc
from tests.conftest import detail, failure
from tests.faults import processes
from tests.providers.conftest import OK, ByHand, Open, Upstream, open_on
from tests.service.providers.chat_completions.test_chunks import NOTHING, ODD, places
from tokenwire.v1 import generation_service_pb2 as pb

Json = dict[str, Any]

GOOD: list[Json] = [
    {
        "error": {
            "code": 429,
            "message": "SECRET",
            "status": "RESOURCE_EXHAUSTED",
            "type": "rate_limit_error",
            "param": "p",
            "details": [
                {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "WHY", "metadata": {"a": "b"}},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"},
            ],
            "metadata": {"error_type": "rate_limit_exceeded", "reasons": [], "flagged_input": ""},
        }
    }
]
PLACES = list(places(GOOD))

WHEN = ["status", "first", "mid-stream", "behind the end", "count"]
"""When the error comes: with a status of HTTP, as an event in three places, for CountTokens."""


def changed(path: tuple[Any, ...], value: Any) -> Any:
    """The good body with this value there; `NOTHING`: without it."""
    made: Any = copy.deepcopy(GOOD)
    holder = made
    for key in path[:-1]:
        holder = holder[key]
    if value is NOTHING:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return made[0] if made else None


def refusal(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} No", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def text(provider: str, finish: str = "") -> Json:
    """A piece of an answer, with the word for its end in the provider's own words."""
    if provider == "genai":
        return {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": finish.upper() or None}]}
    return {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": finish or None}]}


def stream(*chunks: Any) -> bytes:
    return OK + b"connection: close\r\n\r\n" + b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in chunks)


@pytest.fixture(params=["genai", "openai", "azure"])
async def odd(request: pytest.FixtureRequest, open_provider: Open, by_hand: tuple[ByHand, str]) -> Upstream:
    return await open_on(open_provider, request.param, by_hand[1])


async def heard(upstream: Upstream) -> tuple[list[pb.GenerateResponse], Any]:
    return await processes.outcome(upstream.served.stub.Generate(pb.GenerateRequest(prompt="hi"), timeout=20))


async def counted(upstream: Upstream) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upstream.served.stub.CountTokens(pb.CountTokensRequest(prompt="hi"), timeout=20)
    return caught.value


@hypothesis.settings(max_examples=200, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(st.builds(changed, st.sampled_from(PLACES), ODD), st.sampled_from(WHEN), st.sampled_from([400, 429, 503]))
async def test_no_odd_error_is_a_bug_of_ours(
    odd: Upstream, by_hand: tuple[ByHand, str], body: Any, when: str, status: int
) -> None:
    match when:
        case "status" | "count":
            by_hand[0].says = refusal(status, json.dumps(body).encode())
        case "first":
            by_hand[0].says = stream(body)
        case "mid-stream":
            by_hand[0].says = stream(text(odd.provider), body)
        case _:
            by_hand[0].says = stream(text(odd.provider, "stop"), body)
    error = await counted(odd) if when == "count" else (await heard(odd))[1]
    if error is not None:
        assert failure(error)[1] != "INTERNAL"
        assert "SECRET" not in str(error)


@pytest.mark.parametrize("details", [None, 3, True, "x", {}, [None], [[]], [{"@type": None}], [{"@type": 3}]])
@pytest.mark.parametrize("status", [400, 429, 503])
async def test_details_that_cannot_be_read_leave_what_the_status_says(
    odd: Upstream, by_hand: tuple[ByHand, str], details: Any, status: int
) -> None:
    reasons = {400: "UPSTREAM_REJECTED", 429: "UPSTREAM_QUOTA", 503: "UPSTREAM_UNAVAILABLE"}
    by_hand[0].says = refusal(status, json.dumps({"error": {"message": "SECRET", "details": details}}).encode())
    assert failure((await heard(odd))[1])[1] == reasons[status]
    if odd.provider == "genai":
        assert failure(await counted(odd))[1] == reasons[status]


@pytest.mark.parametrize("body", [b'{"error":' * 50_000 + b"1" + b"}" * 50_000, b'{"error": "\xff"}', b"[", b""])
async def test_an_error_that_cannot_be_read_is_what_its_status_says(
    odd: Upstream, by_hand: tuple[ByHand, str], body: bytes
) -> None:
    by_hand[0].says = refusal(503, body)
    assert failure((await heard(odd))[1])[1] == "UPSTREAM_UNAVAILABLE"
    if odd.provider == "genai":
        assert failure(await counted(odd))[1] == "UPSTREAM_UNAVAILABLE"


@given(st.data())
def test_no_odd_byte_of_an_error_over_grpc_is_a_bug_of_ours(data: st.DataObject) -> None:
    status = Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="SECRET")
    for one in (ErrorInfo(reason="WHY"), RetryInfo(retry_delay=Duration(seconds=37))):
        status.details.add().Pack(one)
    raw = bytearray(status.SerializeToString())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", bytes(raw)))
    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailers, details="SECRET")
    told = over_grpc.upstream_error(error)
    assert told.reason == "UPSTREAM_QUOTA"
    assert b"SECRET" not in told.status().SerializeToString()


WHEN_TO_COME_BACK = [
    ("retry-after: 7", 7, 7),
    ("retry-after-ms: 7000", 7, 7),
    ("retry-after-ms: 7000\r\nretry-after: 9", 7, 7),
    ("retry-after: 86400", 86400, 86400),
    ("retry-after: {date}", 50, 60),
    ("retry-after: soon", 5, 5),
]


@pytest.mark.parametrize(("header", "least", "most"), WHEN_TO_COME_BACK)
async def test_a_header_says_when_to_come_back_unless_google_says_it(
    odd: Upstream, by_hand: tuple[ByHand, str], header: str, least: float, most: float
) -> None:
    told = header.format(date=email.utils.formatdate(time.time() + 60, usegmt=True))
    by_hand[0].says = refusal(429, b'{"error": {"message": "no"}}', told)
    delay = detail((await heard(odd))[1], RetryInfo).retry_delay
    assert least <= delay.seconds + delay.nanos / 1e9 <= most
    if odd.provider == "genai":
        by_hand[0].says = refusal(429, json.dumps(GOOD[0]).encode(), told)
        assert detail((await heard(odd))[1], RetryInfo).retry_delay.seconds == 37
        assert detail(await counted(odd), RetryInfo).retry_delay.seconds == 37


@pytest.mark.parametrize(("code", "status"), [(429, "429"), ("429", "429"), (429.5, None), (True, None), (0, None)])
async def test_the_status_is_told_as_far_as_upstream_gave_one(
    open_provider: Open, by_hand: tuple[ByHand, str], code: Any, status: str | None
) -> None:
    upstream = await open_on(open_provider, "genai", by_hand[1])
    error = {"code": code, "status": "RESOURCE_EXHAUSTED", "message": "SECRET"}
    for body, told in (
        (refusal(503, json.dumps({"error": error}).encode()), "503"),
        (stream({"error": error}), status),
    ):
        by_hand[0].says = body
        found = detail((await heard(upstream))[1], ErrorInfo)
        assert (found.metadata["upstream_code"], found.reason) == ("RESOURCE_EXHAUSTED", "UPSTREAM_QUOTA")
        assert found.metadata.get("upstream_status") == told
