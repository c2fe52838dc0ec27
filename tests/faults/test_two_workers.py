"""Two workers on one port keep the promises of one: nothing may hang on a caller's calls meeting in one process."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from tests.faults.conftest import SLOTS
from tests.faults.forkserver import ForkServer
from tests.faults.processes import Caller, ServerChild, ending, outcome, pieces
from tests.faults.recorder import milliseconds, record
from tests.faults.test_cancel import TRIES, cancel
from tests.faults.test_drain import DRAINING, STREAMS, WHOLE, rest
from tests.faults.test_overload import BUSY
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, repeat, status

# The kernel deals out connections: that all of so many fall to one worker happens once in half a million runs.
CONNECTIONS = 20

AWAY = (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")


@pytest.fixture(scope="module")
async def the_pair(forkserver: ForkServer, the_upstream: Emulator) -> AsyncIterator[ServerChild]:
    async with forkserver.serving(the_upstream.address, "--slots", str(SLOTS), "--queue", "0", workers=2) as running:
        yield running


@asynccontextmanager
async def callers(served: ServerChild) -> AsyncIterator[list[Caller]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(served.caller()) for _ in range(CONNECTIONS)]


@pytest.fixture
async def pair(the_pair: ServerChild, upstream: Emulator) -> AsyncIterator[list[Caller]]:
    """Callers of a server of two workers, which share 20 slots and have no queue."""
    del upstream  # only so that it is fresh
    async with callers(the_pair) as connected:
        yield connected


async def test_a_cancel_while_reading_ends_the_call_upstream(upstream: Emulator, pair: list[Caller]) -> None:
    upstream.script.play(answer(repeat(0, "word ", interval=0.02), uses=0))
    seconds = []
    for turn in range(TRIES):
        call = pair[turn % CONNECTIONS].start()
        await pieces(call, random.randint(1, 4))
        await asyncio.sleep(random.uniform(0, 0.02))  # at any moment between two chunks
        seconds.append(await cancel(call, upstream))
    record("two workers: cancel", *milliseconds(seconds))


async def test_in_an_outage_retries_stay_within_their_budgets(upstream: Emulator, pair: list[Caller]) -> None:
    upstream.script.play(answer(status("UNAVAILABLE", "away"), uses=0))
    endings: Counter[Any] = Counter()
    for _ in range(10):
        endings.update(ending(error) for _, error in await asyncio.gather(*(outcome(one.start()) for one in pair)))
    record("two workers: attempts in an outage", len(upstream.calls) / endings.total())
    assert endings == {AWAY: 10 * CONNECTIONS}


async def test_under_overload_no_more_are_let_in_than_there_are_slots(upstream: Emulator, pair: list[Caller]) -> None:
    upstream.script.play(answer(repeat(0, "word ", interval=0.05), uses=0))
    inside = [one.start() for one, _ in zip(pair, range(SLOTS), strict=True)]
    await asyncio.gather(*(pieces(call, 2) for call in inside))
    outside = [ending(error) for _, error in await asyncio.gather(*(outcome(one.start()) for one in [*pair, *pair]))]
    await asyncio.gather(*(pieces(call, 2) for call in inside))
    record("two workers: overload", *(float(one != BUSY) for one in outside))
    assert outside == [BUSY] * 2 * CONNECTIONS
    assert len(upstream.calls) == SLOTS, "a refused call has reached upstream"
    for call in inside:
        call.cancel()


async def test_of_2500_calls_at_once_each_is_served_or_refused_in_words(upstream: Emulator, pair: list[Caller]) -> None:
    upstream.script.play(answer("word", uses=0))
    endings: Counter[Any] = Counter()

    async def ask(caller: Caller) -> None:
        messages, error = await outcome(caller.start())
        served = error is None and messages and messages[-1].HasField("completed")
        endings["served" if served else ending(error)] += 1

    await asyncio.gather(*(ask(pair[number % CONNECTIONS]) for number in range(2500)))
    record("two workers: 2,500 calls", endings.total() - endings["served"] - endings[BUSY])
    assert set(endings) == {"served", BUSY}, endings
    assert endings.total() == 2500


async def test_at_sigterm_running_streams_finish_and_health_tells_at_once(
    forkserver: ForkServer, upstream: Emulator
) -> None:
    upstream.script.play(answer(repeat(60, "word ", interval=0.05), uses=0))
    async with forkserver.serving(upstream.address, "--drain-delay", "1", "--grace", "20", workers=2) as leaving:
        async with callers(leaving) as inside:
            watches = [one.health.Watch(health_pb2.HealthCheckRequest()) for one in inside]
            calls = [inside[number % CONNECTIONS].start() for number in range(STREAMS)]
            await asyncio.gather(*(pieces(call, 2) for call in calls))
            said = [(await watch.read()).status for watch in watches]
            assert said == [health_pb2.HealthCheckResponse.SERVING] * CONNECTIONS
            begin = time.monotonic()
            leaving.signal(signal.SIGTERM)

            async def told(watch: Any) -> float:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                return time.monotonic() - begin

            record("two workers: SIGTERM: health", *milliseconds(await asyncio.gather(*map(told, watches))))
            late = [ending(error) for _, error in await asyncio.gather(*(outcome(one.start()) for one in inside))]
            running = await asyncio.gather(*map(rest, calls))
        wrong = [*(one != WHOLE for one in running), *(one != DRAINING for one in late)]
        record("two workers: SIGTERM: streams", *map(float, wrong))
        assert running == [WHOLE] * STREAMS
        assert late == [DRAINING] * CONNECTIONS
        assert await asyncio.wait_for(leaving.process.wait(), 30) == 0
        assert "Traceback" not in leaving.words, leaving.words
