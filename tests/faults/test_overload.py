"""More callers than there is room for: the rest is refused at once and in words, and nobody inside feels it."""

import asyncio
import itertools
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health_pb2

from tests.conftest import detail, failure
from tests.faults.conftest import SLOTS
from tests.faults.processes import Caller, ServerChild, ending, fate, outcome, pieces
from tests.faults.recorder import milliseconds, percentile, record
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, repeat

BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
CHUNKS = 60


async def test_under_overload_the_rest_is_refused_at_once_and_those_inside_go_on(
    upstream: Emulator, limited: ServerChild
) -> None:
    upstream.script.play(answer(repeat(0, "word ", interval=0.05), uses=0))
    over = asyncio.Event()
    async with limited.caller() as inside, limited.caller() as outside, limited.caller() as watcher:
        calls = [inside.start() for _ in range(SLOTS)]
        await asyncio.gather(*(pieces(call, 2) for call in calls))
        calm = await gaps(calls)
        refused = [asyncio.ensure_future(refusals(outside, over)) for _ in range(2 * SLOTS)]
        checked = asyncio.ensure_future(checks(watcher, over))
        pressed = await gaps(calls)
        over.set()
        waits = list(itertools.chain.from_iterable(await asyncio.gather(*refused)))
        statuses = await checked
        assert len(upstream.calls) == SLOTS, "a refused call has reached upstream"
        for call in calls:
            call.cancel()
    serving = statuses[health_pb2.HealthCheckResponse.SERVING]
    assert serving > 10
    assert len(waits) > 2 * SLOTS
    record("overload: refusals", *milliseconds(waits))
    record("overload: gaps", percentile(pressed, 0.99) / percentile(calm, 0.99))
    record("overload: health", statuses.total() - serving)


async def gaps(calls: list[Any]) -> list[float]:
    """The seconds between chunks, of all these streams."""

    async def of(call: Any) -> list[float]:
        moments = []
        for _ in range(CHUNKS):
            await pieces(call, 1)
            moments.append(time.monotonic())
        return [later - earlier for earlier, later in itertools.pairwise(moments)]

    return list(itertools.chain.from_iterable(await asyncio.gather(*map(of, calls))))


async def refusals(caller: Caller, over: asyncio.Event) -> list[float]:
    """Ask again and again; the seconds that each refusal took."""
    seconds = []
    await asyncio.sleep(random.uniform(0, 0.2))  # callers don't march in step
    while not over.is_set():
        begin = time.monotonic()
        call = caller.start()
        _, error = await fate(call)
        seconds.append(time.monotonic() - begin)
        assert failure(error) == BUSY
        wait = detail(error, RetryInfo).retry_delay.ToMilliseconds()
        assert wait > 0
        assert (await call.trailing_metadata())["grpc-retry-pushback-ms"] == str(wait)
        await asyncio.sleep(0.2)
    return seconds


async def checks(caller: Caller, over: asyncio.Event) -> "Counter[Any]":
    """What the health service says meanwhile; 0 where it says nothing within a second."""
    said: Counter[Any] = Counter()
    while not over.is_set():
        try:
            said[(await caller.health.Check(health_pb2.HealthCheckRequest(), timeout=1)).status] += 1
        except grpc.aio.AioRpcError:
            said[0] += 1
        await asyncio.sleep(0.05)
    return said


@pytest.mark.parametrize("connections", [1, 2])
async def test_of_2500_calls_at_once_each_is_served_or_refused_in_words(
    upstream: Emulator, limited: ServerChild, connections: int
) -> None:
    upstream.script.play(answer("word", uses=0))
    endings: Counter[Any] = Counter()

    async def ask(caller: Caller) -> None:
        messages, error = await outcome(caller.start())
        served = error is None and messages and messages[-1].HasField("completed")
        endings["served" if served else ending(error)] += 1

    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(limited.caller()) for _ in range(connections)]
        await asyncio.gather(*(ask(callers[number % connections]) for number in range(2500)))
    record("2,500 calls", endings.total() - endings["served"] - endings[BUSY])
    assert set(endings) == {"served", BUSY}, endings
    assert endings.total() == 2500
