"""One deadline for everything: what the caller gave, or less. It always ends in a typed status."""

import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo

from tests.conftest import failure
from tests.faults.processes import ServerChild, fate
from tests.faults.recorder import milliseconds, record
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, blackhole, headers, repeat, silence, status


def told(error: grpc.aio.AioRpcError) -> str:
    """The reason of an error at the caller's deadline; empty where its own clock, which knows none, came first."""
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return "" if "Deadline Exceeded" in str(error.details()) else failure(error)[1]


@pytest.mark.parametrize(
    "steps",
    [(silence(),), (headers(), silence()), ("word ", silence()), (repeat(0, "word ", interval=0.01),)],
    ids=["silent", "after headers", "in mid-stream", "while streaming"],
)
async def test_the_callers_deadline_ends_the_call_here_and_upstream(
    upstream: Emulator, served: ServerChild, steps: tuple[Any, ...]
) -> None:
    upstream.script.play(answer(*steps, uses=0))
    seconds, reasons = [], []
    async with served.caller() as caller:
        await caller.stub.ListModels(pb.ListModelsRequest())  # connected, as a caller usually is
        for _ in range(10):
            begin = time.monotonic()
            _, error = await fate(caller.start(timeout=0.3))
            seconds.append(time.monotonic() - begin)
            reasons.append(told(error))
    assert set(reasons) <= {"CALLER_DEADLINE", ""}
    assert "CALLER_DEADLINE" in reasons
    assert len(upstream.calls) == 10
    assert all(call.deadline is not None and call.deadline <= 0.3 for call in upstream.calls)
    await upstream.wait_until(lambda upstream: not upstream.open_calls)
    record("caller deadline", *milliseconds(seconds))
    record("caller deadline without a reason", float(reasons.count("")))


@pytest.mark.usefixtures("budget")
async def test_retries_live_within_the_same_deadline(upstream: Emulator, served: ServerChild) -> None:
    wish = RetryInfo()
    wish.retry_delay.FromMilliseconds(200)
    reasons = []
    for _ in range(3):
        upstream.reset()
        upstream.script.play(answer(status("UNAVAILABLE", "away", wish)), answer("word ", silence()))
        async with served.caller() as caller:
            messages, error = await fate(caller.start(timeout=2))
        reasons.append(told(error))
        await upstream.wait_until(lambda upstream: not upstream.open_calls)
        assert [message.text for message in messages] == ["", "word "]
        first, second = (call.deadline for call in upstream.calls)
        assert first is not None
        assert second is not None
        assert second + 0.15 < first < 2
    assert set(reasons) <= {"CALLER_DEADLINE", ""}
    assert "CALLER_DEADLINE" in reasons


async def test_a_delay_that_the_deadline_has_no_room_for_fails_at_once_with_the_real_code(
    upstream: Emulator, served: ServerChild
) -> None:
    wish = RetryInfo()
    wish.retry_delay.FromSeconds(30)
    upstream.script.play(answer(status("RESOURCE_EXHAUSTED", "quota", wish), uses=0))
    seconds = []
    async with served.caller() as caller:
        for _ in range(5):
            begin = time.monotonic()
            _, error = await fate(caller.start(timeout=5))
            seconds.append(time.monotonic() - begin)
            assert failure(error) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA")
    assert len(upstream.calls) == 5
    record("delay beyond the deadline", *milliseconds(seconds))


@pytest.mark.parametrize(
    ("steps", "field", "reason"),
    [
        ((silence(),), "first_chunk_timeout", "FIRST_CHUNK_TIMEOUT"),
        ((headers(), silence()), "first_chunk_timeout", "FIRST_CHUNK_TIMEOUT"),
        (("word ", silence()), "idle_timeout", "IDLE_TIMEOUT"),
        (("word ", blackhole()), "idle_timeout", "IDLE_TIMEOUT"),
    ],
    ids=["silent", "silent after headers", "silent in mid-stream", "packets dropped"],
)
async def test_a_silent_upstream_is_given_up(
    upstream: Emulator, served: ServerChild, steps: tuple[Any, ...], field: str, reason: str
) -> None:
    upstream.script.play(answer(*steps))
    limit = 0.5
    async with served.caller() as caller:
        begin = time.monotonic()
        wait: dict[str, Any] = {field: Duration(nanos=round(limit * 1e9))}
        _, error = await fate(caller.start(timeout=30, **wait))
        record("upstream silent", 1000 * (time.monotonic() - begin - limit))
        assert failure(error) == (grpc.StatusCode.DEADLINE_EXCEEDED, reason)
        mend(upstream)
        assert (await caller.ask("and again"))[-1].HasField("completed")


def mend(upstream: Emulator) -> None:
    """Reset the connections that swallow everything, so that the server connects anew."""
    assert upstream._relay is not None
    for link in list(upstream._relay._links.values()):
        if link.dark:
            link.reset()
