"""Asking upstream again: only before anything was sent, only where it helps, and nothing twice."""

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from tests.conftest import detail, failure
from tests.faults.processes import ServerChild, fate
from tests.faults.recorder import milliseconds, record
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, headers, status

pytestmark = pytest.mark.usefixtures("budget")


@pytest.mark.parametrize(
    ("code", "ours"),
    [
        ("INVALID_ARGUMENT", (grpc.StatusCode.INVALID_ARGUMENT, "UPSTREAM_REJECTED")),
        # The caller's own permissions are not meant, so it doesn't get this code.
        ("PERMISSION_DENIED", (grpc.StatusCode.FAILED_PRECONDITION, "UPSTREAM_CREDENTIALS")),
    ],
)
@pytest.mark.parametrize("steps", [(), (headers(),)], ids=["before headers", "after headers"])
async def test_an_error_that_no_retry_mends_is_relayed_after_one_attempt(
    upstream: Emulator, served: ServerChild, code: str, ours: tuple[grpc.StatusCode, str], steps: tuple[Any, ...]
) -> None:
    info = ErrorInfo(reason="A_PLAIN_REASON", domain="googleapis.com")
    upstream.script.play(answer(*steps, status(code, "upstream's own text", info), uses=0))
    seconds = []
    async with served.caller() as caller:
        for _ in range(10):
            begin = time.monotonic()
            messages, error = await fate(caller.start())
            seconds.append(time.monotonic() - begin)
            assert messages == []
            assert failure(error) == ours
            assert detail(error, ErrorInfo).metadata["upstream_code"] == code
            assert detail(error, ErrorInfo).metadata["upstream_reason"] == "A_PLAIN_REASON"
            assert "upstream's own text" not in str(error)
    assert len(upstream.calls) == 10
    record(f"{code} from upstream", *milliseconds(seconds))


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
@pytest.mark.parametrize("steps", [(), (headers(),)], ids=["before headers", "after headers"])
async def test_an_upstream_that_is_away_once_is_asked_again_and_nothing_comes_twice(
    upstream: Emulator, served: ServerChild, code: str, steps: tuple[Any, ...]
) -> None:
    upstream.script.play(answer(*steps, status(code, "once")), answer("one ", "two"))
    async with served.caller() as caller:
        begin = time.monotonic()
        messages = await caller.ask()
    record("away once", 1000 * (time.monotonic() - begin))
    assert [message.sequence for message in messages] == [0, 1, 2, 3]
    assert [message.text for message in messages] == ["", "one ", "two", ""]
    assert messages[-1].completed.timing.upstream_attempts == 2
    assert len(upstream.calls) == 2


async def test_the_delay_that_upstream_asks_for_is_kept(upstream: Emulator, served: ServerChild) -> None:
    wish = RetryInfo()
    wish.retry_delay.FromMilliseconds(300)
    upstream.script.play(answer(status("RESOURCE_EXHAUSTED", "quota", wish)), answer("ok"))
    async with served.caller() as caller:
        await caller.ask()
    first, second = upstream.calls
    assert first.ended is not None
    assert second.started - first.ended >= 0.29  # two processes, two clocks


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize(
    ("code", "ours"),
    [
        ("UNAVAILABLE", (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")),
        ("RESOURCE_EXHAUSTED", (grpc.StatusCode.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA")),
        ("INTERNAL", (grpc.StatusCode.INTERNAL, "UPSTREAM_FAULT")),
    ],
)
async def test_an_error_after_some_chunks_comes_behind_exactly_these(
    upstream: Emulator, served: ServerChild, count: int, code: str, ours: tuple[grpc.StatusCode, str]
) -> None:
    texts = [f"piece {number}" for number in range(count)]
    info = ErrorInfo(reason="A_PLAIN_REASON", domain="googleapis.com")
    upstream.script.play(answer(*texts, status(code, "broken", info)))
    async with served.caller() as caller:
        begin = time.monotonic()
        messages, error = await fate(caller.start())
    record("error after k chunks", 1000 * (time.monotonic() - begin))
    assert [message.text for message in messages] == ["", *texts]
    assert failure(error) == ours
    metadata = detail(error, ErrorInfo).metadata
    assert metadata["upstream_reason"] == "A_PLAIN_REASON"
    assert metadata["last_sequence"] == str(count)
    assert len(upstream.calls) == 1


async def test_in_an_outage_retries_stay_within_their_budget(upstream: Emulator, served: ServerChild) -> None:
    upstream.script.play(answer(status("UNAVAILABLE", "away"), uses=0))
    requests = 200
    async with served.caller() as caller:

        async def fail() -> None:
            _, error = await fate(caller.start())
            assert failure(error) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")

        for _ in range(requests // 20):
            await asyncio.gather(*(fail() for _ in range(20)))
    assert len(upstream.calls) <= 1.1 * requests
    record("attempts in an outage", len(upstream.calls) / requests)
