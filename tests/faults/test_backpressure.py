"""Readers that are slow or don't read at all: memory stays bounded, and nobody else feels it."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.conftest import failure
from tests.faults.forkserver import ForkServer
from tests.faults.processes import NARROW, Caller, ServerChild, engine, fate, pieces
from tests.faults.recorder import percentile, record
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator import ControlClient
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, repeat

STALLED = 100


@pytest.fixture(scope="module")
async def fast(forkserver: ForkServer) -> AsyncIterator[tuple[ServerChild, ControlClient]]:
    """A server on an upstream that is as fast as a process of its own can be."""
    async with engine() as (_, address), forkserver.serving(address) as running:
        with ControlClient(address) as control:
            yield running, control


async def gaps(caller: Caller, chunks: int) -> list[float]:
    """The seconds between the chunks of one paced stream."""
    call = caller.start("paced")
    await pieces(call, 10)
    moments = []
    for _ in range(chunks):
        await pieces(call, 1)
        moments.append(time.monotonic())
    call.cancel()
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


@pytest.mark.parametrize(
    ("options", "piece"),
    [(NARROW, "x" * 1000), pytest.param((), "x" * 16384, marks=[pytest.mark.soak, pytest.mark.timeout(300)])],
    ids=["small windows", "gRPC's own windows"],
)
async def test_a_hundred_stalled_readers_cost_little_and_nobody_else_feels_them(
    fast: tuple[ServerChild, ControlClient], options: tuple[tuple[str, int], ...], piece: str
) -> None:
    served, control = fast
    await asyncio.to_thread(control.reset)
    paced = answer(repeat(0, "word ", interval=0.02), user_text="paced", uses=0)
    await asyncio.to_thread(control.play, paced, answer(repeat(0, piece), uses=0))
    async with served.caller() as probe, served.caller(*options) as others:
        warm = [others.start("paced") for _ in range(STALLED)]
        await asyncio.gather(*(pieces(call, 2) for call in warm))
        for call in warm:
            call.cancel()
        await open_upstream(control, 0)
        alone = await gaps(probe, 100)
        before = served.memory()
        calls = [others.start("flood") for _ in range(STALLED)]
        await open_upstream(control, STALLED)
        together = await gaps(probe, 100)
        grown = served.memory() - before
        for call in calls:
            call.cancel()
        await open_upstream(control, 0)
    record("stalled readers: memory", grown / STALLED)
    record("stalled readers: others' gaps", percentile(together, 0.99) / percentile(alone, 0.99))


async def open_upstream(control: ControlClient, count: int) -> None:
    """Wait until so many calls are open upstream, and none of the floods among them gets on."""
    sent, still = -1, 0
    async with asyncio.timeout(120):
        while still < 10:
            await asyncio.sleep(0.05)
            calls = [call for call in await asyncio.to_thread(control.calls) if not call.HasField("ending")]
            now = sum(call.pieces_sent for call in calls)
            still = still + 1 if now == sent and len(calls) == count else 0
            sent = now


async def test_a_slow_reader_that_coalesces_gets_fewer_and_bigger_chunks_and_the_same_text(
    upstream: Emulator, served: ServerChild
) -> None:
    texts = [f"{number:04}" + "x" * 1000 for number in range(1000)]
    upstream.script.play(answer(*texts, uses=0))

    async def read(**fields: Any) -> list[str]:
        async with served.caller(*NARROW) as caller:
            call = caller.start(**fields)
            await call.read()
            await asyncio.sleep(0.3)  # slow: meanwhile everybody's buffers fill
            return [message.text async for message in following(call) if message.text]

    plain, merged = await asyncio.gather(read(), read(coalesce=pb.Coalesce()))
    assert plain == texts
    assert "".join(merged) == "".join(texts)
    assert len(merged) < len(texts)
    assert max(map(len, merged)) > len(texts[0])
    record("coalesce", len(merged) / len(texts))


async def following(call: Any) -> AsyncIterator[pb.GenerateResponse]:
    while (message := await call.read()) is not grpc.aio.EOF:
        yield message


async def test_a_reader_that_stalls_for_too_long_is_given_up_and_so_is_upstream(
    upstream: Emulator, limited: ServerChild
) -> None:
    upstream.script.play(answer(repeat(0, "x" * 16384, interval=0.002), uses=0))
    async with limited.caller(*NARROW) as caller:
        call = caller.start()
        await upstream.wait_until(lambda upstream: len(upstream.open_calls) == 1)
        (open_call,) = upstream.open_calls
        sent, moment = 0, time.monotonic()
        async with asyncio.timeout(20):
            while open_call.open:
                if open_call.pieces_sent != sent:
                    sent, moment = open_call.pieces_sent, time.monotonic()
                await asyncio.sleep(0.005)
        assert open_call.by_caller
        assert open_call.ended is not None
        messages, error = await fate(call)
    assert failure(error) == (grpc.StatusCode.DEADLINE_EXCEEDED, "READER_STALLED")
    assert [message.sequence for message in messages] == list(range(len(messages)))
    record("reader stalled", 1000 * (open_call.ended - moment - 1))
